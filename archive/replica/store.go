package replica

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
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

	building sync.Mutex // held while the tree file is replaced

	mu      sync.Mutex
	pending *Pending // opened when first asked for
}

// OpenStore opens the store in dir and makes what is missing of its
// directories.
func OpenStore(dir string, r *archive.Roster) (*Store, error) {
	s := &Store{dir: dir, roster: r}
	for _, d := range []string{historyDir, contentDir, tmpDir} {
		if err := s.mkdir(filepath.Join(dir, d)); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	return s, nil
}

// Close closes the pending buffer. Trees are closed by who opened them.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending == nil {
		return nil
	}
	err := s.pending.close()
	s.pending = nil
	return err
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
	case errors.Is(err, errIrregular):
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
	p, err := openPending(filepath.Join(s.dir, pendingFile))
	if err != nil {
		return nil, fmt.Errorf("open pending: %w", err)
	}
	s.pending = p
	return p, nil
}

// ClearTemp removes what an interrupted process left half-written. Only the
// one process that owns the store may call it.
func (s *Store) ClearTemp() error {
	tmp := filepath.Join(s.dir, tmpDir)
	entries, err := os.ReadDir(tmp)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(tmp, e.Name())))
	}
	return err
}

// putFile writes path whole, or not at all: a temporary file, fsync, rename,
// fsync of the directory.
func (s *Store) putFile(path string, write func(*os.File) error) (err error) {
	tmp := filepath.Join(s.dir, tmpDir)
	if err := os.MkdirAll(tmp, 0o700); err != nil { // the store may be lost at any time
		return full(err)
	}
	f, err := os.CreateTemp(tmp, "put-")
	if err != nil {
		return full(err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return full(err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return full(err)
	}
	return full(s.place(f.Name(), path))
}

// place moves a synced file to path and makes the move durable.
func (s *Store) place(tmp, path string) error {
	if err := s.mkdir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := evict(path); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// errIrregular says that a directory, a pipe or the like lies where a file
// belongs.
var errIrregular = errors.New("not a regular file")

// checkRegular returns errIrregular for what must not be opened: a pipe would
// keep its reader waiting for ever.
func checkRegular(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = errIrregular
	}
	return err
}

// evict removes what lies where a file belongs and is none.
func evict(path string) error {
	if !errors.Is(checkRegular(path), errIrregular) {
		return nil
	}
	return os.RemoveAll(path)
}

// mkdir makes dir and its parents up to the store's own, each entry durable.
func (s *Store) mkdir(dir string) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if dir == s.dir {
		return os.MkdirAll(dir, 0o700)
	}
	if err := s.mkdir(filepath.Dir(dir)); err != nil {
		return err
	}
	os.Remove(dir) // a file, or a link to nowhere, in its place
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// full makes a lack of room an ErrFull.
func full(err error) error {
	for _, no := range []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
	}
	return err
}

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
