// Package soft is the MAS in a file, for trials and tests: it keeps the whole
// contract of trust.MAS, and protects from nobody who can write the file.
package soft

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/trust"
)

const (
	stateName = "state.json"
	lockName  = "lock"
	maxState  = 1 << 12
)

// state is all that a device knows, as its file holds it.
type state struct {
	Version   int        `json:"version"`
	Key       []byte     `json:"key"`       // seed
	Agreement []byte     `json:"agreement"` // seed
	Mode      trust.Mode `json:"mode"`
	Slots     []byte     `json:"slots"`
	Counter   uint64     `json:"counter"`
	Reset     uint32     `json:"reset"`
	Restart   uint32     `json:"restart"`
	Born      int64      `json:"born"` // unix milliseconds; zero of the device's clock
}

// Provision makes a device in dir, which it creates if need be, and returns
// what a roster pins of it and the public half of its agreement key. The new
// device is in update mode with zero slots. A device that is there already is
// left alone, and an error that unwraps to fs.ErrExist returned.
func Provision(dir string, rand io.Reader) (trust.Identity, ed25519.PublicKey, error) {
	s, err := newState(rand)
	if err != nil {
		return trust.Identity{}, nil, fmt.Errorf("provision device: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return trust.Identity{}, nil, fmt.Errorf("provision device: %w", err)
	}
	if err := locked(dir, func() error { return create(dir, s) }); err != nil {
		return trust.Identity{}, nil, fmt.Errorf("provision device: %w", err)
	}
	id, key := s.pinned()
	return id, key, nil
}

// pinned is what Provision returns of a device.
func (s state) pinned() (trust.Identity, ed25519.PublicKey) {
	return trust.Identity{Profile: trust.ProfileSoftware, Key: public(s.Key)}, public(s.Agreement)
}

// Unused returns again what Provision returned of the device in dir, provided
// that nothing was done with it since; otherwise an error that unwraps to
// fs.ErrExist.
func Unused(dir string) (trust.Identity, ed25519.PublicKey, error) {
	s, err := (&MAS{dir: dir}).look(context.Background())
	if err == nil && (s.Mode != trust.ModeUpdate || s.Counter != 0 || s.Reset != 1 || !bytes.Equal(s.Slots, trust.Slots{}.Bytes())) {
		err = fmt.Errorf("it is in use: %w", fs.ErrExist)
	}
	if err != nil {
		return trust.Identity{}, nil, wrap("provision device", err)
	}
	id, key := s.pinned()
	return id, key, nil
}

func newState(rand io.Reader) (state, error) {
	seeds := make([]byte, 2*ed25519.SeedSize)
	if _, err := io.ReadFull(rand, seeds); err != nil {
		return state{}, err
	}
	return state{
		Version: 1, Mode: trust.ModeUpdate, Slots: trust.Slots{}.Bytes(), Reset: 1,
		Key: seeds[:ed25519.SeedSize], Agreement: seeds[ed25519.SeedSize:],
		Born: time.Now().UnixMilli(),
	}, nil
}

func create(dir string, s state) error {
	_, err := os.Lstat(filepath.Join(dir, stateName))
	if err == nil {
		return fmt.Errorf("%s: %w", filepath.Join(dir, stateName), fs.ErrExist)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return write(dir, s)
}

func public(seed []byte) ed25519.PublicKey {
	return ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
}

// A MAS is one process's hold on the device in a directory. Nothing of the
// state is kept in memory: another process may change it at any time.
type MAS struct {
	dir   string
	batch *trust.Batch
}

var _ trust.MAS = (*MAS)(nil)

// Open returns the device that Provision made in dir.
func Open(dir string) (*MAS, error) {
	if err := locked(dir, func() error { _, err := read(dir); return err }); err != nil {
		return nil, fmt.Errorf("open device: %w", err)
	}
	m := &MAS{dir: dir}
	m.batch = trust.NewBatch(m.certify)
	return m, nil
}

// Profile returns trust.ProfileSoftware.
func (m *MAS) Profile() trust.Profile { return trust.ProfileSoftware }

// Close does nothing: between operations the device is not held.
func (m *MAS) Close() error { return nil }

// Store implements trust.MAS. The slots are on the disk when it returns.
func (m *MAS) Store(ctx context.Context, slots trust.Slots) error {
	err := m.change(ctx, func(s *state) error {
		if s.Mode != trust.ModeUpdate {
			return trust.ErrMode
		}
		s.Slots = slots.Bytes()
		return nil
	})
	return wrap("store slots", err)
}

// Advance implements trust.MAS.
func (m *MAS) Advance(ctx context.Context) error {
	err := m.change(ctx, func(s *state) error {
		if s.Mode != trust.ModeUpdate {
			return trust.ErrMode
		}
		s.Counter++
		return nil
	})
	return wrap("advance counter", err)
}

// Lock implements trust.MAS.
func (m *MAS) Lock(ctx context.Context) error {
	err := m.change(ctx, func(s *state) error {
		s.Mode = trust.ModeService
		return nil
	})
	return wrap("lock device", err)
}

// Lookup implements trust.MAS.
func (m *MAS) Lookup(ctx context.Context, n trust.Nonce) (trust.Attestation, error) {
	a, err := m.batch.Lookup(ctx, n)
	return a, wrap("look up", err)
}

// certify is a trust.Certifier.
func (m *MAS) certify(ctx context.Context, root [32]byte) (trust.Signed, error) {
	s, err := m.look(ctx)
	if err != nil {
		return nil, err
	}
	slots, err := trust.ParseSlots(s.Slots)
	if err != nil {
		return nil, err
	}
	st := trust.Statement{
		Mode: s.Mode, Slots: slots, Counter: s.Counter, Safe: true,
		Clock:  uint64(max(0, time.Now().UnixMilli()-s.Born)),
		Counts: trust.Counts{Reset: s.Reset, Restart: s.Restart},
	}
	return trust.SignSoftware(ed25519.NewKeyFromSeed(s.Key), st, root), nil
}

// AgreementKey implements trust.MAS.
func (m *MAS) AgreementKey(ctx context.Context) (ed25519.PrivateKey, error) {
	s, err := m.look(ctx)
	if err == nil && s.Mode != trust.ModeUpdate {
		err = trust.ErrMode
	}
	if err != nil {
		return nil, fmt.Errorf("read agreement key: %w", err)
	}
	return ed25519.NewKeyFromSeed(s.Agreement), nil
}

// Reset is the device reset of the device in dir: update mode again, and one
// more reset counted.
func Reset(dir string) error {
	m := MAS{dir: dir}
	err := m.change(context.Background(), func(s *state) error {
		s.Mode = trust.ModeUpdate
		s.Reset++
		return nil
	})
	return wrap("reset device", err)
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// change lets f change the state, and writes it if f agrees.
func (m *MAS) change(ctx context.Context, f func(*state) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return locked(m.dir, func() error {
		s, err := read(m.dir)
		if err != nil {
			return err
		}
		was := s
		if err := f(&s); err != nil || reflect.DeepEqual(s, was) {
			return err // a device that is locked can be locked on a full disk
		}
		return write(m.dir, s)
	})
}

func (m *MAS) look(ctx context.Context) (s state, err error) {
	if err := ctx.Err(); err != nil {
		return state{}, err
	}
	err = locked(m.dir, func() error { s, err = read(m.dir); return err })
	return s, err
}

// locked runs f while no other process, and no other goroutine, is in locked
// for the same directory.
func locked(dir string, f func() error) error {
	l, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer l.Close() // lets the lock go
	for {
		err := unix.Flock(int(l.Fd()), unix.LOCK_EX)
		if err == nil {
			return f()
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("flock: %w", err)
		}
	}
}

func read(dir string) (s state, err error) {
	f, err := os.Open(filepath.Join(dir, stateName))
	if err != nil {
		return state{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return state{}, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return state{}, fmt.Errorf("device state is damaged: %w", err)
	}
	return s, s.check()
}

func (s state) check() error {
	if s.Version != 1 || len(s.Key) != ed25519.SeedSize || len(s.Agreement) != ed25519.SeedSize ||
		s.Mode != trust.ModeUpdate && s.Mode != trust.ModeService {
		return errors.New("device state is damaged")
	}
	if _, err := trust.ParseSlots(s.Slots); err != nil {
		return fmt.Errorf("device state is damaged: %w", err)
	}
	return nil
}

// write puts s in place of the old state: at any moment one of the two is
// there whole, and s is on the disk when write returns.
func write(dir string, s state) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, stateName+".new")
	if err := writeSynced(tmp, b); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, stateName)); err != nil {
		return err
	}
	return syncDir(dir)
}

func writeSynced(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
