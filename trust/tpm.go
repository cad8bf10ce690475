package trust

// The structures of TPM 2.0 Library Specification, Part 2, as far as they
// are signed or pinned here, parsed by hand: a verifier that will be run for
// decades should rest on the specification alone.

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
)

const (
	algSHA256 = 0x000B // TPM_ALG_ID, Part 2, 6.3
	algNull   = 0x0010
	algECDSA  = 0x0018
	algECC    = 0x0023
	curveP256 = 0x0003 // TPM_ECC_CURVE, 6.4

	ccIncrement       = 0x00000134 // TPM_CC, 6.5.2
	ccWrite           = 0x00000137
	ccWriteLock       = 0x00000138
	ccPolicyAuthorize = 0x0000016A
	ccPolicyCommand   = 0x0000016C
	ccPolicyOR        = 0x00000171
	ccPolicyPCR       = 0x0000017F

	magic      = 0xFF544347 // TPM_GENERATED_VALUE, 6.2
	attestNV   = 0x8014     // TPM_ST_ATTEST_NV, 6.9
	ownerGroup = 0x40000001 // TPM_RH_OWNER, 7.4
	indexGroup = 0x01       // TPM_HT_NV_INDEX, 7.2
)

// keyAttributes are the TPMA_OBJECT (8.3) of an attestation key: fixedTPM,
// fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign. A
// restricted key signs nothing but what the TPM itself has put together.
const keyAttributes = 1<<1 | 1<<4 | 1<<5 | 1<<6 | 1<<10 | 1<<16 | 1<<18

// indexAttributes are the TPMA_NV (13.4) of both indexes in update mode:
// POLICYWRITE, WRITE_STCLEAR, AUTHREAD, NO_DA, WRITTEN. WRITELOCKED joins them
// in service mode, and TPM_NT_COUNTER marks the counter.
const (
	indexAttributes = 1<<3 | 1<<14 | 1<<18 | 1<<25 | 1<<29
	writeLocked     = 1 << 11
	typeCounter     = 1 << 4
)

const counterSize = 8

// A device is a TPM as an Identity pins it.
type device struct {
	key     *ecdsa.PublicKey
	signer  []byte // qualified name of the attestation key
	slots   index
	counter index
}

func (id Identity) device() (d device, err error) {
	if d.key, err = parseKey(id.Key); err != nil {
		return d, fmt.Errorf("key: %w", err)
	}
	write, err := id.writeBranch()
	if err != nil {
		return d, fmt.Errorf("evidence: %w", err)
	}
	// Part 1, 16 and 26.5: QN of a primary key = H(hierarchy handle || Name).
	d.signer = nameOf(append(be32(ownerGroup), nameOf(id.Key)...))
	d.slots = index{id.SlotsPublic, indexAttributes, SlotsSize, indexPolicy(write, ccWrite)}
	d.counter = index{id.CounterPublic, indexAttributes | typeCounter, counterSize, indexPolicy(write, ccIncrement)}
	if err := d.slots.check(); err != nil {
		return d, fmt.Errorf("slots index: %w", err)
	}
	if err := d.counter.check(); err != nil {
		return d, fmt.Errorf("counter index: %w", err)
	}
	if bytes.Equal(id.SlotsPublic[:4], id.CounterPublic[:4]) {
		return d, errors.New("slots and counter share one index")
	}
	return d, nil
}

// writeBranch is the policy digest that a writer has to reach before naming
// its command: empty for lock, a boot that the operator approved for measured.
func (id Identity) writeBranch() ([32]byte, error) {
	if id.Profile == ProfileLock {
		return [32]byte{}, nil
	}
	e, err := ParseEvidence(id.Evidence)
	return e.Approver.branch(), err
}

// indexPolicy is the authPolicy of an index that anyone may lock, always, and
// that command may write after branch.
func indexPolicy(branch [32]byte, command uint32) []byte {
	lock := extend([32]byte{}, ccPolicyCommand, be32(ccWriteLock))
	write := extend(branch, ccPolicyCommand, be32(command))
	p := extend([32]byte{}, ccPolicyOR, append(lock[:], write[:]...))
	return p[:]
}

// extend returns H(old || command || data), Part 1, 19.7.
func extend(old [32]byte, command uint32, data []byte) [32]byte {
	b := append(old[:], be32(command)...)
	return sha256.Sum256(append(b, data...))
}

// nameOf returns the Name of a public area: nameAlg || H(area), Part 1, 16.
func nameOf(area []byte) []byte {
	h := sha256.Sum256(area)
	return append([]byte{algSHA256 >> 8, algSHA256 & 0xFF}, h[:]...)
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// parseKey reads a TPMT_PUBLIC (12.2.4) and insists on the attestation key of
// the recipe: ECDSA with SHA-256 on P-256, restricted, no policy.
func parseKey(b []byte) (*ecdsa.PublicKey, error) {
	r := reader{buf: b}
	kind, nameAlg, attrs, policy := r.u16(), r.u16(), r.u32(), r.sized(32)
	symmetric, scheme, hash, curve, kdf := r.u16(), r.u16(), r.u16(), r.u16(), r.u16()
	x, y := r.sized(32), r.sized(32)
	if err := r.end(); err != nil {
		return nil, err
	}
	if attrs != keyAttributes || len(policy) != 0 {
		return nil, errors.New("not a restricted signing key fixed to its TPM")
	}
	if kind != algECC || nameAlg != algSHA256 || symmetric != algNull ||
		scheme != algECDSA || hash != algSHA256 || curve != curveP256 || kdf != algNull {
		return nil, errors.New("not ECDSA with SHA-256 on P-256")
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), uncompressed(x, y))
}

