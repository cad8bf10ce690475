package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"testing"
)

// A fakeTPM is a TPM that says whatever a test wants, signed.
type fakeTPM struct {
	key *ecdsa.PrivateKey
	id  Identity
}

func newFakeTPM(t testing.TB) *fakeTPM {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeTPM{key: key}
	f.id = Identity{
		Profile:       ProfileLock,
		Key:           publicArea(t, key, keyAttributes),
		SlotsPublic:   indexArea(0x0181B0F1, indexAttributes, indexPolicy([32]byte{}, ccWrite), SlotsSize),
		CounterPublic: indexArea(0x0181B0F2, indexAttributes|typeCounter, indexPolicy([32]byte{}, ccIncrement), counterSize),
		CounterBase:   17,
	}
	if err := f.id.Check(); err != nil {
		t.Fatal(err)
	}
	return f
}

func publicArea(t testing.TB, key *ecdsa.PrivateKey, attrs uint32) []byte {
	t.Helper()
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b := be16(algECC, algSHA256)
	b = append(b, be32(attrs)...)
	b = append(b, be16(0, algNull, algECDSA, algSHA256, curveP256, algNull)...)
	b = append(append(b, be16(32)...), point[1:33]...)
	return append(append(b, be16(32)...), point[33:]...)
}

func indexArea(handle, attrs uint32, policy []byte, size uint16) []byte {
	b := append(be32(handle), be16(algSHA256)...)
	b = append(b, be32(attrs)...)
	b = append(append(b, be16(uint16(len(policy)))...), policy...)
	return append(b, be16(size)...)
}

func be16(vs ...uint16) (b []byte) {
	for _, v := range vs {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func locked(area []byte) []byte {
	b := append([]byte(nil), area...)
	binary.BigEndian.PutUint32(b[6:], binary.BigEndian.Uint32(b[6:])|writeLocked)
	return b
}

// A claim is one TPMS_ATTEST before it is signed.
type claim struct {
	magic  uint32
	kind   uint16
	extra  []byte
	signer []byte
	clock  uint64
	counts Counts
	safe   byte
	index  []byte // public area
	offset uint16
	data   []byte
	more   []byte
}

func (c claim) bytes() []byte {
	b := append(be32(c.magic), be16(c.kind, uint16(len(c.signer)))...)
	b = append(append(b, c.signer...), be16(uint16(len(c.extra)))...)
	b = binary.BigEndian.AppendUint64(append(b, c.extra...), c.clock)
	b = append(append(b, be32(c.counts.Reset)...), be32(c.counts.Restart)...)
	b = binary.BigEndian.AppendUint64(append(b, c.safe), 0x2019)
	name := nameOf(c.index)
	b = append(append(b, be16(uint16(len(name)))...), name...)
	b = append(append(b, be16(c.offset, uint16(len(c.data)))...), c.data...)
	return append(b, c.more...)
}

// claims are what an honest TPM would say: slots, then counter at base + 5.
func (f *fakeTPM) claims(n Nonce) (slots, counter claim) {
	root := Path{}.Root(n)
	slots = claim{
		magic: magic, kind: attestNV, extra: root[:], clock: 1000,
		signer: nameOf(append(be32(ownerGroup), nameOf(f.id.Key)...)),
		counts: Counts{Reset: 3, Restart: 4}, safe: 1,
		index: f.id.SlotsPublic, data: Slots{Epoch: 5}.Bytes(),
	}
	counter = slots
	counter.index, counter.clock = f.id.CounterPublic, 1001
	counter.data = binary.BigEndian.AppendUint64(nil, f.id.CounterBase+5)
	return slots, counter
}

func (f *fakeTPM) sign(t testing.TB, c claim) Certified {
	t.Helper()
	h := sha256.Sum256(c.bytes())
	r, s, err := ecdsa.Sign(rand.Reader, f.key, h[:])
	if err != nil {
		t.Fatal(err)
	}
	return Certified{Attest: c.bytes(), R: r.Bytes(), S: s.Bytes()}
}

func (f *fakeTPM) attest(t testing.TB, p Path, slots, counter claim) Attestation {
	t.Helper()
	a, err := encodeTPM(p, f.sign(t, slots), f.sign(t, counter))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// encodeTPM makes the attestation of two certifications for path.
func encodeTPM(path Path, slots, counter Certified) (Attestation, error) {
	signed, err := SignTPM(slots, counter)
	if err != nil {
		return nil, err
	}
	return signed(path)
}
