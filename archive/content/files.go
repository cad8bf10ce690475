package content

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/disk"
)

// syncers is how many files are brought to the disk at once: the disk then makes
// one write of many.
const syncers = 8

// putFiles keeps contents, whose digests have been checked, as files of their own.
func (s *Store) putFiles(all []Bytes) error {
	if len(all) == 0 {
		return nil
	}
	size := int64(0)
	for _, b := range all {
		size += int64(len(b.Bytes))
	}
	left, err := s.Reserve(size)
	if err != nil {
		return err
	}
	defer left.Release()
	var files []*os.File
	var paths []string
	var digests []archive.Digest
	defer func() {
		for _, f := range files {
			f.Close()
			os.Remove(f.Name()) // unless it was moved
		}
	}()
	for _, b := range all {
		f, err := s.writeTemp(b.Bytes, left)
		if err != nil {
			return disk.Full(err)
		}
		files, paths, digests = append(files, f), append(paths, f.Name()), append(digests, b.Digest)
	}
	if err := eachOf(files, (*os.File).Sync); err != nil {
		return disk.Full(err)
	}
	return disk.Full(s.place(paths, digests))
}

// writeTemp writes a new file, and does not sync it.
func (s *Store) writeTemp(b []byte, left *Share) (*os.File, error) {
	f, err := s.root.Temp()
	if err != nil {
		return nil, err
	}
	if holed(b) {
		w := disk.NewSparseWriter(f, 0, left.Wrote)
		_, err = w.Write(b)
		err = errors.Join(err, w.End())
	} else {
		err = writeDirect(f, b)
		left.Wrote(int64(len(b)))
	}
	if err = errors.Join(err, f.Chmod(0o644)); err != nil {
		f.Close()
		os.Remove(f.Name())
	}
	return f, err
}

// holed reports whether a file of b would have holes.
func holed(b []byte) bool {
	for ; len(b) >= disk.Hole; b = b[disk.Hole:] {
		if disk.Zero(b[:disk.Hole]) {
			return true
		}
	}
	return false
}

// Place makes a file, which must be on the disk and below the same root, that of a
// content. The move is durable when it returns.
func (s *Store) Place(file string, d archive.Digest) error {
	return disk.Full(s.place([]string{file}, []archive.Digest{d}))
}

// place moves synced files to where contents lie, and then makes the moves durable
// together. If that fails none is left there: what is to be seen would pass for
// durable.
func (s *Store) place(files []string, all []archive.Digest) (err error) {
	top := filepath.Join(string(s.root), plainDir)
	if err := s.root.Mkdir(top); err != nil {
		return err
	}
	var moved []string
	defer func() {
		if err != nil {
			for _, path := range moved {
				os.Remove(path)
			}
		}
	}()
	touched := make(map[string]bool)
	for i, d := range all {
		path := s.PlainPath(d)
		if err := s.move(files[i], path, d[0]); err != nil {
			return err
		}
		moved = append(moved, path)
		touched[filepath.Dir(path)] = true
		if !s.synced[d[0]].Load() {
			touched[top] = true
		}
	}
	if err := eachOf(slices.Collect(maps.Keys(touched)), disk.SyncDir); err != nil {
		return err
	}
	if touched[top] {
		for _, d := range all {
			s.synced[d[0]].Store(true)
		}
	}
	return nil
}

// move moves a file into the directory n of the fan-out, which it makes if there
// is none, not yet durable. A disk that fails is not asked twice.
func (s *Store) move(file, path string, n byte) error {
	err := os.Rename(file, path)
	if err == nil {
		return nil
	}
	switch dir := filepath.Dir(path); {
	case isAny(err, unix.ENOENT, unix.ENOTDIR):
		s.synced[n].Store(false)
		unix.Unlink(dir) // a file, or a link to nowhere, in its place; never a directory
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case isAny(err, unix.EISDIR, unix.ENOTEMPTY, unix.EEXIST):
		if err := disk.Evict(path); err != nil {
			return err
		}
	default:
		return err
	}
	return os.Rename(file, path)
}

// eachOf calls f for all, several at a time, and returns what went wrong.
func eachOf[T any](all []T, f func(T) error) error {
	var wg sync.WaitGroup
	next := make(chan T)
	errs := make([]error, min(syncers, len(all)))
	for i := range errs {
		wg.Go(func() {
			for x := range next {
				errs[i] = errors.Join(errs[i], f(x))
			}
		})
	}
	for _, x := range all {
		next <- x
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}
