package tpm_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

var errCut = errors.New("cut off")

// A cut is a transport that ends at a command: before it, or with its answer lost.
type cut struct {
	transport.TPM
	at   func(command []byte) bool
	lost bool // the answer
	see  func(command []byte)
	over bool
}

func (c *cut) Send(command []byte) ([]byte, error) {
	c.over = c.over || c.at(command)
	if c.over && !c.lost {
		return nil, errCut
	}
	if c.over {
		c.lost = false
		c.see(command)
		_, err := c.TPM.Send(command)
		return nil, errors.Join(errCut, err)
	}
	c.see(command)
	return c.TPM.Send(command)
}

// after matches all commands but the first k.
func after(k int) func([]byte) bool {
	return func([]byte) bool { k--; return k < 0 }
}

// shutting matches the command that sets the authorisation of h.
func shutting(h tpm2.TPMHandle) func([]byte) bool {
	return func(command []byte) bool {
		return code(command) == tpm2.TPMCCHierarchyChanegAuth && handle(command) == h
	}
}

func never([]byte) bool { return false }

func code(command []byte) tpm2.TPMCC { return tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) }

func handle(command []byte) tpm2.TPMHandle {
	return tpm2.TPMHandle(binary.BigEndian.Uint32(command[10:]))
}

// commands that change nothing that lasts.
var harmless = []tpm2.TPMCC{
	tpm2.TPMCCGetCapability, tpm2.TPMCCReadPublic, tpm2.TPMCCNVReadPublic, tpm2.TPMCCNVRead, tpm2.TPMCCPCRRead,
}

// changes says whether a command can change anything in a TPM whose platform
// authorisation is set.
func changes(command []byte) bool {
	return !slices.Contains(harmless, code(command)) && handle(command) != tpm2.TPMRHPlatform
}

func newSetup(t *testing.T) tpm.Setup {
	t.Helper()
	dir := t.TempDir()
	return tpm.Setup{Journal: filepath.Join(dir, "provision.json"), Recovery: filepath.Join(dir, "recovery")}
}

// cutOff provisions up to a command. Journal and recovery file have to be there
// before the TPM is changed.
func cutOff(t *testing.T, target tpm.Target, s tpm.Setup, at func([]byte) bool, lost bool) error {
	t.Helper()
	see := func(command []byte) {
		for _, name := range []string{s.Journal, s.Recovery} {
			info, err := os.Stat(name)
			if changes(command) && name != "" && (err != nil || info.Size() == 0 || info.Mode() != 0o600) {
				t.Errorf("%v when the TPM is changed: %v, %v", filepath.Base(name), info, err)
			}
		}
	}
	return tpm.ProvisionThrough(t.Context(), target, s, rand.Reader, func(c transport.TPM) transport.TPM {
		return &cut{TPM: c, at: at, lost: lost, see: see}
	})
}

// begun provisions up to a command.
func begun(t *testing.T, at func([]byte) bool) (*tpm.Swtpm, tpm.Setup) {
	t.Helper()
	s, _ := startSwtpm(t)
	setup := newSetup(t)
	if err := cutOff(t, s.Target(), setup, at, false); !errors.Is(err, errCut) {
		t.Fatalf("got %v, want to be cut off", err)
	}
	return s, setup
}

// finished provisions and puts the device through a short life.
func finished(t *testing.T, s *tpm.Swtpm, target tpm.Target, setup tpm.Setup) trusttest.Device {
	t.Helper()
	id, key, err := tpm.Provision(t.Context(), target, setup, rand.Reader)
	must(t, err)
	d := trusttest.Device{Identity: id, Agreement: key}
	again, same, err := tpm.Provision(t.Context(), target, setup, rand.Reader)
	if err != nil || !bytes.Equal(again.SlotsPublic, id.SlotsPublic) || again.CounterBase != id.CounterBase || !key.Equal(same) {
		t.Errorf("called again: got another device, %v", err)
	}
	must(t, tpm.Raw(t.Context(), target, func(c transport.TPM) error {
		if set, err := tpm.Permanent(c); err != nil || set&5 != 5 {
			t.Errorf("authorisations set: %b, %v, want owner's and lockout's", set, err)
		}
		return nil
	}))
	m := open(t, target)
	got, err := m.AgreementKey(t.Context())
	if err != nil || !key.Equal(got.Public()) {
		t.Errorf("agreement key: got another, %v", err)
	}
	if got := state(t, d, m); got.Slots != (trust.Slots{}) || got.Counter != 0 || got.Mode != trust.ModeUpdate {
		t.Errorf("got %+v, want an empty device", got)
	}
	must(t, m.Store(t.Context(), trusttest.Slots(1)))
	must(t, m.Advance(t.Context()))
	must(t, m.Lock(t.Context()))
	if err := m.Store(t.Context(), trusttest.Slots(2)); !errors.Is(err, trust.ErrMode) {
		t.Errorf("store when locked: got %v, want ErrMode", err)
	}
	if got := state(t, d, m); got.Slots != trusttest.Slots(1) || got.Counter != 1 || got.Mode != trust.ModeService {
		t.Errorf("got %+v, want what was stored", got)
	}
	for _, other := range []tpm.Setup{setup, {OpenPlatform: setup.OpenPlatform}} {
		if _, _, err := tpm.Provision(t.Context(), target, other, rand.Reader); !errors.Is(err, fs.ErrExist) {
			t.Errorf("device in use: got %v, want ErrExist", err)
		}
	}
	return d
}

