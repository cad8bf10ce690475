package tpm_test

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

// An attack is what root can send to the TPM in the service phase. It returns
// nil if it got its way.
type attack struct {
	name string
	try  func(c transport.TPM) error
}

var attacks = []attack{
	{"write by owner", func(c transport.TPM) error { return write(c, auth(tpm2.TPMRHOwner)) }},
	{"write by platform", func(c transport.TPM) error { return write(c, auth(tpm2.TPMRHPlatform)) }},
	{"write by password", func(c transport.TPM) error { return write(c, byIndex(c, tpm.SlotsIndex, tpm2.PasswordAuth(nil))) }},
	{"write by policy", func(c transport.TPM) error {
		return write(c, byIndex(c, tpm.SlotsIndex, tpm.PolicyFor(tpm.SlotsIndex)))
	}},
	{"increment by policy", func(c transport.TPM) error {
		_, err := tpm2.NVIncrement{
			AuthHandle: byIndex(c, tpm.CounterIndex, tpm.PolicyFor(tpm.CounterIndex)),
			NVIndex:    named(c, tpm.CounterIndex),
		}.Execute(c)
		return err
	}},
	{"undefine slots by owner", undefine(tpm2.TPMRHOwner, tpm.SlotsIndex)},
	{"undefine slots by platform", undefine(tpm2.TPMRHPlatform, tpm.SlotsIndex)},
	{"undefine counter by owner", undefine(tpm2.TPMRHOwner, tpm.CounterIndex)},
	{"undefine counter by platform", undefine(tpm2.TPMRHPlatform, tpm.CounterIndex)},
	{"undefine agreement key by owner", undefine(tpm2.TPMRHOwner, tpm.AgreementIndex)},
	{"define anew", func(c transport.TPM) error {
		_, err := tpm2.NVDefineSpace{AuthHandle: auth(tpm2.TPMRHOwner), PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: tpm.SlotsIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: trust.SlotsSize,
			Attributes: tpm2.TPMANV{OwnerWrite: true, AuthRead: true},
		})}.Execute(c)
		return err
	}},
	{"clear by lockout", func(c transport.TPM) error {
		_, err := tpm2.Clear{AuthHandle: auth(tpm2.TPMRHLockout)}.Execute(c)
		return err
	}},
	{"clear by platform", func(c transport.TPM) error {
		_, err := tpm2.Clear{AuthHandle: auth(tpm2.TPMRHPlatform)}.Execute(c)
		return err
	}},
	{"take the owner hierarchy", takeover(tpm2.TPMRHOwner)},
	{"take the platform hierarchy", takeover(tpm2.TPMRHPlatform)},
	{"evict the key", func(c transport.TPM) error {
		_, err := tpm2.EvictControl{
			Auth: auth(tpm2.TPMRHOwner), ObjectHandle: key(c), PersistentHandle: tpm.KeyHandle,
		}.Execute(c)
		return err
	}},
	{"make the key again", func(c transport.TPM) error {
		_, err := tpm2.CreatePrimary{PrimaryHandle: auth(tpm2.TPMRHOwner), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(c)
		return err
	}},
	{"sign a made-up statement", signFake},
	{"read the agreement key by password", func(c transport.TPM) error {
		return read(c, byIndex(c, tpm.AgreementIndex, tpm2.PasswordAuth(nil)))
	}},
	{"read the agreement key by owner", func(c transport.TPM) error { return read(c, auth(tpm2.TPMRHOwner)) }},
	{"start up again", func(c transport.TPM) error {
		_, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(c)
		return err
	}},
}

func auth(h tpm2.TPMHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Auth: tpm2.PasswordAuth(nil)}
}

func byIndex(c transport.TPM, h tpm2.TPMHandle, s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Name: named(c, h).Name, Auth: s}
}

