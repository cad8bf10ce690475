package cmd

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := &treeComparison{tally: a.newTally(v), dir: dir, prefix: prefix, exclude: w.exclude}
	t.names = listAhead(ctx, c, t.under())
	if err := w.run(ctx, dir); err != nil {
		return err
	}
	t.here = w.files
	var end func()
	t.told, end = a.reading("verify "+dir, w.bytes)
	err = t.run(ctx)
	end()
	if err = errors.Join(err, t.addAll(odd)); ctx.Err() != nil {
		return ctx.Err()
	}
	return t.end(c, t.rec, err)
}

// treeComparison is files of a directory on their way through verifyTree.
type treeComparison struct {
	*tally
	dir     string
	prefix  archive.Name
	exclude excludes
	names   *aheadListing
	here    []found // files, by name, that no listed name has reached
	unknown []found // those that the listing has passed
	missing []*comparison
	rec     archive.EpochRecord // of the listing
}

// under is what the names begin with.
func (t *treeComparison) under() string {
	if t.prefix == "" {
		return ""
	}
	return string(t.prefix) + "/"
}

// run compares files while the listing comes in. That they are unknown to the
// archive it says only if the listing is whole and current.
func (t *treeComparison) run(ctx context.Context) error {
	err := t.compare(ctx, len(t.here), t.list)
	err = errors.Join(err, t.addAll(t.missing))
	for _, f := range append(t.unknown, t.here...) {
		if err == nil {
			err = t.add(unknown(f.path, f.name))
		}
	}
	return err
}

// list yields the names that have a file here. Names and files come in one order.
func (t *treeComparison) list(yield func(*comparison)) error {
	for l := range t.names.all {
		for len(t.here) > 0 && t.here[0].name < l.name {
			t.unknown, t.here = append(t.unknown, t.here[0]), t.here[1:]
		}
		if len(t.here) > 0 && t.here[0].name == l.name {
			yield(against(t.here[0].path, l.name, l.entry))
			t.here = t.here[1:]
			continue
		}
		rel := filepath.FromSlash(strings.TrimPrefix(string(l.name), t.under()))
		if !t.exclude.leaveOut(rel) {
			gone := against(filepath.Join(t.dir, rel), l.name, l.entry)
			gone.Status = isMissing
			t.missing = append(t.missing, gone)
		}
	}
	t.rec = t.names.rec
	return t.names.err
}

// aheadListing is a proven listing that comes in while something else is done.
type aheadListing struct {
	all chan listedName     // closed at its end; then the others are set
	rec archive.EpochRecord // as of which it is proven
	err error
}

type listedName struct {
	name  archive.Name
	entry archive.Entry
}

// namesAhead is how many names come in before they are asked for: two pages.
const namesAhead = 2 * wire.MaxPage

// listAhead begins to list all names under a prefix: client.List. It ends with ctx.
func listAhead(ctx context.Context, c *client.Client, under string) *aheadListing {
	l := &aheadListing{all: make(chan listedName, namesAhead)}
	go func() {
		defer close(l.all)
		l.rec, l.err = c.List(ctx, under, func(n archive.Name, e archive.Entry) error {
			select {
			case l.all <- listedName{n, e}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return l
}
