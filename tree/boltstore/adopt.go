package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/bonafide-archive/bonafide/tree"
)

// File returns the whole file as it lies on the disk. A store that is open for
// writing may change it meanwhile.
func (s *Store) File() (*io.SectionReader, error) {
	info, err := s.file.Stat()
	if err != nil {
		return nil, fmt.Errorf("tree file: %w", err)
	}
	return io.NewSectionReader(s.file, 0, info.Size()), nil
}

// Adopt makes the file at path a copy of another store's file, which r gives and
// which may be an enemy's: its root must be want, and an Audit must find nothing
// wrong with any of its pages. Like Build it writes path + ".new" first; after an
// error path stays as it was.
func Adopt(ctx context.Context, path string, r io.Reader, want tree.Hash) error {
	temp := path + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	err := writeFile(temp, r)
	if err == nil {
		err = vouch(ctx, temp, want)
	}
	if err == nil {
		err = replace(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return fmt.Errorf("adopt tree %s: %w", path, err)
	}
	return nil
}

func writeFile(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, r, make([]byte, 1<<20))
	return errors.Join(err, f.Sync(), f.Close())
}

// vouch checks all of a file.
func vouch(ctx context.Context, path string, want tree.Hash) error {
	s, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		return err
	}
	if s.page != os.Getpagesize() {
		return errors.Join(fmt.Errorf("%w: pages of %d bytes", ErrDamaged, s.page), s.Close())
	}
	damages, err := s.Audit(ctx, want)
	if err == nil && len(damages) > 0 {
		err = fmt.Errorf("%w: %s", ErrDamaged, damages[0].Reason)
	}
	return errors.Join(err, s.Close())
}
