package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// fetchers is how many contents are fetched at once. Most of the time each waits
// for a replica or the disk.
const fetchers = 8

// receiptBatch is how many names are looked up at once for their receipts, each
// with a proof.
const receiptBatch = 1000

// fetching is one name on its way into a directory.
type fetching struct {
	client.Result
	rel  string // its path there
	here bool   // its content was there already
	err  error
}

// gotTree is how many names get has fetched, and to where.
type gotTree struct {
	Kind    string        `json:"kind"`
	Got     uint64        `json:"got"`
	Here    uint64        `json:"here"`  // of those, what was there already
	Bytes   uint64        `json:"bytes"` // of those
	Failed  uint64        `json:"failed"`
	Epoch   archive.Epoch `json:"epoch"` // as of which the names are proven
	MAS     string        `json:"mas"`
	dir     string
	receipt string // directory for receipts; none if empty
	errs    []error
}

// getTree gets all names below a prefix into a directory, each to its path there.
func (a *app) getTree(ctx context.Context, g getting, arg, dir string) error {
	prefix, err := a.parsePrefix(arg)
	if err != nil {
		return err
	}
	exclude, err := g.excludes()
	if err != nil {
		return err
	}
	c, err := a.connect(ctx, false)
	if err != nil {
		return err
	}
	defer c.Close()
	all, rec, err := listBelow(ctx, c, prefix, exclude)
	switch {
	case err != nil && !errors.Is(err, client.ErrStale): // which leaves what is listed right
		return err
	case err == nil && len(all) == 0:
		return withStatus(exitAbsent, fmt.Errorf("no name below it, proven as of epoch %d", rec.Epoch))
	}
	if g.receipt != "" {
		if err := lookupAll(ctx, c, all); err != nil {
			return err
		}
	}
	t := &gotTree{Kind: "summary", Epoch: rec.Epoch, MAS: string(c.Roster.Profile()), dir: dir, receipt: g.receipt}
	return cmp.Or(a.fetchAll(ctx, c, all, t), err)
}

// listBelow lists what is below a prefix and not left out. It may return
// client.ErrStale beside the names.
func listBelow(ctx context.Context, c *client.Client, prefix archive.Name, exclude excludes) ([]*fetching, archive.EpochRecord, error) {
	var all []*fetching
	under := ""
	if prefix != "" {
		under = string(prefix) + "/"
	}
	rec, err := c.List(ctx, under, func(n archive.Name, e archive.Entry) error {
		rel := filepath.FromSlash(strings.TrimPrefix(string(n), under))
		if !exclude.leaveOut(rel) {
			all = append(all, &fetching{Result: client.Result{Name: n, Entry: e}, rel: rel})
		}
		return nil
	})
	for _, f := range all {
		f.Record = rec
	}
	return all, rec, err
}

// lookupAll looks up names that are bound, so that there is a receipt of each.
func lookupAll(ctx context.Context, c *client.Client, all []*fetching) error {
	for len(all) > 0 {
		batch := all[:min(receiptBatch, len(all))]
		all = all[len(batch):]
		var names []archive.Name
		for _, f := range batch {
			names = append(names, f.Name)
		}
		results, err := c.Get(ctx, names...)
		if err != nil {
			return err
		}
		for i, r := range results {
			batch[i].Result = r
		}
	}
	return nil
}

// fetchAll brings contents into a directory, which it makes. It ends with the
// names that failed, and why each did.
func (a *app) fetchAll(ctx context.Context, c *client.Client, all []*fetching, t *gotTree) error {
	for _, dir := range []string{t.dir, t.receipt} {
		if err := os.MkdirAll(cmp.Or(dir, "."), 0o777); err != nil {
			return err
		}
	}
	root, err := os.OpenRoot(t.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	total := uint64(0)
	for _, f := range all {
		total += f.Entry.Size
	}
	shadow(all)
	c.Progress = a.treeProgress(c.Roster, "get "+t.dir, "fetch", total)
	err = inOrderBy(fetchers, len(all), eachOf(all), func(f *fetching) { f.run(ctx, c, root) }, func(f *fetching) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return t.take(a, f)
	})
	if err != nil {
		return err
	}
	a.say("%s here, %d of them already, %d not; %d bytes; proven as of epoch %d; MAS profile %s",
		count(t.Got, "name"), t.Here, t.Failed, t.Bytes, t.Epoch, t.MAS)
	if err := a.message(t); err != nil {
		return err
	}
	return t.verdict()
}

// shadow fails each name that would lie below a file of another: both can be bound,
// and only one can be here.
func shadow(all []*fetching) {
	files := make(map[string]bool)
	for _, f := range all {
		files[f.rel] = f.Result.Err == nil
	}
	for _, f := range all {
		for dir := filepath.Dir(f.rel); dir != "."; dir = filepath.Dir(dir) {
			if files[dir] {
				f.err = fmt.Errorf("%s is a file, not a directory", quote(dir))
			}
		}
	}
}

// run brings one content into its place, unless it is there.
func (f *fetching) run(ctx context.Context, c *client.Client, root *os.Root) {
	f.err = cmp.Or(f.Result.Err, f.err)
	if f.err != nil || ctx.Err() != nil {
		return
	}
	if f.here = holds(ctx, root, f.rel, f.Entry.Content); !f.here {
		f.err = pathless(c.FetchIn(ctx, f.Entry.Content, root, f.rel))
	}
}

// holds reports whether a path in root is a regular file with a content.
func holds(ctx context.Context, root *os.Root, path string, content archive.Content) bool {
	fi, err := root.Lstat(path)
	if err != nil || !fi.Mode().IsRegular() || uint64(fi.Size()) != content.Size {
		return false
	}
	file, err := root.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	have, err := hashOf(ctx, file)
	return err == nil && have.of(content)
}

// take counts and prints what came of one name, and writes its receipt.
func (t *gotTree) take(a *app, f *fetching) error {
	m := gotOf(f.Result)
	m.Output, m.MAS = filepath.Join(t.dir, f.rel), t.MAS
	if f.err == nil && t.receipt != "" {
		m.Receipt = filepath.Join(t.receipt, receiptName(f.Name))
		f.err = saveReceipt(m.Receipt, f.Receipt)
	}
	if t.errs = append(t.errs, f.err); f.err != nil {
		t.Failed++
		return a.failed(f.Name, f.err)
	}
	a.tell(f.Result)
	t.Got++
	t.Bytes += f.Entry.Size
	if f.here {
		t.Here++
	}
	return a.result(m, "%s  %s", m.Digest, m.Output)
}

// failed prints why nothing came of one of many names.
func (a *app) failed(n archive.Name, err error) error {
	if a.json {
		return a.message(notAdded{Kind: "failed", Name: n, Status: "failed", Detail: err.Error()})
	}
	a.warn("%s: %v", quote(n), err)
	return nil
}

// verdict is nil if every name was got.
func (t *gotTree) verdict() error {
	if t.Failed == 0 {
		return nil
	}
	if len(t.errs) == 1 {
		return t.errs[0]
	}
	return withStatus(exitStatus(allOf(t.errs)), fmt.Errorf("%d of %s not got", t.Failed, count(uint64(len(t.errs)), "name")))
}
