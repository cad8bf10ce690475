package tpm_test

import (
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

// An attack is one row of the table: what root of a machine in its service
// phase tries, and what comes of it.
type attack struct {
	name string
	on   func(t *testing.T) *machine
	try  func(t *testing.T, m *machine) error // nil if root got his way
	// refused is the TPM's word, and whom it blames. 0: the attack goes through.
	refused tpm2.TPMRC
	// shows is all that verifiers see of it, in the words of machine.changes. A
	// row whose word is "slots" alone is a forgery that nothing shows.
	shows string
}

// What a TPM blames in a response code, Part 2, 6.6.2.
const (
	onParameter1 tpm2.TPMRC = 0x140
	onParameter3 tpm2.TPMRC = 0x340
	onSession    tpm2.TPMRC = 0x900 // the first

	badAuth   = tpm2.TPMRCBadAuth + onSession
	badTicket = tpm2.TPMRCTicket + onParameter3
)

var attacks = []attack{
	// The slots are what their lock says, whoever asks.
	{"write by owner", shut, send(writeBy(tpm2.TPMRHOwner)), badAuth, ""},
	{"write by platform", shut, send(writeBy(tpm2.TPMRHPlatform)), badAuth, ""},
	{"write by password", shut, send(writeByPassword), tpm2.TPMRCAuthUnavailable, ""},
	{"write by policy", shut, send(writeByPolicy), tpm2.TPMRCNVLocked, ""},
	{"increment by policy", shut, send(incrementByPolicy), tpm2.TPMRCNVLocked, ""},
	{"give the slots a password", shut, send(changeIndexAuth), tpm2.TPMRCAuthType, ""},
	{"start up again", shut, send(startup), tpm2.TPMRCInitialize, ""},

	// Owner and lockout authorisation are thrown away.
	{"undefine slots by owner", shut, send(undefine(tpm2.TPMRHOwner, tpm.SlotsIndex)), badAuth, ""},
	{"undefine counter by owner", shut, send(undefine(tpm2.TPMRHOwner, tpm.CounterIndex)), badAuth, ""},
	{"undefine agreement key by owner", shut, send(undefine(tpm2.TPMRHOwner, tpm.AgreementIndex)), badAuth, ""},
	{"define by owner", shut, send(defineByOwner), badAuth, ""},
	{"evict the key by owner", shut, send(evict(tpm2.TPMRHOwner)), badAuth, ""},
	{"set the clock by owner", shut, send(setClock(tpm2.TPMRHOwner)), badAuth, ""},
	{"shut off the owner hierarchy", shut, send(disable(tpm2.TPMRHOwner)), badAuth, ""},
	{"take the owner hierarchy", shut, send(takeover(tpm2.TPMRHOwner)), badAuth, ""},
	{"make the key again", shut, send(makeKey(tpm2.TPMRHOwner)), badAuth, ""},
	{"clear by lockout", shut, send(clearBy(tpm2.TPMRHLockout)), tpm2.TPMRCAuthFail + onSession, ""},
	{"make lockout easier", shut, send(easeLockout), tpm2.TPMRCAuthFail + onSession, ""},
	{"undefine, define anew, owner open", ownerOpen, send(remakeSlots), 0, "slots"},
	{"undefine, define anew the counter, owner open", ownerOpen, send(remakeCounter), 0, "counter +1"},
	{"clear, make all anew, owner open", ownerOpen, clearAndRemake, 0, "refused: slots: wrong signature"},

	// The key lives in the owner hierarchy, which TPM2_Clear destroys.
	{"clear, make all anew, key of the endorsement hierarchy", endorsementKey, clearAndRemake, 0, "refused: slots: key is not in the owner hierarchy"},

	// The firmware has closed the platform hierarchy.
	{"undefine slots by platform", shut, send(undefine(tpm2.TPMRHPlatform, tpm.SlotsIndex)), badAuth, ""},
	{"undefine counter by platform", shut, send(undefine(tpm2.TPMRHPlatform, tpm.CounterIndex)), badAuth, ""},
	{"evict the key by platform", shut, send(evict(tpm2.TPMRHPlatform)), badAuth, ""},
	{"set the clock by platform", shut, send(setClock(tpm2.TPMRHPlatform)), badAuth, ""},
	{"clear by platform", shut, send(clearBy(tpm2.TPMRHPlatform)), badAuth, ""},
	{"take the platform hierarchy", shut, send(takeover(tpm2.TPMRHPlatform)), badAuth, ""},
	{"change the owner seed", shut, send(changeSeed), badAuth, ""},
	{"undefine slots, platform open", platformOpen, send(undefine(tpm2.TPMRHPlatform, tpm.SlotsIndex)), 0, "no answer"},
	{"undefine, define anew, platform open", platformOpen, send(remakeSlotsByPlatform), 0, "refused: slots: index is not the pinned one, or not as pinned"},
	{"evict the key, platform open", platformOpen, send(evict(tpm2.TPMRHPlatform)), 0, "no answer"},
	{"set the clock, platform open", platformOpen, send(setClock(tpm2.TPMRHPlatform)), 0, "clock"},

	// The agreement key is out of reach.
	{"read the agreement key by password", shut, send(readByPassword), tpm2.TPMRCNVLocked, ""},
	{"read the agreement key by owner", shut, send(readBy(tpm2.TPMRHOwner)), badAuth, ""},

	// Wrong guesses shut out nobody but who guesses.
	{"lockout by wrong guesses", shut, send(lockOut), tpm2.TPMRCLockout, ""},

	// A restricted key signs nothing but the TPM's own words.
	{"sign a made-up statement", shut, send(signFake(nil)), badTicket, ""},
	{"sign a made-up statement, a ticket besides", shut, send(signFake(fake)), badTicket, ""},
	{"sign a made-up statement, the ticket of another", shut, send(signFake([]byte("harmless"))), badTicket, ""},

	// One more reboot, into a program of root's own.
	{"reboot, write and lock", shut, rebootAndForge, 0, "slots, resets +1"},
	{"reboot, write and lock, measured, by the policy of lock", measuredBoot, rebootAndForge, tpm2.TPMRCPolicyFail + onSession, "resets +1"},
	{"the same, by the approval of another image", measuredBoot, rebootWith("first", theOperator), tpm2.TPMRCValue + onParameter1, "resets +1"},
	{"the same, by an approval of root's own", measuredBoot, rebootWith("evil", aStranger), tpm2.TPMRCValue + onParameter1, "resets +1"},

	// A software TPM is software.
	{"bring back the state file of a phase before", aPhaseLater, rollBack, 0, "slots, counter -1"},
	{"bring back the state file and write and lock", aPhaseLater, rollBackAndForge, 0, "slots"},
}

// TestAttacks plays the table, each row on a machine of its own.
func TestAttacks(t *testing.T) {
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			m := a.on(t)
			before := m.look(t)
			var rc tpm2.TPMRC
			err := a.try(t, m)
			if err != nil && !errors.As(err, &rc) {
				t.Fatalf("got %v, want the TPM's word", err)
			}
			if rc != a.refused {
				t.Errorf("got %#x (%v), want %#x (%v)", uint32(rc), err, uint32(a.refused), a.refused)
			}
			if got := m.changes(t, before); got != a.shows {
				t.Errorf("shows %q, want %q", got, a.shows)
			}
		})
	}
}