var every = flag.Bool("every", false, "cut provisioning off at every command, each on a TPM of its own")

// Cut off after any number of commands, with the answer to the last or without,
// provisioning is finished by another call.
func TestProvisionCutOff(t *testing.T) {
	step := 5
	if *every {
		step = 1
	}
	for k := 0; ; k += step {
		for _, lost := range []bool{false, true} {
			s, _ := startSwtpm(t)
			setup := newSetup(t)
			err := cutOff(t, s.Target(), setup, after(k), lost)
			if err == nil {
				t.Logf("fewer than %d commands", k+1)
				return
			}
			if !errors.Is(err, errCut) {
				t.Fatalf("cut off after %d commands: %v", k, err)
			}
			if k%3 == 0 {
				cycle(t, s)
			}
			finished(t, s, s.Target(), setup)
			must(t, s.Stop())
			if t.Failed() {
				t.Fatalf("cut off after %d commands, last answer lost: %v", k, lost)
			}
		}
	}
}

// Cut off again and again, each time a command later, it comes to an end on one
// TPM too, and makes its recovery file once.
func TestProvisionCutOffAgain(t *testing.T) {
	s, _ := startSwtpm(t)
	setup := newSetup(t)
	var recovery []byte
	err := errCut
	for k := 0; err != nil; k++ {
		if err = cutOff(t, s.Target(), setup, after(k), false); err != nil && !errors.Is(err, errCut) {
			t.Fatalf("cut off after %d commands: %v", k, err)
		}
		b, _ := os.ReadFile(setup.Recovery)
		if recovery != nil && !bytes.Equal(b, recovery) {
			t.Fatalf("after %d commands the recovery file is another", k)
		}
		recovery = b
	}
	finished(t, s, s.Target(), setup)
	owns(t, s, recovery)
}

// owns checks that the authorisations in a recovery file are the TPM's, by
// taking the hierarchies with them.
func owns(t *testing.T, s *tpm.Swtpm, recovery []byte) {
	t.Helper()
	lines := strings.Split(string(recovery), "\n")
	if len(lines) != 4 || lines[0] != "bonafide/recovery/v1" {
		t.Fatalf("recovery file: %q", recovery)
	}
	for i, h := range []tpm2.TPMHandle{tpm2.TPMRHOwner, tpm2.TPMRHLockout} {
		name := []string{"owner hex:", "lockout hex:"}[i]
		digits, found := strings.CutPrefix(lines[i+1], name)
		secret, err := hex.DecodeString(digits)
		if !found || err != nil {
			t.Fatalf("recovery file: %q", lines[i+1])
		}
		must(t, tpm.Raw(t.Context(), s.Target(), func(c transport.TPM) error {
			_, err := tpm2.HierarchyChangeAuth{
				AuthHandle: tpm2.AuthHandle{Handle: h, Auth: tpm2.PasswordAuth(secret)},
				NewAuth:    tpm2.TPM2BAuth{Buffer: secret},
			}.Execute(c)
			return err
		}))
	}
}

