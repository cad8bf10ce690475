package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// addedTree counts what became of the files of a directory.
type addedTree struct {
	Type    string `json:"message_type"`
	Added   uint64 `json:"added"`
	Bound   uint64 `json:"bound"`  // of those, what was bound already
	Bytes   uint64 `json:"bytes"`  // of those
	Failed  uint64 `json:"failed"` // not added
	only    error  // why the last of those was not
	errFile error  // what kept results from being printed
}

// notAdded says of one file why it was not added.
type notAdded struct {
	Type   string       `json:"message_type"`
	File   string       `json:"file,omitempty"`
	Name   archive.Name `json:"name,omitempty"`
	Status string       `json:"status"`
	Detail string       `json:"detail"`
}

// addTree adds the regular files below dir, each under prefix and its path.
func (a *app) addTree(ctx context.Context, arg, dir string) error {
	prefix, err := a.parsePrefix(arg)
	if err != nil {
		return err
	}
	c, err := a.connect(true)
	if err != nil {
		return err
	}
	defer c.Close()
	w := &walk{a: a, dir: dir, prefix: prefix, sum: addedTree{Type: "summary"}}
	if err := w.run(ctx); err != nil {
		return err
	}
	c.Progress = a.treeProgress("add "+dir, w.bytes)
	res, err := c.AddEach(ctx, w.items, func(o client.Outcome) { w.sum.take(a, o) })
	for id, err := range res.Failed {
		a.warn("replica %d did not acknowledge all: %v", id, err)
	}
	if err = errors.Join(err, w.sum.errFile); err != nil {
		return w.unfinished(err)
	}
	if err := a.summary(w.sum, res); err != nil {
		return err
	}
	return w.sum.verdict()
}

// parsePrefix checks the name that stands before those of the files; empty,
// there is none.
func (a *app) parsePrefix(arg string) (archive.Name, error) {
	arg = strings.TrimSuffix(arg, "/")
	if arg == "" {
		return "", nil
	}
	return a.parseName(arg)
}

// unfinished says what is left to do.
func (w *walk) unfinished(err error) error {
	n := uint64(len(w.items)) - min(uint64(len(w.items)), w.sum.Added+w.sum.Failed-w.skipped)
	err = fmt.Errorf("%s not added: %w", count(n, "file"), err)
	if hintOf(err) != "" || adviceOn(err) != "" {
		return err
	}
	return withHint(err, "add them again: what has been added is not uploaded twice")
}

func (a *app) summary(s addedTree, res client.AddResult) error {
	if res.Status == wire.AckPending && s.Added > s.Bound {
		a.say("%s pending; the next update phase is due at %s", count(s.Added-s.Bound, "name"), clock(res.Due))
	}
	a.say("%s added, %d bound already, %d not; %d bytes", count(s.Added, "file"), s.Bound, s.Failed, s.Bytes)
	return a.message(s)
}

// verdict is nil if every file was added.
func (s addedTree) verdict() error {
	switch {
	case s.Failed == 0:
		return nil
	case s.Added == 0 && s.Failed == 1:
		return s.only
	}
	return withStatus(exitPartial, fmt.Errorf("%s not added", count(s.Failed, "file")))
}

// take prints what came of one file.
func (s *addedTree) take(a *app, o client.Outcome) {
	if o.Err != nil {
		s.fail(a, "", o.Name, o.Err)
		return
	}
	s.Added++
	s.Bytes += o.Size
	if o.Status == wire.AckBound {
		s.Bound++
	}
	m := added{Type: "added", Name: o.Name, Digest: o.Digest, Size: o.Size, Status: o.Status}
	s.errFile = cmp.Or(s.errFile, a.result(m, "%s  %s", o.Digest, quote(o.Name)))
}

// fail prints why a file is not added.
func (s *addedTree) fail(a *app, file string, n archive.Name, err error) {
	s.Failed++
	s.only = err
	m := notAdded{Type: "failed", File: file, Name: n, Status: "failed", Detail: err.Error()}
	subject := cmp.Or(file, string(n))
	var conflict *client.ConflictError
	if errors.As(err, &conflict) {
		m.Status = "conflict"
	}
	if a.json {
		s.errFile = cmp.Or(s.errFile, a.message(m))
		return
	}
	a.warn("%s: %v", quote(subject), err)
}

// walk finds the files of a directory.
type walk struct {
	a       *app
	dir     string
	prefix  archive.Name
	items   []client.Item
	bytes   uint64
	skipped uint64 // found, and no item
	sum     addedTree
}

func (w *walk) run(ctx context.Context) error {
	fi, err := os.Stat(w.dir)
	switch {
	case err != nil:
		return err
	case !fi.IsDir():
		return usagef("%s is not a directory", quote(w.dir))
	}
	root := filepath.Clean(w.dir) + string(filepath.Separator) // through a link to it
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			err = w.find(path, d)
		}
		if err != nil {
			w.skip(path, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	w.dropTwins()
	return nil
}

func (w *walk) skip(path string, err error) {
	w.skipped++
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err // the path stands before it
	}
	w.sum.fail(w.a, path, "", err)
}

// find makes an item of a file.
func (w *walk) find(path string, d fs.DirEntry) error {
	switch {
	case d.IsDir():
		return nil
	case !d.Type().IsRegular():
		return errors.New("not a regular file")
	}
	rel, err := filepath.Rel(w.dir, path)
	if err != nil {
		return err
	}
	if w.prefix != "" {
		rel = string(w.prefix) + "/" + rel
	}
	n, changed := archive.NormalizeName(rel)
	if err := n.Check(); err != nil {
		return err
	}
	if changed {
		w.a.say("%s: taken in Unicode normalisation form C", quote(n))
	}
	if fi, err := d.Info(); err == nil {
		w.bytes += uint64(fi.Size())
	}
	w.items = append(w.items, client.Item{Name: n, Open: func() (io.ReadCloser, error) { return openRegular(path) }})
	return nil
}

// openRegular opens a file that was regular when it was found.
func openRegular(path string) (io.ReadCloser, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // not a pipe that nobody writes
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a regular file any more")
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
	slices.SortStableFunc(w.items, func(a, b client.Item) int { return cmp.Compare(a.Name, b.Name) })
	twin := func(i int) bool {
		return i > 0 && w.items[i-1].Name == w.items[i].Name || i+1 < len(w.items) && w.items[i+1].Name == w.items[i].Name
	}
	var keep []client.Item
	for i, it := range w.items {
		if twin(i) {
			w.skipped++
			w.sum.fail(w.a, "", it.Name, errors.New("the name of several files in normalisation form C"))
			continue
		}
		keep = append(keep, it)
	}
	w.items = keep
}
