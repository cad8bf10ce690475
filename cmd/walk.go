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

// walk finds regular files, hidden ones too, and names each by a prefix, a slash
// and its path.
type walk struct {
	prefix  archive.Name // empty: none
	sizes   bool         // whether bytes is asked for, which costs a system call a file
	renamed func(archive.Name)
	// skip is told of what is found and cannot be named, or is no regular file.
	skip     func(path string, n archive.Name, err error)
	nameless bool // files need no name that an archive takes, but stand for their paths

	exclude excludes // what to leave out below a directory, by its path there

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

// run adds what is below dir, named by its path there.
func (w *walk) run(ctx context.Context, dir string) error {
	fi, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !fi.IsDir():
		return usagef("%s is not a directory", quote(dir))
	}
	if err := w.tree(ctx, dir, ""); err != nil {
		return err
	}
	w.dropTwins()
	return nil
}

// paths adds files, and what is below directories if recursive, named by their
// paths as they are given, without a slash before them.
func (w *walk) paths(ctx context.Context, paths []string, recursive bool) error {
	for _, path := range paths {
		path = filepath.Clean(path)
		fi, err := os.Lstat(path)
		as := strings.TrimPrefix(path, string(filepath.Separator))
		switch {
		case err != nil:
		case fi.IsDir() && !recursive:
			err = errors.New("is a directory, and -r is not given")
		case fi.IsDir():
			if err := w.tree(ctx, path, as); err != nil {
				return err
			}
		default:
			err = w.find(path, as, fs.FileInfoToDirEntry(fi))
		}
		if err != nil {
			w.pass(path, "", err)
		}
	}
	w.dropTwins()
	return ctx.Err()
}

// tree adds what is below a directory, named by as, a slash and its path there.
func (w *walk) tree(ctx context.Context, dir, as string) error {
	root := filepath.Clean(dir) + string(filepath.Separator) // through a link to it
	before := strings.TrimSuffix(filepath.Join(root, "x"), "x")
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel := ""
		if path != root {
			rel = strings.TrimPrefix(path, before)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			w.pass(path, "", err)
			return nil
		case rel != "" && w.exclude.match(rel, d.IsDir()):
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if err := w.find(path, joined(as, rel), d); err != nil {
			w.pass(path, "", err)
		}
		return nil
	})
}

// joined is a path below another, either of which may be empty; both are clean.
func joined(as, rel string) string {
	if as == "" || rel == "" {
		return as + rel
	}
	return as + string(filepath.Separator) + rel
}

// pass passes over what is found.
func (w *walk) pass(path string, n archive.Name, err error) {
	w.skipped++
	w.skip(path, n, pathless(err))
}

// pathless returns an error without the path that stands before it anyway.
func pathless(err error) error {
	var at *fs.PathError
	var from *os.LinkError
	switch {
	case errors.As(err, &at):
		return at.Err
	case errors.As(err, &from):
		return from.Err
	}
	return err
}

var (
	errIrregular = errors.New("not a regular file") // but a link, pipe, socket or device
	errTwin      = errors.New("the name of several files in normalisation form C")
)

// find adds a file, named by as.
func (w *walk) find(path, as string, d fs.DirEntry) error {
	switch {
	case d.IsDir():
		return nil
	case !d.Type().IsRegular():
		return errIrregular
	}
	if w.nameless {
		w.files = append(w.files, found{archive.Name(as), path})
		return nil
	}
	n, changed := archive.NormalizeName(string(below(w.prefix, as)))
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

// loadPaths reads paths, one a line or each ended by NUL.
func (a *app) loadPaths(file string, null bool) ([]string, error) {
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, unreadable(err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	end := "\n"
	if null {
		end = "\x00"
	}
	return slices.DeleteFunc(strings.Split(string(b), end), func(p string) bool { return p == "" }), nil
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
	slices.SortFunc(all, func(a, b found) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.path, b.path)) })
	all = slices.Compact(all) // given twice
	twin := func(i int) bool {
		return i > 0 && all[i-1].name == all[i].name || i+1 < len(all) && all[i+1].name == all[i].name
	}
	w.files = all[:0] // written behind what twin looks at
	for i, f := range all {
		if twin(i) {
			w.pass("", f.name, errTwin)
			continue
		}
		w.files = append(w.files, f)
	}
}
