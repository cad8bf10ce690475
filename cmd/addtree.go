package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// addedTree counts what became of the files of a directory.
type addedTree struct {
	Kind    string `json:"kind"`
	Added   uint64 `json:"added"`
	Bound   uint64 `json:"bound"`  // of those, what was bound already
	Bytes   uint64 `json:"bytes"`  // of those
	Failed  uint64 `json:"failed"` // not added
	DryRun  bool   `json:"dry_run,omitempty"`
	only    error  // why the last of those was not
	errFile error  // what kept results from being printed
}

// notAdded says of one file why it was not added.
type notAdded struct {
	Kind   string       `json:"kind"`
	File   string       `json:"file,omitempty"`
	Name   archive.Name `json:"name,omitempty"`
	Status string       `json:"status"`
	Detail string       `json:"detail"`
}

// addTree adds the regular files below dir, each under a prefix and its path there.
func (a *app) addTree(ctx context.Context, g adding, arg, dir string) error {
	return a.addFound(ctx, g, arg, dir, func(w *walk) error { return w.run(ctx, dir) })
}

// addPaths adds files, each under a prefix and its path.
func (a *app) addPaths(ctx context.Context, g adding, paths []string) error {
	if g.pathsFrom != "" {
		var err error
		if paths, err = a.loadPaths(g.pathsFrom, g.null); err != nil {
			return err
		}
	}
	return a.addFound(ctx, g, g.prefix, argOr(paths, 0, ""), func(w *walk) error { return w.paths(ctx, paths, g.recursive) })
}

// addFound adds what find finds.
func (a *app) addFound(ctx context.Context, g adding, arg, what string, find func(*walk) error) error {
	prefix, err := a.parsePrefix(arg)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx, true)
	if err != nil {
		return err
	}
	defer c.Close()
	sum := &addedTree{Kind: "summary", DryRun: g.dry}
	w := a.walk(prefix, func(path string, n archive.Name, err error) { sum.fail(a, path, n, err) })
	w.sizes = a.shows()
	if w.exclude, err = g.excludes(); err != nil {
		return err
	}
	if err := find(w); err != nil {
		return err
	}
	var items []client.Item
	for _, f := range w.files {
		items = append(items, client.Item{Name: f.name, Open: f.open})
	}
	c.Progress = a.treeProgress(c.Roster, "add "+what, "read", w.bytes)
	return a.addItems(ctx, c, items, w.skipped, sum)
}

// addItems adds items, or says what would come of it, after so many files were
// passed over.
func (a *app) addItems(ctx context.Context, c *client.Client, items []client.Item, skipped uint64, sum *addedTree) error {
	add := c.AddEach
	if sum.DryRun {
		add = func(ctx context.Context, items []client.Item, each func(client.Outcome)) (client.AddResult, error) {
			return client.AddResult{}, dryRun(ctx, c, items, each)
		}
	}
	res, err := add(ctx, items, func(o client.Outcome) { sum.take(a, o) })
	for id, err := range res.Failed {
		a.warn("replica %d did not acknowledge all: %v", id, err)
	}
	if err = errors.Join(err, sum.errFile); err != nil {
		return sum.unfinished(uint64(len(items))+skipped, err)
	}
	if err := a.summary(*sum, res); err != nil {
		return err
	}
	return sum.verdict()
}

// unfinished says what is left to do of so many files.
func (s *addedTree) unfinished(n uint64, err error) error {
	n -= min(n, s.Added+s.Failed)
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
	if s.DryRun {
		a.say("%s would be added, %d bound already, %d not; nothing was added", count(s.Added-s.Bound, "file"), s.Bound, s.Failed)
		return a.message(s)
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
	m := added{Kind: "added", Name: o.Name, Digest: o.Digest, Size: o.Size, Status: o.Status}
	s.errFile = cmp.Or(s.errFile, a.result(m, "%s  %s", o.Digest, quote(o.Name)))
}

// fail prints why a file is not added.
func (s *addedTree) fail(a *app, file string, n archive.Name, err error) {
	s.Failed++
	s.only = err
	m := notAdded{Kind: "failed", File: file, Name: n, Status: "failed", Detail: err.Error()}
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
