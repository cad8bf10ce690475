package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
)

const (
	// ApprovalRef is the policyRef of every approval: a signature made for
	// something else approves nothing.
	ApprovalRef = "bonafide/approval/v1\n"

	// registers is how many PCRs a PC's TPM has.
	registers = 24
)

// approverAttributes are the TPMA_OBJECT of an approver's public key, as a TPM
// loads it: userWithAuth, sign.
const approverAttributes = 1<<6 | 1<<18

// A Boot is what a machine measured while it booted: some of the SHA-256
// registers of its TPM, and the digest of their values.
type Boot struct {
	Registers [registers / 8]byte // register i is bit i%8 of byte i/8
	Digest    [32]byte            // SHA256(value of the lowest register || ... || of the highest)
}

// NewBoot returns the boot that left these values in these registers.
func NewBoot(values map[int][32]byte) (b Boot, err error) {
	if len(values) == 0 {
		return Boot{}, errors.New("boot without registers")
	}
	h := sha256.New()
	for _, i := range slices.Sorted(maps.Keys(values)) {
		if i < 0 || i >= registers {
			return Boot{}, fmt.Errorf("no such register: %d", i)
		}
		v := values[i]
		b.Registers[i/8] |= 1 << (i % 8)
		h.Write(v[:])
	}
	h.Sum(b.Digest[:0])
	return b, nil
}

// String returns "registers 7, 11: " and the digest in hexadecimal digits.
func (b Boot) String() string {
	var rs []string
	for i := range registers {
		if b.Registers[i/8]>>(i%8)&1 == 1 {
			rs = append(rs, fmt.Sprint(i))
		}
	}
	return fmt.Sprintf("registers %s: %x", strings.Join(rs, ", "), b.Digest)
}

// bytes is TPML_PCR_SELECTION (Part 2, 10.9.7) || digest.
func (b Boot) bytes() []byte {
	s := append(be32(1), algSHA256>>8, algSHA256&0xFF, registers/8)
	return append(append(s, b.Registers[:]...), b.Digest[:]...)
}

func (r *reader) boot() (b Boot) {
	banks, hash, size := r.u32(), r.u16(), r.u8()
	if r.err == nil && (banks != 1 || hash != algSHA256 || size != registers/8) {
		r.err = errors.New("not a selection of registers of the SHA-256 bank")
	}
	copy(b.Registers[:], r.take(registers/8))
	b.Digest = r.hash()
	if r.err == nil && b.Registers == [registers / 8]byte{} {
		r.err = errors.New("selects no register")
	}
	return b
}

// Policy returns the digest of TPM2_PolicyPCR over b, which an approver signs:
// Part 3, H(0... || TPM_CC_PolicyPCR || pcrs || pcrDigest).
func (b Boot) Policy() [32]byte { return extend([32]byte{}, ccPolicyPCR, b.bytes()) }

// An Approver is the public key of the operator who says which boots may write:
// x || y, ECDSA on P-256.
type Approver [64]byte

// ApproverOf returns the public half of key, which must be on P-256.
func ApproverOf(key *ecdsa.PrivateKey) (a Approver, err error) {
	if key.Curve != elliptic.P256() {
		return a, errors.New("approver's key is not on P-256")
	}
	point, err := key.PublicKey.Bytes()
	if err == nil {
		copy(a[:], point[1:])
	}
	return a, err
}

func (a Approver) key() (*ecdsa.PublicKey, error) {
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, a[:]...))
}

// Public returns a as the TPMT_PUBLIC (Part 2, 12.2.4) under which a TPM loads
// it, and whose Name the write policy holds.
func (a Approver) Public() []byte {
	b := []byte{algECC >> 8, algECC & 0xFF, algSHA256 >> 8, algSHA256 & 0xFF}
	b = append(b, be32(approverAttributes)...)
	b = append(b, 0, 0, 0, algNull, 0, algECDSA, 0, algSHA256, 0, curveP256, 0, algNull)
	b = append(append(b, 0, 32), a[:32]...)
	return append(append(b, 0, 32), a[32:]...)
}

