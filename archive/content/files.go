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
	files := make([]string, len(all))
	digests := make([]archive.Digest, len(all))
	defer func() {
		for _, f := range files {
			os.Remove(f) // unless it was moved
		}
	}()
	for i, b := range all {
		digests[i] = b.Digest
		if files[i], err = s.writeTemp(b.Bytes, left); err != nil {
			return disk.Full(err)
		}
	}
	if err := eachOf(files, disk.SyncDir); err != nil {
		return disk.Full(err)
	}
	return disk.Full(s.place(files, digests))
}

// writeTemp writes a new file, and does not sync it.
func (s *Store) writeTemp(b []byte, left *Share) (string, error) {
	f, err := s.root.Temp()
	if err != nil {
		return "", err
	}
	if holed(b) {
		w := disk.NewSparseWriter(f, 0, left.Wrote)
		_, err = w.Write(b)
		err = errors.Join(err, w.End())
	} else {
		err = writeDirect(f, b)
		left.Wrote(int64(len(b)))
	}
	return f.Name(), errors.Join(err, f.Chmod(0o644), f.Close())
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
// together: in each of three directories there may be a new entry. If that fails
// none is left there: what is to be seen would pass for durable.
func (s *Store) place(files []string, all []archive.Digest) (err error) {
	if err := s.root.Mkdir(filepath.Join(string(s.root), plainDir)); err != nil {
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
		if err := makeDirs(filepath.Dir(path)); err != nil {
			return err
		}
		if err := errors.Join(disk.Evict(path), os.Rename(files[i], path)); err != nil {
			return err
		}
		moved = append(moved, path)
		for range 3 {
			path = filepath.Dir(path)
			touched[path] = true
		}
	}
	return eachOf(slices.Collect(maps.Keys(touched)), disk.SyncDir)
}

// makeDirs makes both directories of a fan-out, not yet durable. A disk that
// fails is not asked twice.
func makeDirs(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	os.Remove(dir) // a file in the place of one
	os.Remove(filepath.Dir(dir))
	return os.MkdirAll(dir, 0o700)
}

// eachOf calls f for all paths, several at a time, and returns what went wrong.
func eachOf(paths []string, f func(string) error) error {
	var wg sync.WaitGroup
	next := make(chan string)
	errs := make([]error, min(syncers, len(paths)))
	for i := range errs {
		wg.Go(func() {
			for p := range next {
				errs[i] = errors.Join(errs[i], f(p))
			}
		})
	}
	for _, p := range paths {
		next <- p
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}
