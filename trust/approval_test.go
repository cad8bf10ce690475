package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"
)

func TestNewBoot(t *testing.T) {
	b, err := NewBoot(map[int][32]byte{11: {11}, 7: {7}})
	if err != nil {
		t.Fatal(err)
	}
	// SHA256(07 00... || 0b 00...): the lowest register first
	want := "registers 7, 11: 1d1caf48c76264b53d945a6cf0224747c7216d2676bcec350a293a8decea3cab"
	if b.String() != want || b.Registers != [3]byte{0x80, 0x08, 0} {
		t.Errorf("got %v, %x, want %s", b, b.Registers, want)
	}
	for _, values := range []map[int][32]byte{nil, {-1: {}}, {24: {}}} {
		if _, err := NewBoot(values); err == nil {
			t.Errorf("%v: no error", values)
		}
	}
}

// An approval holds for its boot and its approver alone.
func TestApproval(t *testing.T) {
	_, e := approved(t)
	_, other := approved(t)
	if err := e.First.Verify(e.Approver); err != nil {
		t.Error(err)
	}
	if err := e.First.Verify(other.Approver); err == nil {
		t.Error("approved by another")
	}
	e.First.Boot.Digest[0] ^= 1
	if err := e.First.Verify(e.Approver); err == nil {
		t.Error("another boot is approved")
	}
}

func TestApproverCurve(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ApproverOf(key); err == nil {
		t.Error("a key on P-384 approves")
	}
}

// FuzzEvidence: evidence has one encoding, and only the approver's signature
// makes one.
func FuzzEvidence(f *testing.F) {
	_, e := approved(f)
	f.Add(e.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := ParseEvidence(b); err == nil && (!bytes.Equal(got.Bytes(), b) || got.First.Verify(got.Approver) != nil) {
			t.Errorf("%x parses as %+v", b, got)
		}
	})
}