func uncompressed(x, y []byte) []byte {
	b := make([]byte, 65)
	b[0] = 4
	copy(b[33-len(x):], x)
	copy(b[65-len(y):], y)
	return b
}

// An index is an NV index: the pinned TPMS_NV_PUBLIC (13.5) of update mode, and
// what it has to say.
type index struct {
	public     []byte
	attributes uint32
	size       uint16
	policy     []byte
}

func (x index) check() error {
	r := reader{buf: x.public}
	handle, nameAlg, attrs := r.u32(), r.u16(), r.u32()
	policy, size := r.sized(32), r.u16()
	if err := r.end(); err != nil {
		return err
	}
	if handle>>24 != indexGroup || nameAlg != algSHA256 || size != x.size {
		return errors.New("wrong handle, name algorithm or size")
	}
	if attrs != x.attributes {
		return fmt.Errorf("attributes %#x, want %#x", attrs, x.attributes)
	}
	if !bytes.Equal(policy, x.policy) {
		return errors.New("write policy is not the profile's")
	}
	return nil
}

// mode returns the mode in which x bears name. The write lock is one of the
// attributes, and those are part of the Name: so the Name shows the mode.
func (x index) mode(name []byte) (Mode, error) {
	if bytes.Equal(name, nameOf(x.public)) {
		return ModeUpdate, nil
	}
	locked := bytes.Clone(x.public)
	binary.BigEndian.PutUint32(locked[6:], x.attributes|writeLocked)
	if bytes.Equal(name, nameOf(locked)) {
		return ModeService, nil
	}
	return 0, errors.New("index is not the pinned one, or not as pinned")
}

// An attest is a TPMS_ATTEST (10.12.8) of type TPM_ST_ATTEST_NV.
type attest struct {
	signer, extra []byte
	clock         uint64
	counts        Counts
	safe          bool
	name          []byte
	offset        uint16
	contents      []byte
}

func parseAttest(b []byte) (a attest, err error) {
	r := reader{buf: b}
	if r.u32() != magic || r.u16() != attestNV {
		return a, errors.New("not a TPM's certification of an index")
	}
	a.signer, a.extra = r.sized(34), r.sized(64)
	a.clock = r.u64()
	a.counts = Counts{Reset: r.u32(), Restart: r.u32()}
	a.safe = r.flag()
	r.u64() // firmware version
	a.name, a.offset, a.contents = r.sized(34), r.u16(), r.sized(SlotsSize)
	return a, r.end()
}

// certified checks one signed certification of x and returns it with the mode
// it shows.
func (d device) certified(c Certified, x index, root [32]byte) (a attest, m Mode, err error) {
	if err := d.signed(c); err != nil {
		return a, 0, err
	}
	if a, err = parseAttest(c.Attest); err != nil {
		return a, 0, err
	}
	switch {
	case !bytes.Equal(a.signer, d.signer):
		return a, 0, errors.New("key is not in the owner hierarchy")
	case !bytes.Equal(a.extra, root[:]):
		return a, 0, errors.New("answers another nonce")
	case a.offset != 0 || len(a.contents) != int(x.size):
		return a, 0, errors.New("covers a part of the index only")
	}
	m, err = x.mode(a.name)
	return a, m, err
}

func (d device) signed(c Certified) error {
	h := sha256.Sum256(c.Attest)
	r, s := new(big.Int).SetBytes(c.R), new(big.Int).SetBytes(c.S)
	if s.Cmp(halfOrder) > 0 {
		return errors.New("signature is not the canonical one of its two forms")
	}
	if !ecdsa.Verify(d.key, h[:], r, s) {
		return errors.New("wrong signature")
	}
	return nil
}

// halfOrder is the highest S of a canonical signature: of s and n-s, which both
// verify, the lower.
var halfOrder = new(big.Int).Rsh(elliptic.P256().Params().N, 1)

func lowS(b []byte) *big.Int {
	s := new(big.Int).SetBytes(b)
	if s.Cmp(halfOrder) > 0 {
		s.Sub(elliptic.P256().Params().N, s)
	}
	return s
}

// verifyTPM takes two certifications as one statement: same key, same nonce,
// same boot, same mode, slots before counter.
func (id Identity) verifyTPM(e envelope, root [32]byte) (Statement, error) {
	if e.form != formTPM {
		return Statement{}, errors.New("not made by a TPM")
	}
	d, err := id.device()
	if err != nil {
		return Statement{}, err
	}
	slots, mode, err := d.certified(e.certified[0], d.slots, root)
	if err != nil {
		return Statement{}, fmt.Errorf("slots: %w", err)
	}
	counter, counterMode, err := d.certified(e.certified[1], d.counter, root)
	if err != nil {
		return Statement{}, fmt.Errorf("counter: %w", err)
	}
	if err := together(slots, counter, mode, counterMode); err != nil {
		return Statement{}, err
	}
	return id.statement(slots, counter, mode)
}

func together(slots, counter attest, m, n Mode) error {
	switch {
	case m != n:
		return fmt.Errorf("slots are in %v mode, counter in %v mode", m, n)
	case slots.counts != counter.counts:
		return errors.New("slots and counter were certified in different boots")
	case slots.clock > counter.clock:
		return errors.New("counter was certified before the slots")
	}
	return nil
}

func (id Identity) statement(slots, counter attest, m Mode) (Statement, error) {
	s, err := ParseSlots(slots.contents)
	if err != nil {
		return Statement{}, err
	}
	value := binary.BigEndian.Uint64(counter.contents)
	if value < id.CounterBase {
		return Statement{}, errors.New("counter is below its base")
	}
	return Statement{
		Mode: m, Slots: s, Counter: value - id.CounterBase, Clock: slots.clock,
		Counts: slots.counts, Safe: slots.safe && counter.safe,
	}, nil
}
