package tpm_test

import (
	"crypto/ecdsa"
	"flag"
	"slices"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

var update = flag.Bool("update", false, "write the vectors anew")

// TestVectors writes ../testdata/swtpm.json and measured.json if told to; package
// trust checks them.
func TestVectors(t *testing.T) {
	if !*update {
		t.Skip("without -update the vectors stay as they are")
	}
	t.Run("lock", vectorsLock)
	t.Run("measured", vectorsMeasured)
}

func vectorsLock(t *testing.T) {
	s, d := provision(t)
	m := d.Open(t).(*tpm.MAS)
	n := trust.Nonce([]byte("a nonce: thirty-two random bytes"))
	must(t, m.Advance(t.Context()))
	must(t, m.Store(t.Context(), trusttest.Slots(1)))
	vs := []trusttest.Vector{vector(t, "swtpm, update mode", d, m, n)}
	must(t, m.Lock(t.Context()))
	service := vector(t, "swtpm, service mode", d, m, n)
	path := trust.Path{Sides: 2, Siblings: [][32]byte{{0xAA}, {0xBB}}}
	signed, err := m.Attest(t.Context(), path.Root(n))
	must(t, err)
	a, err := signed(path)
	must(t, err)
	vs = append(vs, service, trusttest.NewVector(t, "swtpm, nonce path of two steps", d.Identity, n, a))
	cycle(t, s)
	vs = append(vs, vector(t, "swtpm, after a reset", d, m, n))
	trusttest.WriteVectors(t, "../testdata/swtpm.json", append(vs, refused(t, d, service, vs[3])...))
}

// vectorsMeasured are of a device that approved boots alone may write, and of
// identities that misstate which those are.
func vectorsMeasured(t *testing.T) {
	x := newMeasured(t)
	m := x.Device.Open(t).(*tpm.MAS)
	n := trust.Nonce([]byte("a nonce: thirty-two random bytes"))
	must(t, m.Advance(t.Context()))
	must(t, m.Store(t.Context(), trusttest.Slots(1)))
	vs := []trusttest.Vector{vector(t, "measured, update mode", x.Device, m, n)}
	must(t, m.Lock(t.Context()))
	service := vector(t, "measured, service mode", x.Device, m, n)
	vs = append(vs, service)
	for name, id := range misstated(t, x) {
		vs = append(vs, trusttest.NewVector(t, "refused: "+name, id, n, trust.Attestation(service.Attestation)))
	}
	slices.SortFunc(vs[2:], func(a, b trusttest.Vector) int { return strings.Compare(a.Name, b.Name) })
	for _, v := range vs[2:] {
		if v.Statement != nil {
			t.Fatalf("%s: not refused", v.Name)
		}
	}
	trusttest.WriteVectors(t, "../testdata/measured.json", vs)
}

// misstated returns identities that differ from that of x in what they say of
// the boots that may write.
func misstated(t *testing.T, x measured) map[string]trust.Identity {
	t.Helper()
	approver := func(key *ecdsa.PrivateKey) trust.Approver {
		by, err := trust.ApproverOf(key)
		must(t, err)
		return by
	}
	approval := func(key *ecdsa.PrivateKey) trust.Approval {
		a, err := trust.Approve(key, bootOf(t, "first"))
		must(t, err)
		return a
	}
	stranger := newOperator(t)
	with := func(p trust.Profile, evidence []byte) trust.Identity {
		id := x.Identity
		id.Profile, id.Evidence = p, evidence
		return id
	}
	of := func(by trust.Approver, first trust.Approval) trust.Identity {
		return with(trust.ProfileMeasured, trust.Evidence{Approver: by, First: first}.Bytes())
	}
	return map[string]trust.Identity{
		"profile lock, and a policy that knows an approver": with(trust.ProfileLock, nil),
		"no evidence":                        with(trust.ProfileMeasured, nil),
		"evidence cut short":                 with(trust.ProfileMeasured, x.Identity.Evidence[:len(x.Identity.Evidence)-1]),
		"another approver than the policy's": of(approver(stranger), approval(stranger)),
		"an approval by another":             of(approver(x.operator), approval(stranger)),
	}
}

func vector(t *testing.T, name string, d trusttest.Device, m trust.MAS, n trust.Nonce) trusttest.Vector {
	t.Helper()
	a, err := m.Lookup(t.Context(), n)
	must(t, err)
	v := trusttest.NewVector(t, name, d.Identity, n, a)
	if v.Statement == nil {
		t.Fatalf("%s: refused", name)
	}
	return v
}

// refused are attestations that are genuine in each part and prove nothing.
func refused(t *testing.T, d trusttest.Device, before, after trusttest.Vector) []trusttest.Vector {
	t.Helper()
	n := trust.Nonce(before.Nonce)
	half := len("bonafide/attestation/v1\n") + 4
	half += 2 + int(before.Attestation[half])<<8 + int(before.Attestation[half+1]) + 64
	mixed := append(append(trust.Attestation(nil), before.Attestation[:half]...), after.Attestation[half:]...)
	vs := []trusttest.Vector{
		trusttest.NewVector(t, "refused: slots of one boot, counter of another", d.Identity, n, mixed),
		trusttest.NewVector(t, "refused: another nonce", d.Identity, trust.Nonce{1}, trust.Attestation(before.Attestation)),
	}
	id := d.Identity
	id.CounterBase += 100
	vs = append(vs, trusttest.NewVector(t, "refused: counter below its base", id, n, trust.Attestation(before.Attestation)))
	for _, v := range vs {
		if v.Statement != nil {
			t.Fatalf("%s: not refused", v.Name)
		}
	}
	return vs
}
