package cmd

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// verifyTree compares the files below dir with the names below a prefix.
func (a *app) verifyTree(ctx context.Context, v verifying, dir, arg string) error {
	prefix, err := a.parsePrefix(arg)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx, false)
	if err != nil {
		return err
	}
	defer c.Close()
	var odd []*comparison
	w := a.walk(prefix, func(path string, n archive.Name, err error) { odd = append(odd, passedOver(path, n, err)) })
	if w.exclude, err = v.excludes(); err != nil {
		return err
	}
	w.sizes = a.shows()
	if err := w.run(ctx, dir); err != nil {
		return err
	}
	t := &treeComparison{tally: a.newTally(v), c: c, dir: dir, prefix: prefix, exclude: w.exclude, here: make(map[archive.Name]string)}
	for _, f := range w.files {
		t.here[f.name] = f.path
	}
	var end func()
	t.told, end = a.reading("verify "+dir, w.bytes)
	err = t.run(ctx, w.files)
	end()
	if err = errors.Join(err, t.addAll(odd)); ctx.Err() != nil {
		return ctx.Err()
	}
	return t.end(c, t.rec, err)
}

// treeComparison is files of a directory on their way through verifyTree.
type treeComparison struct {
	*tally
	c       *client.Client
	dir     string
	prefix  archive.Name
	exclude excludes
	here    map[archive.Name]string // paths of files that no listed name has met
	missing []*comparison
	rec     archive.EpochRecord // of the listing
}

// run compares files while the listing comes in. That they are unknown to the
// archive it says only if the listing is whole and current.
func (t *treeComparison) run(ctx context.Context, files []found) error {
	err := t.compare(ctx, len(files), func(yield func(*comparison)) error { return t.list(ctx, yield) })
	err = errors.Join(err, t.addAll(t.missing))
	for _, f := range files {
		if _, left := t.here[f.name]; left && err == nil {
			err = t.add(unknown(f.path, f.name))
		}
	}
	return err
}

// list yields the names that have a file here.
func (t *treeComparison) list(ctx context.Context, yield func(*comparison)) (err error) {
	under := string(t.prefix)
	if under != "" {
		under += "/"
	}
	t.rec, err = t.c.List(ctx, under, func(n archive.Name, e archive.Entry) error {
		path, ok := t.here[n]
		if !ok {
			rel := filepath.FromSlash(strings.TrimPrefix(string(n), under))
			if t.exclude.leaveOut(rel) {
				return nil
			}
			gone := against(filepath.Join(t.dir, rel), n, e)
			gone.Status = isMissing
			t.missing = append(t.missing, gone)
			return nil
		}
		delete(t.here, n)
		yield(against(path, n, e))
		return nil
	})
	return err
}