func named(c transport.TPM, h tpm2.TPMHandle) tpm2.NamedHandle {
	name, err := tpm.Name(c, h)
	if err != nil {
		panic(err)
	}
	return tpm2.NamedHandle{Handle: h, Name: name}
}

func key(c transport.TPM) tpm2.NamedHandle {
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(tpm.KeyHandle)}.Execute(c)
	if err != nil {
		panic(err)
	}
	return tpm2.NamedHandle{Handle: tpm.KeyHandle, Name: rsp.Name}
}

func write(c transport.TPM, by tpm2.AuthHandle) error {
	_, err := tpm2.NVWrite{
		AuthHandle: by, NVIndex: named(c, tpm.SlotsIndex),
		Data: tpm2.TPM2BMaxNVBuffer{Buffer: trusttest.Slots(66).Bytes()},
	}.Execute(c)
	return err
}

func read(c transport.TPM, by tpm2.AuthHandle) error {
	_, err := tpm2.NVRead{AuthHandle: by, NVIndex: named(c, tpm.AgreementIndex), Size: 32}.Execute(c)
	return err
}

func undefine(by, h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error {
		_, err := tpm2.NVUndefineSpace{AuthHandle: auth(by), NVIndex: named(c, h)}.Execute(c)
		return err
	}
}

func takeover(h tpm2.TPMHandle) func(transport.TPM) error {
	return func(c transport.TPM) error {
		_, err := tpm2.HierarchyChangeAuth{AuthHandle: auth(h), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("mine")}}.Execute(c)
		return err
	}
}

// signFake asks the restricted key to sign what looks like the TPM's own words.
func signFake(c transport.TPM) error {
	fake := append([]byte{0xFF, 'T', 'C', 'G', 0x80, 0x14}, make([]byte, 100)...)
	h, err := tpm2.Hash{
		Data: tpm2.TPM2BMaxBuffer{Buffer: fake}, HashAlg: tpm2.TPMAlgSHA256, Hierarchy: tpm2.TPMRHOwner,
	}.Execute(c)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(fake)
	k := key(c)
	_, err = tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: k.Handle, Name: k.Name, Auth: tpm2.PasswordAuth(nil)},
		Digest:     tpm2.TPM2BDigest{Buffer: sum[:]},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: h.Validation,
	}.Execute(c)
	return err
}

func state(t *testing.T, d trusttest.Device, m trust.MAS) trust.Statement {
	t.Helper()
	var n trust.Nonce
	if _, err := rand.Read(n[:]); err != nil {
		t.Fatal(err)
	}
	a, err := m.Lookup(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Identity.Verify(a, n)
	if err != nil {
		t.Fatal(err)
	}
	s.Clock = 0
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Everything is refused in the service phase, and leaves the device as it was.
func TestAttacks(t *testing.T) {
	s, d := provision(t)
	m := d.Open(t)
	must(t, m.Store(t.Context(), trusttest.Slots(1)))
	cycle(t, s) // a boot later, as in life
	must(t, m.Lock(t.Context()))
	before := state(t, d, m)
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			var rc tpm2.TPMRC
			err := tpm.Raw(t.Context(), s.Target(), a.try)
			if !errors.As(err, &rc) {
				t.Errorf("got %v, want the TPM's refusal", err)
			}
			if after := state(t, d, m); after != before {
				t.Errorf("got %+v, want %+v", after, before)
			}
		})
	}
}

// In update mode the writes by policy, and no others, are let through: what
// refuses them above is the lock.
func TestWriters(t *testing.T) {
	s, _ := provision(t)
	for _, a := range attacks {
		if !strings.HasPrefix(a.name, "write") && !strings.HasPrefix(a.name, "increment") {
			continue
		}
		err := tpm.Raw(t.Context(), s.Target(), a.try)
		if want := strings.HasSuffix(a.name, "by policy"); (err == nil) != want {
			t.Errorf("%s: got %v, want success %v", a.name, err, want)
		}
	}
}

