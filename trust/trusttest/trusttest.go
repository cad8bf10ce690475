// Package trusttest is the conformance suite of trust.MAS: what every backend
// must do, and must refuse.
package trusttest

import (
	"context"
	"crypto/ed25519"
	"errors"
	"sync"
	"testing"

	"github.com/bonafide-archive/bonafide/trust"
)

// A Device is a newly provisioned device under test.
type Device struct {
	Identity  trust.Identity
	Agreement ed25519.PublicKey
	// Open is one more process's hold on the device.
	Open func(t *testing.T) trust.MAS
	// Reset is a device reset.
	Reset func(t *testing.T)
}

// A part is one promise. Each of its steps but the first begins after a device
// reset.
type part struct {
	name  string
	steps []func(t *testing.T, d Device, k *Kept)
}

// Kept is what a part knows of the time before a reset.
type Kept struct{ Counts trust.Counts }

func parts(provision func(t *testing.T) Device) []part {
	once := func(name string, test func(t *testing.T, d Device)) part {
		return part{name, []func(*testing.T, Device, *Kept){func(t *testing.T, d Device, _ *Kept) { test(t, d) }}}
	}
	return []part{
		once("a new device is in update mode and empty", testNew),
		once("slots and counter are as stored", testStore),
		once("service mode refuses changes", testLocked),
		once("a stale process is refused too", testStale),
		{"the agreement key goes with Lock and comes back with a reset", []func(*testing.T, Device, *Kept){testAgreement, testAgreementBack}},
		{"a reset opens, keeps all and is counted", []func(*testing.T, Device, *Kept){testBeforeReset, testReset}},
		{"the counter never goes back", []func(*testing.T, Device, *Kept){testCounter(0), testCounter(1), testCounter(2), testCounter(3)}},
		once("another nonce is refused", testNonce),
		// The newer device answers: where there is one TPM, it is the older's grave.
		once("another device is refused", func(t *testing.T, d Device) { testForeign(t, provision(t), d) }),
		once("every changed byte is refused", testFlips),
		once("many callers at once", testConcurrent),
		once("the context ends the waiting", testContext),
	}
}

// Run runs the suite, each part of it on a device of its own.
func Run(t *testing.T, provision func(t *testing.T) Device) {
	for _, p := range parts(provision) {
		t.Run(p.name, func(t *testing.T) {
			d, k := provision(t), new(Kept)
			for i, step := range p.steps {
				if i > 0 {
					d.Reset(t)
				}
				step(t, d, k)
			}
		})
	}
}

// Progress is how far RunBoot has come. It outlives the process, as JSON.
type Progress struct {
	Part, Step int // the next to run
	Boots      int // that have run
	Kept       Kept
	Identity   trust.Identity
	Agreement  ed25519.PublicKey
}

// RunBoot runs the suite on a device whose reset is the reboot of this machine:
// as much of it as one boot can, and returns whether another is needed. A device
// that provision makes takes the place of the one before, and open opens it.
func RunBoot(t *testing.T, provision func(t *testing.T) Device, open func(t *testing.T) trust.MAS, p *Progress) (more bool) {
	p.Boots++
	all := parts(provision)
	for ; p.Part < len(all); p.Part, p.Step = p.Part+1, 0 {
		steps := all[p.Part].steps
		ok := t.Run(all[p.Part].name, func(t *testing.T) {
			if p.Step == 0 {
				d := provision(t)
				p.Identity, p.Agreement, p.Kept = d.Identity, d.Agreement, Kept{}
			}
			steps[p.Step](t, Device{Identity: p.Identity, Agreement: p.Agreement, Open: open}, &p.Kept)
		})
		if p.Step++; ok && p.Step < len(steps) {
			return true
		}
	}
	return false
}

