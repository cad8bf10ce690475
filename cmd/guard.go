package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// repository is what guard watches: it says what is in it, and whether what once
// was there still is.
type repository interface {
	// head returns all that is to stay, in any order.
	head(ctx context.Context) ([]guarded, error)
	// keeps reports whether the repository, whose head is given, still has what was.
	keeps(ctx context.Context, head map[guarded]bool, was guarded) (bool, error)
}

// guarding is how guard was asked.
type guarding struct {
	kind                string
	check, forget, wait bool
}

func (a *app) guardCommand() *cobra.Command {
	var g guarding
	kinds := map[string]func(string) repository{
		"restic": func(at string) repository { return &resticRepository{tool: tool{a, "restic"}, at: at} },
		"borg":   func(at string) repository { return &borgRepository{tool{a, "borg"}, at} },
		"git":    func(at string) repository { return &gitRepository{tool{a, "git"}, at} },
		"files":  func(at string) repository { return &filesRepository{a, at} },
	}
	c := &cobra.Command{
		Use:   "guard restic|borg|git|files REPO NAME",
		Short: "Notice when another tool's repository is rolled back",
		Long: `Register what a repository of another tool holds, and check later that it still
does. Whoever can write a repository can put back an older state of it, or remove
a snapshot, and restic check, borg check and git fsck find nothing wrong with what
is left. An archive cannot be made to forget what was registered in it.

    restic  snapshots, by restic snapshots; it needs RESTIC_PASSWORD or the like
    borg    archives, by borg list; it needs BORG_PASSPHRASE or the like
    git     branches and tags: a branch may go forward only, and be deleted only
            when another branch or a tag contains it; a tag stays as it is
    files   regular files below a directory: each stays as it is, more may come

The repository is only read, without locks. Each registration is a name of its
own, NAME/TIME in UTC, that tells what has come since the ones before, and the
Merkle root of all; archive/SPEC.md says how. What it tells, anyone can read who
can read the archive: identifiers, times of snapshots, names of archives, refs and
files. Whoever may write names below NAME can register that something is gone, so
that a key of its own is best, with NAME as its prefix.

guard registers, after a check; what was lost since has to be accepted by
--forget, which remains on record. guard --check only checks. It ends with status
7 if anything is gone that was registered, and prints what; 4 if nothing was ever
registered. It tells nothing of the rest: keep running the tool's own check.`,
		Example: `  bonafide guard restic /srv/restic backup/laptop
  bonafide guard restic /srv/restic backup/laptop --check
  bonafide guard git . source/bonafide --wait
  bonafide guard borg ssh://host/./repo backup/server --check || page-someone`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 3 || kinds[args[0]] == nil {
				return errors.New("want restic, borg, git or files, then REPO and NAME")
			}
			return nil
		},
		ValidArgs: []string{"restic", "borg", "git", "files"},
		RunE: func(c *cobra.Command, args []string) error {
			g.kind = args[0]
			return about("guard "+g.kind, args[1], a.guard(c.Context(), g, kinds[g.kind](args[1]), args[2]))
		},
	}
	clientFlags(c)
	c.Flags().BoolVar(&g.check, "check", false, "check only; register nothing")
	c.Flags().BoolVar(&g.forget, "forget", false, "accept what is gone, and register that it is")
	c.Flags().BoolVar(&g.wait, "wait", false, "wait until the registration is bound")
	c.MarkFlagsMutuallyExclusive("check", "forget")
	c.MarkFlagsMutuallyExclusive("check", "wait")
	return c
}

func (a *app) guard(ctx context.Context, g guarding, repo repository, arg string) error {
	n, err := a.parseName(arg)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx, !g.check)
	if err != nil {
		return err
	}
	defer c.Close()
	reg, err := registered(ctx, c, g.kind, n)
	if err != nil {
		return err
	}
	head, err := repo.head(ctx)
	if err != nil {
		return err
	}
	gone, err := reg.gone(ctx, repo, head)
	if err != nil {
		return err
	}
	if len(gone) > 0 || g.check {
		if err := a.judge(g, n, reg, head, gone); err != nil || g.check {
			return err
		}
	}
	return a.register(ctx, c, g, n, reg, head)
}