// The agreement key cannot be replaced even in update mode.
func TestAgreementKeyIsFixed(t *testing.T) {
	s, d := provision(t)
	err := tpm.Raw(t.Context(), s.Target(), func(c transport.TPM) error {
		_, err := tpm2.NVWrite{
			AuthHandle: byIndex(c, tpm.AgreementIndex, tpm.PolicyFor(tpm.AgreementIndex)),
			NVIndex:    named(c, tpm.AgreementIndex),
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 32)},
		}.Execute(c)
		return err
	})
	if !errors.Is(err, tpm2.TPMRCNVLocked) {
		t.Errorf("got %v, want locked", err)
	}
	got, err := d.Open(t).AgreementKey(t.Context())
	must(t, err)
	if !d.Agreement.Equal(got.Public()) {
		t.Error("agreement key was replaced")
	}
}

// Suspend to memory keeps the lock; a restart ends it, and shows.
func TestSuspend(t *testing.T) {
	s, d := provision(t)
	m := d.Open(t)
	must(t, m.Lock(t.Context()))
	before := state(t, d, m)
	must(t, s.Suspend(t.Context(), tpm2.TPMSUState))
	if after := state(t, d, m); after.Mode != trust.ModeService {
		t.Errorf("resumed in %v mode", after.Mode)
	}
	if _, err := m.AgreementKey(t.Context()); !errors.Is(err, trust.ErrMode) {
		t.Errorf("agreement key: got %v, want ErrMode", err)
	}
	must(t, s.Suspend(t.Context(), tpm2.TPMSUClear))
	if after := state(t, d, m); after.Mode != trust.ModeUpdate || after.Counts == before.Counts {
		t.Errorf("restarted: got %+v, want update mode and other counts than %v", after, before.Counts)
	}
}

// Wrong passwords cannot lock the service out of its device.
func TestDictionaryAttack(t *testing.T) {
	s, d := provision(t)
	m := d.Open(t)
	must(t, m.Lock(t.Context()))
	before := state(t, d, m)
	must(t, tpm.Raw(t.Context(), s.Target(), func(c transport.TPM) error {
		for range 40 {
			if err := read(c, byIndex(c, tpm.AgreementIndex, tpm2.PasswordAuth([]byte("guess")))); err == nil {
				return errors.New("a guess was right")
			}
		}
		return nil
	}))
	if after := state(t, d, m); after != before {
		t.Errorf("got %+v, want %+v", after, before)
	}
}

// A client killed with sessions open cannot keep the watchdog from locking.
func TestLeakedSessions(t *testing.T) {
	s, d := provision(t)
	must(t, tpm.Raw(t.Context(), s.Target(), func(c transport.TPM) error {
		for {
			_, _, err := tpm2.PolicySession(c, tpm2.TPMAlgSHA256, 16)
			if errors.Is(err, tpm2.TPMRCSessionMemory) || errors.Is(err, tpm2.TPMRCSessionHandles) {
				return nil // the TPM is full
			}
			if err != nil {
				return err
			}
		}
	}))
	m := d.Open(t)
	must(t, m.Lock(t.Context()))
	if got := state(t, d, m).Mode; got != trust.ModeService {
		t.Errorf("got %v mode, want service", got)
	}
}

// A TPM whose platform hierarchy is open is no device, unless its owner says so.
func TestPlatformOpen(t *testing.T) {
	s, _ := startSwtpm(t)
	must(t, s.Suspend(t.Context(), tpm2.TPMSUClear)) // a restart empties the authorisation
	if _, _, err := tpm.Provision(t.Context(), s.Target(), tpm.Setup{}, rand.Reader); !errors.Is(err, tpm.ErrPlatform) {
		t.Errorf("got %v, want ErrPlatform", err)
	}
	untouched(t, s.Target())
	setup := newSetup(t)
	setup.OpenPlatform = true
	finished(t, s, s.Target(), setup)
}
