package cmd

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
)

// found is a file and the name it has in the archive.
type found struct {
	name archive.Name
	path string
}

func (f found) open() (io.ReadCloser, error) { return openRegular(f.path) }

// walk finds the regular files of a directory, hidden ones too, and names each by
// a prefix, a slash and its path there.
type walk struct {
	prefix  archive.Name // empty: none
	sizes   bool         // whether bytes is asked for, which costs a system call a file
	renamed func(archive.Name)
	// skip is told of what is found and cannot be named, or is no regular file.
	skip     func(path string, n archive.Name, err error)
	nameless bool // files need no name that an archive takes, but stand for their paths

	files   []found // by name, each name once
	bytes   uint64
	skipped uint64
}

// walk makes a walk that finds nothing yet.
func (a *app) walk(prefix archive.Name, skip func(path string, n archive.Name, err error)) *walk {
	return &walk{prefix: prefix, skip: skip, renamed: func(n archive.Name) {
		a.say("%s: taken in Unicode normalisation form C", quote(n))
	}}
}

// run adds what is below dir.
func (w *walk) run(ctx context.Context, dir string) error {
	fi, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !fi.IsDir():
		return usagef("%s is not a directory", quote(dir))
	}
	root := filepath.Clean(dir) + string(filepath.Separator) // through a link to it
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			err = w.find(dir, path, d)
		}
		if err != nil {
			w.pass(path, "", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	w.dropTwins()
	return nil
}

// pass passes over what is found.
func (w *walk) pass(path string, n archive.Name, err error) {
	w.skipped++
	w.skip(path, n, pathless(err))
}

// pathless returns an error without the path that stands before it anyway.
func pathless(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

var (
	errIrregular = errors.New("not a regular file") // but a link, pipe, socket or device
	errTwin      = errors.New("the name of several files in normalisation form C")
)

func (w *walk) find(dir, path string, d fs.DirEntry) error {
	switch {
	case d.IsDir():
		return nil
	case !d.Type().IsRegular():
		return errIrregular
	}
	rel, err := filepath.Rel(dir, path)
	if err != nil {
		return err
	}
	if w.nameless {
		w.files = append(w.files, found{archive.Name(rel), path})
		return nil
	}
	n, changed := archive.NormalizeName(string(below(w.prefix, rel)))
	if err := n.Check(); err != nil {
		return err
	}
	if changed {
		w.renamed(n)
	}
	if w.sizes {
		if fi, err := d.Info(); err == nil {
			w.bytes += uint64(fi.Size())
		}
	}
	w.files = append(w.files, found{n, path})
	return nil
}

// below returns the name of what has a path below a prefix.
func below(prefix archive.Name, path string) archive.Name {
	if prefix == "" {
		return archive.Name(path)
	}
	return prefix + "/" + archive.Name(path)
}

// parsePrefix checks the name that stands before those of files; empty, there
// is none.
func (a *app) parsePrefix(arg string) (archive.Name, error) {
	arg = strings.TrimSuffix(arg, "/")
	if arg == "" {
		return "", nil
	}
	return a.parseName(arg)
}

// openRegular opens a file that was regular when it was found.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // not a pipe that nobody writes
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errIrregular
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// dropTwins leaves out files whose names are the same once they are normalised:
// which of them is meant nobody can say.
func (w *walk) dropTwins() {
	all := w.files
	slices.SortStableFunc(all, func(a, b found) int { return cmp.Compare(a.name, b.name) })
	twin := func(i int) bool {
		return i > 0 && all[i-1].name == all[i].name || i+1 < len(all) && all[i+1].name == all[i].name
	}
	w.files = nil
	for i, f := range all {
		if twin(i) {
			w.pass("", f.name, errTwin)
			continue
		}
		w.files = append(w.files, f)
	}
}
