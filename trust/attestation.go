package trust

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
)

// MaxAttestation bounds an Attestation, in bytes.
const MaxAttestation = 2048

const (
	attestationV1 = "bonafide/attestation/v1\n"
	softwareV1    = "bonafide/software/v1\n"

	formSoftware = 1
	formTPM      = 2

	// maxDepth bounds a nonce path: 65,536 callers share one signature.
	maxDepth = 16
	// maxAttest bounds a TPMS_ATTEST over an NV index of SlotsSize.
	maxAttest = 512

	statementSize = 1 + SlotsSize + 8 + 8 + 4 + 4 + 1
	signatureSize = 64
)

// An Attestation is a device's signed statement in its one binary encoding
// (SPEC.md). Only Identity.Verify says what it is worth.
type Attestation []byte

// A Path leads from one nonce to the root that a device signed for many. The
// zero Path is that of a lone nonce.
type Path struct {
	Sides    uint16 // bit i set: at step i the sibling is on the left
	Siblings [][32]byte
}

// Root returns what the device signs to answer n along p:
// SHA256(0x00 || n), then up the path SHA256(0x01 || left || right).
func (p Path) Root(n Nonce) [32]byte {
	h := leaf(n)
	for i, sib := range p.Siblings {
		if p.Sides>>i&1 == 1 {
			h = node(sib, h)
		} else {
			h = node(h, sib)
		}
	}
	return h
}

func leaf(n Nonce) [32]byte {
	var b [33]byte // 0x00 || n
	copy(b[1:], n[:])
	return sha256.Sum256(b[:])
}

func node(l, r [32]byte) [32]byte {
	b := [65]byte{1} // 0x01 || l || r
	copy(b[1:], l[:])
	copy(b[33:], r[:])
	return sha256.Sum256(b[:])
}

func (p Path) size() int { return 3 + 32*len(p.Siblings) }

func (p Path) append(b []byte) []byte {
	b = append(b, uint8(len(p.Siblings)))
	b = binary.BigEndian.AppendUint16(b, p.Sides)
	for _, s := range p.Siblings {
		b = append(b, s[:]...)
	}
	return b
}

func (r *reader) path() (p Path) {
	depth := int(r.u8())
	p.Sides = r.u16()
	if r.err == nil && (depth > maxDepth || uint32(p.Sides)>>depth != 0) {
		r.err = errors.New("bad nonce path")
		return Path{}
	}
	for range depth {
		p.Siblings = append(p.Siblings, r.hash())
	}
	return p
}

// Certified is one TPMS_ATTEST as the TPM signed it, and the ECDSA signature.
type Certified struct {
	Attest []byte
	R, S   []byte // big-endian, at most 32 bytes each
}

// SignTPM returns the attestations that a TPM's two certifications make, slots
// first, both over the same root. Of the two equivalent values of S it keeps the
// low one.
func SignTPM(slots, counter Certified) (Signed, error) {
	var body []byte
	for _, c := range []Certified{slots, counter} {
		if len(c.Attest) > maxAttest || len(c.R) > 32 || len(c.S) > 32 {
			return nil, errors.New("encode attestation: part too long")
		}
		body = binary.BigEndian.AppendUint16(body, uint16(len(c.Attest)))
		body = append(body, c.Attest...)
		body = append(body, new(big.Int).SetBytes(c.R).FillBytes(make([]byte, 32))...)
		body = append(body, lowS(c.S).FillBytes(make([]byte, 32))...)
	}
	return func(p Path) (Attestation, error) { return attestation(formTPM, p, body), nil }, nil
}

// attestation allocates once: under load it runs for each caller of a device.
func attestation(form byte, p Path, body []byte) Attestation {
	b := make([]byte, 0, len(attestationV1)+1+p.size()+len(body))
	b = append(append(b, attestationV1...), form)
	return append(p.append(b), body...)
}

// SignSoftware signs s over root.
func SignSoftware(key ed25519.PrivateKey, s Statement, root [32]byte) Signed {
	body := s.bytes()
	body = append(body, ed25519.Sign(key, softwareMessage(root, body))...)
	return func(p Path) (Attestation, error) { return attestation(formSoftware, p, body), nil }
}

// EncodeSoftware signs s in answer to n alone and returns the attestation.
func EncodeSoftware(key ed25519.PrivateKey, s Statement, n Nonce) Attestation {
	a, _ := SignSoftware(key, s, Path{}.Root(n))(Path{}) // never fails
	return a
}

// softwareMessage is what a software MAS signs:
// "bonafide/software/v1\n" || root || statement.
func softwareMessage(root [32]byte, statement []byte) []byte {
	b := append([]byte(softwareV1), root[:]...)
	return append(b, statement...)
}

func (s Statement) bytes() []byte {
	b := append([]byte{byte(s.Mode)}, s.Slots.Bytes()...)
	b = binary.BigEndian.AppendUint64(b, s.Counter)
	b = binary.BigEndian.AppendUint64(b, s.Clock)
	b = binary.BigEndian.AppendUint32(b, s.Counts.Reset)
	b = binary.BigEndian.AppendUint32(b, s.Counts.Restart)
	if s.Safe {
		return append(b, 1)
	}
	return append(b, 0)
}

func parseStatement(b []byte) (s Statement, err error) {
	r := reader{buf: b}
	s.Mode = Mode(r.u8())
	if s.Slots, err = ParseSlots(r.take(SlotsSize)); err != nil {
		return Statement{}, err
	}
	s.Counter, s.Clock = r.u64(), r.u64()
	s.Counts = Counts{Reset: r.u32(), Restart: r.u32()}
	s.Safe = r.flag()
	if s.Mode != ModeUpdate && s.Mode != ModeService {
		return Statement{}, fmt.Errorf("no such mode: %d", uint8(s.Mode))
	}
	return s, r.end()
}

// An envelope is a parsed attestation, of which nothing is checked yet.
type envelope struct {
	path      Path
	form      uint8
	statement []byte       // software
	signature []byte       // software
	certified [2]Certified // tpm: slots, counter
}

func (a Attestation) parse() (e envelope, err error) {
	if len(a) > MaxAttestation {
		return e, fmt.Errorf("%d bytes, at most %d", len(a), MaxAttestation)
	}
	r := reader{buf: a}
	if string(r.take(len(attestationV1))) != attestationV1 {
		return e, errors.New("not an attestation of version 1")
	}
	e.form = r.u8()
	e.path = r.path()
	switch e.form {
	case formSoftware:
		e.statement, e.signature = r.take(statementSize), r.take(signatureSize)
	case formTPM:
		for i := range e.certified {
			e.certified[i] = Certified{Attest: r.sized(maxAttest), R: r.take(32), S: r.take(32)}
		}
	default:
		return e, fmt.Errorf("no such form: %d", e.form)
	}
	return e, r.end()
}