// MarshalText returns a in 128 hexadecimal digits.
func (a Approver) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, a[:]), nil }

// UnmarshalText reads what MarshalText wrote, with space around it.
func (a *Approver) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err == nil && len(b) != len(a) {
		err = fmt.Errorf("%d bytes, want %d", len(b), len(a))
	}
	if err == nil {
		copy(a[:], b)
		_, err = a.key()
	}
	if err != nil {
		return fmt.Errorf("approver's key: %w", err)
	}
	return nil
}

// branch is the policy digest after TPM2_PolicyAuthorize, which forgets what
// came before: Part 3, H(H(0... || TPM_CC_PolicyAuthorize || Name) || policyRef).
func (a Approver) branch() [32]byte {
	h := extend([32]byte{}, ccPolicyAuthorize, nameOf(a.Public()))
	return sha256.Sum256(append(h[:], ApprovalRef...))
}

// An Approval is an approver's word that a boot may write.
type Approval struct {
	Boot Boot
	R, S [32]byte // ECDSA with SHA-256 over Boot.Policy() || policyRef
}

// Approve signs b.
func Approve(key *ecdsa.PrivateKey, b Boot) (Approval, error) {
	a := Approval{Boot: b}
	h := a.Signed()
	r, s, err := ecdsa.Sign(rand.Reader, key, h[:])
	if err != nil {
		return Approval{}, fmt.Errorf("approve: %w", err)
	}
	r.FillBytes(a.R[:])
	lowS(s.Bytes()).FillBytes(a.S[:])
	return a, nil
}

// Signed returns the digest that the approver signs:
// SHA256(Boot.Policy() || policyRef).
func (a Approval) Signed() [32]byte {
	p := a.Boot.Policy()
	return sha256.Sum256(append(p[:], ApprovalRef...))
}

// Verify says whether by has made a.
func (a Approval) Verify(by Approver) error {
	key, err := by.key()
	if err != nil {
		return fmt.Errorf("approval: %w", err)
	}
	h := a.Signed()
	if !ecdsa.Verify(key, h[:], new(big.Int).SetBytes(a.R[:]), new(big.Int).SetBytes(a.S[:])) {
		return errors.New("approval: not signed by the approver")
	}
	return nil
}

// Bytes returns the one encoding of a: boot, r, s.
func (a Approval) Bytes() []byte { return slices.Concat(a.Boot.bytes(), a.R[:], a.S[:]) }

// MarshalText returns the encoding of a in hexadecimal digits.
func (a Approval) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, a.Bytes()), nil }

// UnmarshalText reads what MarshalText wrote, with space around it. It does not
// verify it.
func (a *Approval) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("approval: %w", err)
	}
	*a, err = ParseApproval(b)
	return err
}

// ParseApproval decodes what Bytes encodes. It does not verify it.
func ParseApproval(b []byte) (Approval, error) {
	r := reader{buf: b}
	a := r.approval()
	if err := r.end(); err != nil {
		return Approval{}, fmt.Errorf("approval: %w", err)
	}
	return a, nil
}

func (r *reader) approval() Approval {
	return Approval{Boot: r.boot(), R: r.hash(), S: r.hash()}
}

// Evidence is what a roster pins of a measured device beside its keys and
// indexes: whose approvals count, and the first of them.
type Evidence struct {
	Approver Approver
	First    Approval
}

// Bytes returns the one encoding of e: approver, first approval.
func (e Evidence) Bytes() []byte { return append(e.Approver[:], e.First.Bytes()...) }

// ParseEvidence decodes what Bytes encodes, and verifies the approval.
func ParseEvidence(b []byte) (e Evidence, err error) {
	r := reader{buf: b}
	copy(e.Approver[:], r.take(len(e.Approver)))
	e.First = r.approval()
	if err := r.end(); err != nil {
		return Evidence{}, err
	}
	return e, e.First.Verify(e.Approver)
}
