package cmd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// listingOf is how ls was asked.
type listingOf struct {
	long bool
	at   string // epoch, empty: the newest
}

func (a *app) lsCommand() *cobra.Command {
	var l listingOf
	c := &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List names, proven complete",
		Long: `List the names that begin with PREFIX, in order. The listing is proven complete
as of the epoch it names on stderr: no replica can leave a name out.

With -l, each line has the SHA-256 and size of the content, in bytes, the epoch the
name was bound in, and the name.

With --at, list the names as of an earlier epoch. Replicas keep no old trees: all
names of the archive are fetched, those bound later left out, and the root of the
rest compared with the one that was certified for that epoch. That takes as long as
a listing of everything; if the roots differ, nothing is listed, and the status is 5.
An epoch that is to come ends with status 4.`,
		Example: `  bonafide ls photos/2026/
  bonafide ls -l notes/ | sort -n -k 2
  bonafide ls --at 17 releases/
  bonafide ls --json | jq -r 'select(.kind == "name").sha256'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeName(theFirst),
		RunE: func(c *cobra.Command, args []string) error {
			prefix := argOr(args, 0, "")
			return about("ls", prefix, a.ls(c.Context(), l, prefix))
		},
	}
	clientFlags(c)
	c.Flags().BoolVarP(&l.long, "long", "l", false, "print digest, size and epoch too")
	c.Flags().StringVar(&l.at, "at", "", "list the names as of this `epoch`")
	return c
}

// listed is a name as ls prints it.
type listed struct {
	Kind   string         `json:"kind"`
	Name   archive.Name   `json:"name"`
	Digest archive.Digest `json:"sha256"`
	Size   uint64         `json:"size"`
	Bound  archive.Epoch  `json:"bound"`
	Writer archive.Digest `json:"writer"` // key ID
}

// listing ends what ls prints.
type listing struct {
	Kind  string        `json:"kind"`
	Names int           `json:"names"`
	Epoch archive.Epoch `json:"epoch"`
	Time  time.Time     `json:"time"`
	MAS   string        `json:"mas"`
}

func (a *app) ls(ctx context.Context, l listingOf, prefix string) error {
	p, _ := archive.NormalizeName(prefix)
	if err := archive.CheckPrefix(string(p)); err != nil {
		return err
	}
	if _, err := l.epoch(); err != nil {
		return err
	}
	c, err := a.connect(ctx, false)
	if err != nil {
		return err
	}
	defer c.Close()
	names := 0
	w := bufio.NewWriter(a.out)
	defer w.Flush()
	rec, err := a.list(ctx, c, l, string(p), func(n archive.Name, e archive.Entry) error {
		names++
		return a.listEntry(w, n, e, l.long)
	})
	if flushed := w.Flush(); flushed != nil {
		return flushed
	}
	if rec.Epoch > 0 && (err == nil || names > 0) {
		profile := c.Roster.Profile()
		a.say("%s, complete as of epoch %d of %s; MAS profile %s", count(uint64(names), "name"), rec.Epoch, clock(rec.Time), profile)
		err = errors.Join(err, a.message(listing{"listing", names, rec.Epoch, rec.Time, string(profile)}))
	}
	return err
}

// epoch returns the epoch to list.
func (l listingOf) epoch() (archive.Epoch, error) {
	if l.at == "" {
		return 0, nil
	}
	e, err := strconv.ParseUint(l.at, 10, 64)
	if err != nil || e == 0 {
		return 0, usagef("--at %s: want the number of an epoch, from 1", quote(l.at))
	}
	return archive.Epoch(e), nil
}

// list lists the newest epoch's names, or those of an earlier one.
func (a *app) list(ctx context.Context, c *client.Client, l listingOf, prefix string, fn func(archive.Name, archive.Entry) error) (archive.EpochRecord, error) {
	if l.at == "" {
		return c.List(ctx, prefix, fn)
	}
	at, err := l.epoch()
	if err != nil {
		return archive.EpochRecord{}, err
	}
	a.say("rebuilding epoch %d from all names, to compare it with what was certified", at)
	each, end := a.counting(fmt.Sprintf("rebuild epoch %d", at))
	rec, err := c.ListAt(ctx, at, prefix, each, func(n archive.Name, e archive.Entry) error {
		end()
		return fn(n, e)
	})
	end()
	if errors.Is(err, client.ErrNotYet) {
		return rec, withHint(withStatus(exitAbsent, fmt.Errorf("epoch %d: %w", at, err)), "bonafide status shows the newest epoch")
	}
	return rec, err
}

func (a *app) listEntry(w *bufio.Writer, n archive.Name, e archive.Entry, long bool) error {
	text := string(n)
	if isTerminal(a.out) {
		text = plain(text)
	}
	switch {
	case a.json:
		text = encode(listed{"name", n, e.Digest, e.Size, e.Epoch, archive.Digest(e.Writer)})
	case long:
		text = e.Digest.String() + "  " + pad(e.Size, 12) + "  " + pad(uint64(e.Epoch), 6) + "  " + text
	}
	_, err := w.WriteString(text + "\n")
	return err
}