// lost is what guard prints of what is gone.
type lost struct {
	Kind       string       `json:"kind"`
	Status     string       `json:"status"`
	ID         string       `json:"id"`
	Label      string       `json:"label"`
	Registered archive.Name `json:"registered"` // the last name that tells of it
}

// guardSummary ends what guard prints.
type guardSummary struct {
	Kind       string         `json:"kind"`
	Registered uint64         `json:"registered"` // of what was registered and not forgotten
	Gone       uint64         `json:"gone"`       // of those
	New        uint64         `json:"new"`        // not registered
	Root       archive.Digest `json:"root"`       // of what is there
	RolledBack archive.Name   `json:"rolled_back,omitempty"`
	Epoch      archive.Epoch  `json:"epoch"`
	Time       time.Time      `json:"time"`
	MAS        string         `json:"mas"`
}

// judge prints what is gone and returns nil if nothing is, or that was asked to be
// accepted.
func (a *app) judge(g guarding, n archive.Name, reg *registry, head []guarded, gone []guarded) error {
	if g.check && len(reg.versions) == 0 {
		return withHint(withStatus(exitAbsent, fmt.Errorf("nothing is registered under %s", quote(n))), "bonafide guard without --check registers")
	}
	for _, was := range gone {
		m := lost{"guarded", "GONE", was.id, was.label, reg.items[was]}
		if err := a.result(m, "%s: GONE, registered in %s", was, quote(m.Registered)); err != nil {
			return err
		}
	}
	m := reg.summary(head, gone)
	a.say("%d registered, %d of them gone, %d new; as of epoch %d of %s; MAS profile %s",
		m.Registered, m.Gone, m.New, m.Epoch, clock(m.Time), m.MAS)
	if err := a.message(m); err != nil || len(gone) == 0 || g.forget {
		return err
	}
	return m.verdict()
}

// verdict is the error of a repository that has lost something.
func (m guardSummary) verdict() error {
	err := fmt.Errorf("%d of %d registered are gone", m.Gone, m.Registered)
	if m.RolledBack != "" {
		err = fmt.Errorf("%w: rolled back to what was registered in %s", err, quote(m.RolledBack))
	}
	return withHint(withStatus(exitStale, err), "get them back; if they went rightly, bonafide guard --forget registers that they are gone")
}

func (r *registry) summary(head, gone []guarded) guardSummary {
	m := guardSummary{
		Kind: "summary", Registered: uint64(len(r.items)), Gone: uint64(len(gone)), Root: rootOf(head),
		Epoch: r.rec.Epoch, Time: r.rec.Time, MAS: r.mas,
	}
	for _, h := range head {
		if _, known := r.items[h]; !known {
			m.New++
		}
	}
	for _, v := range r.versions {
		if v.root == m.Root && len(gone) > 0 {
			m.RolledBack = v.name
		}
	}
	return m
}

// gone returns what was registered and is not kept, in order.
func (r *registry) gone(ctx context.Context, repo repository, head []guarded) (gone []guarded, err error) {
	there := make(map[guarded]bool)
	for _, h := range head {
		there[h] = true
	}
	for was := range r.items {
		if there[was] {
			continue
		}
		kept, err := repo.keeps(ctx, there, was)
		if err != nil {
			return nil, err
		}
		if !kept {
			gone = append(gone, was)
		}
	}
	slices.SortFunc(gone, guarded.compare)
	return gone, nil
}

// register adds what differs between what is registered and what is there.
func (a *app) register(ctx context.Context, c *client.Client, g guarding, n archive.Name, reg *registry, head []guarded) error {
	b := reg.next(g.kind, head)
	if b == nil {
		a.say("nothing new; as registered in %s", quote(reg.versions[len(reg.versions)-1].name))
		return nil
	}
	name := below(n, time.Now().UTC().Format("20060102T150405.000Z"))
	open := func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(b))), nil }
	return a.addItem(ctx, c, client.Item{Name: name, Open: open}, g.wait, "")
}