// In update mode the writes by policy, and no others, are let through: what
// refuses them above is the lock.
func TestWriters(t *testing.T) {
	m := shut(t)
	m.Reset(t)
	for _, a := range attacks {
		if !strings.HasPrefix(a.name, "write") && !strings.HasPrefix(a.name, "increment") {
			continue
		}
		err := a.try(t, m)
		if want := strings.HasSuffix(a.name, "by policy"); (err == nil) != want {
			t.Errorf("%s: got %v, want success %v", a.name, err, want)
		}
	}
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

// A TPM in lockout for wrong guesses serves, locks, and after a reset writes, as
// any other: nothing of the device is protected from guesses.
func TestDictionaryAttack(t *testing.T) {
	m := shut(t)
	if err := m.raw(t, lockOut); !errors.Is(err, tpm2.TPMRCLockout) {
		t.Fatalf("got %v, want lockout", err)
	}
	before := m.look(t)
	must(t, m.raw(t, func(c transport.TPM) error {
		for range 40 {
			if err := read(c, byIndex(c, tpm.AgreementIndex, tpm2.PasswordAuth([]byte("guess")))); err == nil {
				return errors.New("a guess was right")
			}
		}
		return nil
	}))
	must(t, m.mas.Lock(t.Context()))
	if got := m.changes(t, before); got != "" {
		t.Errorf("the guesses show: %s", got)
	}
	m.Reset(t)
	if err := m.raw(t, lockOut); !errors.Is(err, tpm2.TPMRCLockout) {
		t.Fatalf("after a reset: got %v, want lockout", err)
	}
	must(t, m.mas.Store(t.Context(), trusttest.Slots(2)))
	must(t, m.mas.Advance(t.Context()))
	_, err := m.mas.AgreementKey(t.Context())
	must(t, err)
	must(t, m.mas.Lock(t.Context()))
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
