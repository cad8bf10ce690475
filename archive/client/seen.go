package client

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
)

const (
	seenHeader = "bonafide/seen/v1"
	maxSeen    = 1 << 10
)

// seen remembers the newest epoch that was ever accepted of one archive, in a
// file that outlives the process and is shared with others.
type seen struct {
	dir     string // empty: memory only
	archive archive.Digest

	mu      sync.Mutex
	last    mark
	devices []Sighting // without a directory
}

// mark is an epoch and its head.
type mark struct {
	epoch archive.Epoch
	head  archive.Digest
}

func openSeen(dir string, id archive.Digest) (*seen, error) {
	s := &seen{dir: dir, archive: id}
	if dir == "" {
		return s, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("client state: %w", err)
	}
	return s, nil
}

// load returns the newest mark; zero if there is none.
func (s *seen) load() (mark, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		return s.last, nil
	}
	m, err := s.read()
	if err != nil {
		return m, fmt.Errorf("client state: %w", err)
	}
	return m, nil
}

// raise accepts m: the newest mark is m or newer when it returns nil. It
// refuses one that is older, or another head of the same epoch.
func (s *seen) raise(m mark) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		_, err := s.judge(s.last, m)
		if err == nil {
			s.last = m
		}
		return err
	}
	return s.locked(func() error {
		old, err := s.read()
		if err != nil {
			return fmt.Errorf("client state: %w", err)
		}
		newer, err := s.judge(old, m)
		if err != nil || !newer {
			return err
		}
		return s.write(m)
	})
}

// judge reports whether m is newer than old, or why it is not acceptable.
func (s *seen) judge(old, m mark) (newer bool, err error) {
	switch {
	case m.epoch < old.epoch:
		return false, fmt.Errorf("%w: replicas are at epoch %d, epoch %d was accepted before", ErrStale, m.epoch, old.epoch)
	case m.epoch == old.epoch && m.head != old.head && old != mark{}:
		return false, fmt.Errorf("epoch %d %w: head %s, was %s when it was first accepted", m.epoch, ErrIntegrity, m.head, old.head)
	}
	return m.epoch > old.epoch, nil
}

func (s *seen) path() string { return filepath.Join(s.dir, s.archive.String()+".seen") }

// locked runs f while no other process is in locked for the same archive.
func (s *seen) locked(f func() error) error {
	l, err := os.OpenFile(s.path()+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("client state: %w", err)
	}
	defer l.Close() // lets the lock go
	for {
		err := unix.Flock(int(l.Fd()), unix.LOCK_EX)
		if err == nil {
			return f()
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("client state: flock: %w", err)
		}
	}
}

func (s *seen) read() (mark, error) {
	b, err := readSmall(s.path())
	if err != nil || b == nil {
		return mark{}, err
	}
	return s.parse(string(b))
}

// readSmall returns what a file of the state holds, nil if there is none.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSeen))
}

// encode returns the file's one form.
func (s *seen) encode(m mark) string {
	return fmt.Sprintf("%s\narchive %s\nepoch %d\nhead %s\n", seenHeader, s.archive, m.epoch, m.head)
}

func (s *seen) parse(text string) (m mark, err error) {
	var head string
	lines := strings.Split(text, "\n")
	if len(lines) == 5 {
		if _, err = fmt.Sscanf(lines[2]+" "+lines[3], "epoch %d head %s", &m.epoch, &head); err == nil {
			m.head, err = archive.ParseDigest(head)
		}
	}
	if err != nil || s.encode(m) != text {
		return mark{}, fmt.Errorf("%s is damaged", s.path())
	}
	return m, nil
}

// write puts m in place of the old mark: at any moment one of the two is there
// whole, and m is on the disk when write returns.
func (s *seen) write(m mark) error { return s.replace(s.path(), s.encode(m)) }

func (s *seen) replace(path, text string) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("client state: %w", err)
	}
	_, err = io.WriteString(f, text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("client state: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