// Slots are slots with every field set, different for each i.
func Slots(i byte) trust.Slots {
	return trust.Slots{
		Head: fill(i), Epoch: 1000 + uint64(i), Tick: 2000 + uint64(i),
		Boot:      trust.Counts{Reset: 3000 + uint32(i), Restart: 4000 + uint32(i)},
		Committed: trust.Vote{Epoch: 5000 + uint64(i), Tick: 6000 + uint64(i), Record: fill(i + 1)},
		Archive:   fill(i + 2),
	}
}

func fill(c byte) (h [32]byte) {
	for i := range h {
		h[i] = c
	}
	return h
}

// look returns the device's statement, verified.
func look(t *testing.T, d Device, m trust.MAS) trust.Statement {
	t.Helper()
	n := trust.Nonce(fill(0xA5))
	a, err := m.Lookup(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Identity.Verify(a, n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantMode(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, trust.ErrMode) {
		t.Errorf("%s: got %v, want ErrMode", what, err)
	}
}

func testNew(t *testing.T, d Device) {
	m := d.Open(t)
	if m.Profile() != d.Identity.Profile {
		t.Errorf("profile: got %v, want %v", m.Profile(), d.Identity.Profile)
	}
	s := look(t, d, m)
	if s.Mode != trust.ModeUpdate || s.Slots != (trust.Slots{}) || s.Counter != 0 {
		t.Errorf("got %+v, want update mode, zero slots, counter 0", s)
	}
}

func testStore(t *testing.T, d Device) {
	m := d.Open(t)
	must(t, m.Store(t.Context(), Slots(1)))
	must(t, m.Store(t.Context(), Slots(2)))
	must(t, m.Advance(t.Context()))
	must(t, m.Advance(t.Context()))
	if s := look(t, d, d.Open(t)); s.Slots != Slots(2) || s.Counter != 2 {
		t.Errorf("got %+v, want the last stored slots and counter 2", s)
	}
}

func testLocked(t *testing.T, d Device) {
	m := d.Open(t)
	must(t, m.Store(t.Context(), Slots(1)))
	must(t, m.Advance(t.Context()))
	must(t, m.Lock(t.Context()))
	must(t, m.Lock(t.Context())) // idempotent
	wantMode(t, "store", m.Store(t.Context(), Slots(2)))
	wantMode(t, "advance", m.Advance(t.Context()))
	_, err := m.AgreementKey(t.Context())
	wantMode(t, "agreement key", err)
	s := look(t, d, m)
	if s.Mode != trust.ModeService || s.Slots != Slots(1) || s.Counter != 1 {
		t.Errorf("got %+v, want service mode and nothing changed", s)
	}
}

func testStale(t *testing.T, d Device) {
	child := d.Open(t)
	must(t, child.Store(t.Context(), Slots(1)))
	must(t, d.Open(t).Lock(t.Context())) // the watchdog
	wantMode(t, "store", child.Store(t.Context(), Slots(2)))
	wantMode(t, "advance", child.Advance(t.Context()))
	if s := look(t, d, child); s.Mode != trust.ModeService || s.Slots != Slots(1) {
		t.Errorf("got %+v, want service mode and nothing changed", s)
	}
}

func testAgreement(t *testing.T, d Device, _ *Kept) {
	m := d.Open(t)
	testAgreementBack(t, d, nil)
	must(t, m.Lock(t.Context()))
	_, err := d.Open(t).AgreementKey(t.Context())
	wantMode(t, "agreement key", err)
}

// testAgreementBack wants the key that was provisioned.
func testAgreementBack(t *testing.T, d Device, _ *Kept) {
	key, err := d.Open(t).AgreementKey(t.Context())
	must(t, err)
	if !d.Agreement.Equal(key.Public()) {
		t.Error("agreement key is not the one provisioned")
	}
}

func testBeforeReset(t *testing.T, d Device, k *Kept) {
	m := d.Open(t)
	must(t, m.Store(t.Context(), Slots(1)))
	must(t, m.Advance(t.Context()))
	must(t, m.Lock(t.Context()))
	k.Counts = look(t, d, m).Counts
	if again := look(t, d, m); again.Counts != k.Counts {
		t.Errorf("counts moved without a reset: %v, %v", k.Counts, again.Counts)
	}
}

func testReset(t *testing.T, d Device, k *Kept) {
	m := d.Open(t)
	after := look(t, d, m)
	if after.Mode != trust.ModeUpdate || after.Slots != Slots(1) || after.Counter != 1 {
		t.Errorf("got %+v, want update mode and all kept", after)
	}
	if after.Counts == k.Counts {
		t.Errorf("reset does not show in the counts: %v", after.Counts)
	}
	must(t, m.Store(t.Context(), Slots(2)))
	must(t, m.Advance(t.Context()))
}

// testCounter is one boot of several, in which the counter begins at want.
func testCounter(want uint64) func(*testing.T, Device, *Kept) {
	return func(t *testing.T, d Device, _ *Kept) {
		m := d.Open(t)
		if s := look(t, d, m); s.Counter != want {
			t.Fatalf("counter: got %d, want %d", s.Counter, want)
		}
		must(t, m.Store(t.Context(), Slots(0))) // the same slots again wind nothing back
		must(t, m.Advance(t.Context()))
		must(t, m.Lock(t.Context()))
	}
}

func testNonce(t *testing.T, d Device) {
	n := trust.Nonce(fill(1))
	a, err := d.Open(t).Lookup(t.Context(), n)
	must(t, err)
	for i := range n {
		other := n
		other[i] ^= 0x80
		wantRefused(t, d.Identity, a, other)
	}
}

func testForeign(t *testing.T, d, other Device) {
	n := trust.Nonce(fill(1))
	a, err := d.Open(t).Lookup(t.Context(), n)
	must(t, err)
	wantRefused(t, other.Identity, a, n)
	id := d.Identity
	id.Key = other.Identity.Key
	wantRefused(t, id, a, n)
}

func wantRefused(t *testing.T, id trust.Identity, a trust.Attestation, n trust.Nonce) {
	t.Helper()
	if s, err := id.Verify(a, n); !errors.Is(err, trust.ErrAttestation) {
		t.Errorf("got %+v, %v, want ErrAttestation", s, err)
	}
}

func testFlips(t *testing.T, d Device) {
	n := trust.Nonce(fill(1))
	m := d.Open(t)
	must(t, m.Store(t.Context(), Slots(7)))
	a, err := m.Lookup(t.Context(), n)
	must(t, err)
	Flips(t, d.Identity, a, n)
}

// Flips checks that id refuses a with any one byte changed, cut short, or longer.
func Flips(t *testing.T, id trust.Identity, a trust.Attestation, n trust.Nonce) {
	t.Helper()
	if _, err := id.Verify(a, n); err != nil {
		t.Fatal(err)
	}
	for i := range a {
		b := append(trust.Attestation(nil), a...)
		b[i] ^= 1 << (i % 8)
		wantRefused(t, id, b, n)
	}
	for i := range a {
		wantRefused(t, id, a[:i], n)
	}
	wantRefused(t, id, append(append(trust.Attestation(nil), a...), 0), n)
}

func testConcurrent(t *testing.T, d Device) {
	m := d.Open(t)
	var wg sync.WaitGroup
	for i := range byte(16) {
		wg.Go(func() {
			n := trust.Nonce(fill(i))
			a, err := m.Lookup(t.Context(), n)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := d.Identity.Verify(a, n); err != nil {
				t.Error(err)
			}
			if i%4 == 0 {
				if err := m.Advance(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if s := look(t, d, m); s.Counter != 4 {
		t.Errorf("counter: got %d, want 4", s.Counter)
	}
}

func testContext(t *testing.T, d Device) {
	m := d.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Store(ctx, Slots(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("store: got %v, want context.Canceled", err)
	}
	if _, err := m.Lookup(ctx, trust.Nonce{}); !errors.Is(err, context.Canceled) {
		t.Errorf("look up: got %v, want context.Canceled", err)
	}
	if s := look(t, d, m); s.Slots != (trust.Slots{}) {
		t.Errorf("got %+v, want nothing stored", s)
	}
}