// The owner gets the TPM back with the tools and the recovery file, and it takes
// a device again.
func TestRecovery(t *testing.T) {
	needTools(t)
	s, _ := startSwtpm(t)
	setup := newSetup(t)
	finished(t, s, s.Target(), setup)
	cycle(t, s)
	b, err := os.ReadFile(setup.Recovery)
	must(t, err)
	owns(t, s, b)
	words := strings.Fields(string(b))
	tool(t, s, "tpm2_nvundefine", "-C", "o", "-P", words[2], "0x0181B0F3")
	tool(t, s, "tpm2_clear", "-c", "l", words[4])
	if _, err := tpm.Open(t.Context(), s.Target()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the clear: got %v, want ErrNotExist", err)
	}
	finished(t, s, s.Target(), newSetup(t))
}

// untouched checks that the TPM has no device and no authorisation.
func untouched(t *testing.T, target tpm.Target) {
	t.Helper()
	must(t, tpm.Raw(t.Context(), target, func(c transport.TPM) error {
		if set, err := tpm.Permanent(c); err != nil || set&5 != 0 {
			t.Errorf("authorisations set: %b, %v, want none", set, err)
		}
		for _, h := range []tpm2.TPMHandle{tpm.SlotsIndex, tpm.CounterIndex, tpm.AgreementIndex} {
			if _, err := tpm.Name(c, h); !errors.Is(err, tpm2.TPMRCHandle) {
				t.Errorf("index %#x: got %v, want none", uint32(h), err)
			}
		}
		return nil
	}))
}

// A file that is there is not a recovery file, whatever it holds, and is left as
// it is; one that an earlier call could only just make is.
func TestRecoveryFileThere(t *testing.T) {
	s, _ := startSwtpm(t)
	setup := newSetup(t)
	for _, had := range []string{"", "bonafide/recovery/v1\nowner hex:00\nlockout hex:00\n"} {
		must(t, os.WriteFile(setup.Recovery, []byte(had), 0o644))
		if _, _, err := tpm.Provision(t.Context(), s.Target(), setup, rand.Reader); !errors.Is(err, fs.ErrExist) {
			t.Errorf("got %v, want ErrExist", err)
		}
		if b, err := os.ReadFile(setup.Recovery); err != nil || string(b) != had {
			t.Errorf("the file holds %q, %v, want %q", b, err, had)
		}
		if _, err := os.Lstat(setup.Journal); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("journal: got %v, want none", err)
		}
		untouched(t, s.Target())
	}
	must(t, os.Remove(setup.Recovery))
	must(t, os.Symlink(filepath.Join(t.TempDir(), "elsewhere"), setup.Recovery))
	if _, _, err := tpm.Provision(t.Context(), s.Target(), setup, rand.Reader); !errors.Is(err, fs.ErrExist) {
		t.Errorf("through a link: got %v, want ErrExist", err)
	}
	must(t, os.Remove(setup.Recovery))
	if err := cutOff(t, s.Target(), setup, changes, false); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	if _, err := os.Lstat(setup.Journal); err != nil {
		t.Error(err)
	}
	must(t, os.Truncate(setup.Recovery, 0))
	finished(t, s, s.Target(), setup)
}

// Whoever goes on must name the recovery file that was begun with, and not
// another.
func TestRecoveryChanged(t *testing.T) {
	for _, with := range []bool{false, true} {
		s, _ := startSwtpm(t)
		setup, other := newSetup(t), newSetup(t)
		other.Journal = setup.Journal
		if !with {
			setup.Recovery = ""
		}
		if err := cutOff(t, s.Target(), setup, shutting(tpm2.TPMRHLockout), false); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		for _, wrong := range []tpm.Setup{other, {Journal: setup.Journal}} {
			if wrong == setup {
				continue
			}
			if _, _, err := tpm.Provision(t.Context(), s.Target(), wrong, rand.Reader); err == nil || !strings.Contains(err.Error(), "was begun with") {
				t.Errorf("begun with %q, went on with %q: got %v", setup.Recovery, wrong.Recovery, err)
			}
		}
		if with {
			b, err := os.ReadFile(setup.Recovery)
			must(t, err)
			must(t, os.WriteFile(setup.Recovery, append(b, '\n'), 0o600))
			if _, _, err := tpm.Provision(t.Context(), s.Target(), setup, rand.Reader); err == nil {
				t.Error("went on with a changed recovery file")
			}
			must(t, os.WriteFile(setup.Recovery, b, 0o600))
		}
		finished(t, s, s.Target(), setup)
	}
}

