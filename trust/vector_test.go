package trust_test

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

// The vectors were made by real devices; SPEC.md describes them.
func TestVectors(t *testing.T) {
	for _, v := range trusttest.ReadVectors(t, "testdata/*.json") {
		t.Run(v.Name, func(t *testing.T) {
			n, a := trust.Nonce(v.Nonce), trust.Attestation(v.Attestation)
			s, err := v.Identity.Verify(a, n)
			if v.Statement == nil {
				if !errors.Is(err, trust.ErrAttestation) {
					t.Errorf("got %+v, %v, want ErrAttestation", s, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := trusttest.Describe(s); !reflect.DeepEqual(got, v.Statement) {
				t.Errorf("got %+v, want %+v", got, v.Statement)
			}
			trusttest.Flips(t, v.Identity, a, n)
		})
	}
}

// FuzzVerify lets nothing through but the vectors themselves, byte for byte:
// signatures have one form, and the fuzzer has no key.
func FuzzVerify(f *testing.F) {
	vs := trusttest.ReadVectors(f, "testdata/*.json")
	for i, v := range vs {
		f.Add(i, []byte(v.Attestation))
	}
	f.Fuzz(func(t *testing.T, i int, a []byte) {
		v := vs[uint(i)%uint(len(vs))]
		s, err := v.Identity.Verify(a, trust.Nonce(v.Nonce))
		if err != nil {
			if !errors.Is(err, trust.ErrAttestation) {
				t.Errorf("got %v, want ErrAttestation", err)
			}
			return
		}
		if !known(vs, s, a) {
			t.Errorf("got %+v from %x", s, a)
		}
	})
}

func known(vs []trusttest.Vector, s trust.Statement, a []byte) bool {
	return slices.ContainsFunc(vs, func(v trusttest.Vector) bool {
		return string(v.Attestation) == string(a) && reflect.DeepEqual(v.Statement, trusttest.Describe(s))
	})
}

// FuzzIdentity: a hostile roster entry is refused, and never worse.
func FuzzIdentity(f *testing.F) {
	for _, v := range trusttest.ReadVectors(f, "testdata/*.json") {
		id := v.Identity
		f.Add(string(id.Profile), id.Key, id.SlotsPublic, id.CounterPublic, id.Evidence, []byte(v.Attestation))
	}
	f.Fuzz(func(t *testing.T, p string, key, slots, counter, evidence, a []byte) {
		id := trust.Identity{
			Profile: trust.Profile(p), Key: key, SlotsPublic: slots, CounterPublic: counter, Evidence: evidence,
		}
		if err := id.Check(); err == nil {
			return
		}
		if s, err := id.Verify(a, trust.Nonce{}); err == nil {
			t.Errorf("an identity that fails its check gave %+v", s)
		}
	})
}
