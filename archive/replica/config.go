// Package replica is one member of an archive: its service process, which
// answers Gets, buffers Adds, audits and repairs, and its update process, which
// agrees with the others on the next epoch. Both work on one directory, one
// after the other, and believe nothing in its store that a digest or the
// trusted device does not vouch for.
package replica

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/content"
	"github.com/bonafide-archive/bonafide/archive/disk"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

// Errors that callers decide on.
var (
	// ErrUpdateMode is returned by Serve while the MAS is in update mode:
	// update code runs, and locks, before service code.
	ErrUpdateMode = errors.New("trusted device is in update mode: an update phase must run, and lock it, first")
	// ErrMissing says that the store does not hold something.
	ErrMissing = content.ErrMissing
	// ErrDamaged says that what the store holds is not what it must be.
	ErrDamaged = content.ErrDamaged
	// ErrFull says that the disk has no room.
	ErrFull = disk.ErrFull
	// ErrBusy says that an audit is running already.
	ErrBusy = errors.New("an audit is running")
)

// The parts of a replica's directory.
const (
	storeDir      = "store" // everything untrusted
	runDir        = "run"   // sockets
	serviceSocket = "service"
)

// Config says which replica a process runs and with what.
type Config struct {
	Dir        string // the replica's directory
	ID         uint32 // which replica of the roster it is
	Roster     *archive.Roster
	MAS        trust.MAS
	ServiceKey ed25519.PrivateKey

	// Listen is the address to listen on. Empty: the roster's.
	Listen string
	// Timeout bounds connecting to peers and every wait for one without
	// progress. Zero: 10 seconds.
	Timeout time.Duration
	// Retry is the pause after a repair that found no source. Zero: 5 seconds.
	Retry time.Duration
	// AuditEvery is the pause between full audits by the service process
	// itself. Zero: a day.
	AuditEvery time.Duration
	// Share is the part of the time, above 0 to 1, that audits may keep the
	// disk and a core busy. Zero: one half.
	Share float64
	// Now tells the wall time. Nil: time.Now.
	Now func() time.Time
	// Rand is where nonces come from. Nil: crypto/rand.
	Rand io.Reader
	// Log takes what the operator should know. Nil: nowhere.
	Log *slog.Logger

	// at is told of each point where an update phase may be cut off, as it comes
	// to it. Nil, as always outside tests: nobody.
	at func(point string)
}

// filled returns c with its defaults, once it is usable.
func (c Config) filled() (Config, error) {
	m, ok := archive.Replica{}, false
	if c.Roster != nil {
		m, ok = c.Roster.Replica(c.ID)
	}
	switch {
	case c.Roster == nil || c.MAS == nil || c.Dir == "":
		return c, errors.New("replica: config lacks roster, trusted device or directory")
	case !ok:
		return c, fmt.Errorf("replica %d: %w: no such replica", c.ID, archive.ErrRoster)
	}
	setDefault(&c.Listen, m.Address)
	setDefault(&c.Timeout, 10*time.Second)
	setDefault(&c.Retry, 5*time.Second)
	setDefault(&c.AuditEvery, 24*time.Hour)
	setDefault(&c.Share, 0.5)
	setDefault(&c.Rand, rand.Reader)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Log = c.Log.With("replica", c.ID)
	return c, nil
}

// durable makes a change that outlives the process. All changes of an update
// phase are made here, under a name each, so that a test can cut the phase off
// before and after every one.
func (c Config) durable(name string, change func() error) error {
	c.point("before " + name)
	err := change()
	c.point("after " + name)
	return err
}

func (c Config) point(name string) {
	if c.at != nil {
		c.at(name)
	}
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// StoreDir returns the part of the directory that holds everything untrusted.
func (c Config) StoreDir() string { return filepath.Join(c.Dir, storeDir) }

// peers returns a client of every other replica. With an agreement key, also
// peers in an update phase are accepted.
func (c Config) peers(key ed25519.PrivateKey) []*wire.Client {
	var all []*wire.Client
	for _, m := range c.Roster.Replicas {
		if m.ID != c.ID {
			all = append(all, wire.NewClient(m, c.Roster, wire.Options{AgreementKey: key, Timeout: c.Timeout}))
		}
	}
	return all
}

// nonce draws a nonce of the replica's own. It is a digest under a context of
// its own, so that its answer can never be a vote:
// SHA256("bonafide/self/v1\n" || random).
func (c Config) nonce() (trust.Nonce, error) {
	b := append([]byte("bonafide/self/v1\n"), make([]byte, 32)...)
	if _, err := io.ReadFull(c.Rand, b[len(b)-32:]); err != nil {
		return trust.Nonce{}, fmt.Errorf("draw nonce: %w", err)
	}
	return trust.Nonce(archive.DigestOf(b)), nil
}