// What is not known to be the unfinished device is left alone.
func TestProvisionRefuses(t *testing.T) {
	owner := func(c transport.TPM) error { return takeover(tpm2.TPMRHOwner)(c) }
	for name, tc := range map[string]struct {
		at   func([]byte) bool // an earlier call was cut off
		then func(t *testing.T, c transport.TPM, s *tpm.Setup) error
		want string
	}{
		"owner set by another": {after(0), func(_ *testing.T, c transport.TPM, _ *tpm.Setup) error { return owner(c) },
			"owner authorisation is set"},
		"lockout set by another": {after(0), func(_ *testing.T, c transport.TPM, _ *tpm.Setup) error { return takeover(tpm2.TPMRHLockout)(c) },
			"lockout authorisation is set"},
		"open, but slots in use": {shutting(tpm2.TPMRHOwner), func(_ *testing.T, c transport.TPM, _ *tpm.Setup) error {
			return write(c, byIndex(c, tpm.SlotsIndex, tpm.PolicyFor(tpm.SlotsIndex)))
		}, "there is a device already"},
		"shut, but slots in use": {shutting(tpm2.TPMRHLockout), func(_ *testing.T, c transport.TPM, _ *tpm.Setup) error {
			return write(c, byIndex(c, tpm.SlotsIndex, tpm.PolicyFor(tpm.SlotsIndex)))
		}, "there is a device already"},
		"another directory's": {shutting(tpm2.TPMRHLockout), func(t *testing.T, _ transport.TPM, s *tpm.Setup) error {
			b, err := os.ReadFile(s.Journal)
			at := bytes.Index(b, []byte("agreement_key")) + len(`agreement_key": "`)
			b[at] = map[bool]byte{true: '1', false: '0'}[b[at] == '0']
			return errors.Join(err, os.WriteFile(s.Journal, b, 0o600))
		}, "there is a device already"},
		"no journal": {shutting(tpm2.TPMRHLockout), func(_ *testing.T, _ transport.TPM, s *tpm.Setup) error { return os.Remove(s.Journal) },
			"there is a device already"},
		"a journal that is none": {shutting(tpm2.TPMRHLockout), func(_ *testing.T, _ transport.TPM, s *tpm.Setup) error {
			return os.WriteFile(s.Journal, []byte("{}"), 0o600)
		}, "not a bonafide/provision/v1"},
		"agreement key where it can be changed": {shutting(tpm2.TPMRHOwner), func(_ *testing.T, c transport.TPM, _ *tpm.Setup) error {
			return errors.Join(replaceAgreement(c), owner(c))
		}, "not what was made"},
		"locked": {shutting(tpm2.TPMRHLockout), func(t *testing.T, c transport.TPM, _ *tpm.Setup) error {
			_, err := tpm2.NVReadLock{AuthHandle: byIndex(c, tpm.AgreementIndex, tpm2.PasswordAuth(nil)), NVIndex: named(c, tpm.AgreementIndex)}.Execute(c)
			return err
		}, trust.ErrMode.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			s, setup := begun(t, tc.at)
			must(t, tpm.Raw(t.Context(), s.Target(), func(c transport.TPM) error { return tc.then(t, c, &setup) }))
			err := cutOff(t, s.Target(), setup, never, false)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// replaceAgreement makes the index of the agreement key again, with the same
// seed, so that its owner can write it.
func replaceAgreement(c transport.TPM) error {
	x := named(c, tpm.AgreementIndex)
	rsp, err := tpm2.NVRead{AuthHandle: byIndex(c, tpm.AgreementIndex, tpm2.PasswordAuth(nil)), NVIndex: x, Size: 32}.Execute(c)
	if err != nil {
		return err
	}
	if _, err := (tpm2.NVUndefineSpace{AuthHandle: auth(tpm2.TPMRHOwner), NVIndex: x}).Execute(c); err != nil {
		return err
	}
	_, err = tpm2.NVDefineSpace{AuthHandle: auth(tpm2.TPMRHOwner), PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: tpm.AgreementIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 32,
		Attributes: tpm2.TPMANV{OwnerWrite: true, AuthRead: true, NoDA: true},
	})}.Execute(c)
	if err != nil {
		return err
	}
	_, err = tpm2.NVWrite{AuthHandle: auth(tpm2.TPMRHOwner), NVIndex: named(c, tpm.AgreementIndex), Data: tpm2.TPM2BMaxNVBuffer{Buffer: rsp.Data.Buffer}}.Execute(c)
	return err
}
