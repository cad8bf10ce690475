// Package disk writes files that are whole and there after a power cut, or not
// there at all.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrFull says that there is no room for something.
var ErrFull = errors.New("disk is full")

// ErrIrregular says that a directory, a pipe, a link or the like lies where a
// file belongs.
var ErrIrregular = errors.New("not a regular file")

// tmpDir holds what is half-written.
const tmpDir = "tmp"

// Root is a directory below which files are written. It may be lost at any
// time, and is made again when it is needed.
type Root string

// Put writes path, which must lie below the root, whole, or not at all: a
// temporary file, fsync, rename, fsync of the directory.
func (r Root) Put(path string, write func(*os.File) error) (err error) {
	f, err := r.Temp()
	if err != nil {
		return Full(err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return Full(err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return Full(err)
	}
	return Full(r.place(f.Name(), path))
}

// Temp makes a file that ClearTemp removes, unless it is moved.
func (r Root) Temp() (*os.File, error) {
	tmp := filepath.Join(string(r), tmpDir)
	if err := r.Mkdir(tmp); err != nil {
		return nil, err
	}
	return os.CreateTemp(tmp, "put-")
}

// place moves a synced file to path and makes the move durable.
func (r Root) place(tmp, path string) error {
	if err := r.Mkdir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := Evict(path); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(path)); err != nil {
		os.Remove(path) // what is there to see would pass for durable
		return err
	}
	return nil
}

// Mkdir makes dir and its parents up to the root, each entry durable.
func (r Root) Mkdir(dir string) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if dir == string(r) {
		return os.MkdirAll(dir, 0o700)
	}
	if err := r.Mkdir(filepath.Dir(dir)); err != nil {
		return err
	}
	unix.Unlink(dir) // a file, or a link to nowhere, in its place; never a directory
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(filepath.Dir(dir))
}

// ClearTemp removes what an interrupted process left half-written. Only the one
// process that owns the root may call it.
func (r Root) ClearTemp() error {
	tmp := filepath.Join(string(r), tmpDir)
	entries, err := os.ReadDir(tmp)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(tmp, e.Name())))
	}
	return err
}

// CheckRegular returns ErrIrregular for what must not be opened: a pipe would
// keep its reader waiting for ever, and so may a link, to a file that is locked.
func CheckRegular(path string) error {
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		return ErrIrregular
	}
	return err
}

// Evict removes what lies where a file belongs and is none.
func Evict(path string) error {
	if !errors.Is(CheckRegular(path), ErrIrregular) {
		return nil
	}
	return os.RemoveAll(path)
}

// SyncDir makes what was done to a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Full makes a lack of room an ErrFull.
func Full(err error) error {
	for _, no := range []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG} {
		if errors.Is(err, no) && !errors.Is(err, ErrFull) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
	}
	return err
}
