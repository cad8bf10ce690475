package soft_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/soft"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

func TestConformance(t *testing.T) {
	trusttest.Run(t, func(t *testing.T) trusttest.Device {
		dir := filepath.Join(t.TempDir(), "mas")
		id, key, err := soft.Provision(dir, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return trusttest.Device{
			Identity: id, Agreement: key,
			Open: func(t *testing.T) trust.MAS { return open(t, dir) },
			Reset: func(t *testing.T) {
				if err := soft.Reset(dir); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

func open(t *testing.T, dir string) *soft.MAS {
	t.Helper()
	m, err := soft.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestProvisionTwice(t *testing.T) {
	dir := t.TempDir()
	id, _, err := soft.Provision(dir, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := soft.Provision(dir, rand.Reader); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want ErrExist", err)
	}
	a, err := open(t, dir).Lookup(t.Context(), trust.Nonce{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Verify(a, trust.Nonce{}); err != nil {
		t.Errorf("the first device is gone: %v", err)
	}
}

// A device that was provisioned and no more is known again, and no other.
func TestUnused(t *testing.T) {
	change := func(f func(m *soft.MAS) error) func(string) error {
		return func(dir string) error {
			m, err := soft.Open(dir)
			if err != nil {
				return err
			}
			return f(m)
		}
	}
	for name, use := range map[string]func(dir string) error{
		"store":   change(func(m *soft.MAS) error { return m.Store(t.Context(), trusttest.Slots(1)) }),
		"advance": change(func(m *soft.MAS) error { return m.Advance(t.Context()) }),
		"lock":    change(func(m *soft.MAS) error { return m.Lock(t.Context()) }),
		"reset":   soft.Reset,
	} {
		dir := t.TempDir()
		id, key, err := soft.Provision(dir, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		got, same, err := soft.Unused(dir)
		if err != nil || !bytes.Equal(got.Key, id.Key) || got.Profile != id.Profile || !key.Equal(same) {
			t.Errorf("got %+v, %v, want %+v", got, err, id)
		}
		if err := use(dir); err != nil {
			t.Fatal(err)
		}
		if _, _, err := soft.Unused(dir); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: got %v, want ErrExist", name, err)
		}
	}
	if _, _, err := soft.Unused(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no device: got %v, want ErrNotExist", err)
	}
}

func TestOpenNothing(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if _, err := soft.Open(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v, want ErrNotExist", err)
		}
	}
}

// A damaged state is an error, whatever is left of it, and never a fresh start.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := soft.Provision(dir, rand.Reader); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "state.json")
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, len(whole) / 2, len(whole) - 1} {
		if err := os.WriteFile(name, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := soft.Open(dir); err == nil {
			t.Errorf("opened a state cut to %d bytes", n)
		}
		if err := soft.Reset(dir); err == nil {
			t.Errorf("reset a state cut to %d bytes", n)
		}
	}
}

// Where nothing can be written, a locked device still says that it is locked:
// the service phase goes on. One in update mode says that it could not be.
func TestLockWithoutWriting(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := soft.Provision(dir, rand.Reader); err != nil {
		t.Fatal(err)
	}
	m, err := soft.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	block := filepath.Join(dir, "state.json.new")
	if err := os.Mkdir(block, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Lock(t.Context()); err == nil {
		t.Error("locked without writing it down")
	}
	if err := os.Remove(block); err != nil {
		t.Fatal(err)
	}
	if err := m.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(block, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Lock(t.Context()); err != nil {
		t.Errorf("lock a locked device: %v", err)
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mas")
	if _, _, err := soft.Provision(dir, rand.Reader); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "state.json"): 0o600} {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode().Perm(); got != want {
			t.Errorf("%s: mode %v, want %v", name, got, want)
		}
	}
}
