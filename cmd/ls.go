package cmd

import (
	"bufio"
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
)

func (a *app) lsCommand() *cobra.Command {
	var long bool
	c := &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List names, proven complete",
		Long: `List the names that begin with PREFIX, in order. The listing is proven complete
as of the epoch it names on stderr: no replica can leave a name out.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			prefix := ""
			if len(args) > 0 {
				prefix = args[0]
			}
			return about("ls", prefix, a.ls(c.Context(), prefix, long))
		},
	}
	clientFlags(c)
	c.Flags().BoolVarP(&long, "long", "l", false, "print digest, size and epoch too")
	return c
}

// listed is a name as ls prints it.
type listed struct {
	Type   string         `json:"message_type"`
	Name   archive.Name   `json:"name"`
	Digest archive.Digest `json:"sha256"`
	Size   uint64         `json:"size"`
	Bound  archive.Epoch  `json:"bound"`
}

// listing ends what ls prints.
type listing struct {
	Type  string        `json:"message_type"`
	Names int           `json:"names"`
	Epoch archive.Epoch `json:"epoch"`
	Time  time.Time     `json:"time"`
	MAS   string        `json:"mas"`
}

func (a *app) ls(ctx context.Context, prefix string, long bool) error {
	p, _ := archive.NormalizeName(prefix)
	if err := archive.CheckPrefix(string(p)); err != nil {
		return err
	}
	c, err := a.connect(false)
	if err != nil {
		return err
	}
	defer c.Close()
	names := 0
	w := bufio.NewWriter(a.out)
	defer w.Flush()
	rec, err := c.List(ctx, string(p), func(n archive.Name, e archive.Entry) error {
		names++
		return a.listEntry(w, n, e, long)
	})
	if flushed := w.Flush(); flushed != nil {
		return flushed
	}
	if rec.Epoch > 0 {
		profile := c.Roster.Profile()
		a.say("%s, complete as of epoch %d of %s; MAS profile %s", count(uint64(names), "name"), rec.Epoch, clock(rec.Time), profile)
		err = errors.Join(err, a.message(listing{"listing", names, rec.Epoch, rec.Time, string(profile)}))
	}
	return err
}

func (a *app) listEntry(w *bufio.Writer, n archive.Name, e archive.Entry, long bool) error {
	text := string(n)
	if isTerminal(a.out) {
		text = plain(text)
	}
	switch {
	case a.json:
		text = encode(listed{"name", n, e.Digest, e.Size, e.Epoch})
	case long:
		text = e.Digest.String() + "  " + pad(e.Size, 12) + "  " + pad(uint64(e.Epoch), 6) + "  " + text
	}
	_, err := w.WriteString(text + "\n")
	return err
}
