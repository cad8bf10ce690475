package replica

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/content"
	"github.com/bonafide-archive/bonafide/archive/disk"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

const (
	treeFile    = "tree.db"
	pendingFile = "pending.db"
	historyDir  = "history"
	contentDir  = "content"
	tmpDir      = "tmp"
)

// Store is everything untrusted that a replica keeps: tree, history, contents
// and pending submissions. Its methods may be called concurrently.
type Store struct {
	dir    string
	roster *archive.Roster

	contents *content.Store

	building sync.Mutex // held while the tree file is replaced

	mu      sync.Mutex
	pending *Pending // opened when first asked for
}

// OpenStore opens the store in dir and makes what is missing of its
// directories.
func OpenStore(dir string, r *archive.Roster) (*Store, error) {
	s := newStore(dir, r)
	for _, d := range []string{historyDir, contentDir, tmpDir} {
		if err := s.root().Mkdir(filepath.Join(dir, d)); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	return s, nil
}

// newStore returns the store in dir as it is.
func newStore(dir string, r *archive.Roster) *Store {
	return &Store{dir: dir, roster: r, contents: content.Open(disk.Root(dir))}
}

// Close closes the contents and the pending buffer. Trees are closed by who
// opened them.
func (s *Store) Close() error {
	return errors.Join(s.contents.Close(), s.closePending())
}

// Roster returns the roster that the store was opened with.
func (s *Store) Roster() *archive.Roster { return s.roster }

// TreePath returns where the current tree lies.
func (s *Store) TreePath() string { return filepath.Join(s.dir, treeFile) }

// OpenTree opens the current tree. What it holds is a claim until it has been
// rehashed. A tree that is not there is ErrMissing when opened read-only, and
// made empty otherwise.
func (s *Store) OpenTree(readOnly bool) (*boltstore.Store, error) {
	err := checkRegular(s.TreePath())
	switch {
	case readOnly && errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("tree: %w", ErrMissing)
	case errors.Is(err, disk.ErrIrregular):
		return nil, fmt.Errorf("tree: %w: %w", boltstore.ErrDamaged, err)
	}
	t, err := boltstore.Open(s.TreePath(), boltstore.Options{ReadOnly: readOnly})
	if err != nil {
		return nil, fmt.Errorf("open tree: %w", err)
	}
	return t, nil
}

// Pending returns the buffer of submissions, opened when first asked for. One
// process has it at a time.
func (s *Store) Pending() (*Pending, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending != nil {
		return s.pending, nil
	}
	p, err := openPending(filepath.Join(s.dir, pendingFile), keepAll)
	if err != nil {
		return nil, fmt.Errorf("open pending: %w", err)
	}
	p.room = roomFor(len(s.roster.Writers))
	s.pending = p
	return p, nil
}

// closePending closes the buffer, with all that is known of what it holds, until it
// is asked for again.
func (s *Store) closePending() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending != nil {
		err = s.pending.close()
	}
	s.pending = nil
	return err
}

// thinPending drops the submissions from the buffer that keep does not, by making its
// file anew without them. The buffer must be closed.
func (s *Store) thinPending(keep sieve) error {
	p, err := openPending(filepath.Join(s.dir, pendingFile), keep)
	if err != nil {
		return fmt.Errorf("drop from pending: %w", err)
	}
	return p.close()
}

// ClearTemp removes what an interrupted process left half-written. Only the
// one process that owns the store may call it.
func (s *Store) ClearTemp() error { return s.root().ClearTemp() }

func (s *Store) root() disk.Root { return disk.Root(s.dir) }

// putFile writes path whole and durably, or not at all.
func (s *Store) putFile(path string, write func(*os.File) error) error {
	return s.root().Put(path, write)
}

func checkRegular(path string) error { return disk.CheckRegular(path) }
func evict(path string) error        { return disk.Evict(path) }
func syncDir(dir string) error       { return disk.SyncDir(dir) }
func full(err error) error           { return disk.Full(err) }

// guard runs f, which reads pages of a file that may be damaged, and returns a
// panic or a fault as ErrDamaged.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return f()
}
