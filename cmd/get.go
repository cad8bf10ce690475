package cmd

import (
	"bytes"
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

func (a *app) getCommand() *cobra.Command {
	var out, receipt string
	c := &cobra.Command{
		Use:   "get NAME",
		Short: "Get the content of a name",
		Long: `Ask all replicas for a name, believe what f+1 of them prove, and fetch the
content from whichever serves it. Nothing is written before its digest is right:
to stdout, or to a file that is there whole or not at all. Blocks of 1 MiB are
checked as they come, and a damaged one is fetched from another replica. What an
interrupted get has fetched stays beside the file, as .bonafide-part-DIGEST, and
the next get of that content goes on from there.

A name that is proven absent ends with status 4; one that is only pending is
absent too. Answers older than what this client has seen before are refused
with status 7.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return about("get", args[0], a.get(c.Context(), args[0], out, receipt))
		},
	}
	clientFlags(c)
	c.Flags().StringVarP(&out, "output", "o", "", "`file` for the content, - for stdout")
	c.Flags().StringVar(&receipt, "receipt", "", "`file` for the receipt")
	return c
}

// got is what get prints.
type got struct {
	Type     string         `json:"message_type"`
	Name     archive.Name   `json:"name"`
	Digest   archive.Digest `json:"sha256"`
	Size     uint64         `json:"size"`
	Bound    archive.Epoch  `json:"bound"` // the epoch the name was bound in
	Epoch    archive.Epoch  `json:"epoch"` // as of which that is proven
	Time     time.Time      `json:"time"`
	Overdue  bool           `json:"overdue"`
	MAS      string         `json:"mas"`
	Output   string         `json:"output,omitempty"`
	Receipt  string         `json:"receipt,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
}

func gotOf(r client.Result) got {
	return got{
		Type: "got", Name: r.Name, Digest: r.Entry.Digest, Size: r.Entry.Size, Bound: r.Entry.Epoch,
		Epoch: r.Record.Epoch, Time: r.Record.Time, Overdue: r.Overdue, MAS: string(r.Profile), Warnings: r.Warnings,
	}
}

func (a *app) get(ctx context.Context, arg, out, receipt string) error {
	n, err := a.parseName(arg)
	if err != nil {
		return err
	}
	if a.json && (out == "" || out == "-") {
		return usagef("with --json the content needs -o FILE")
	}
	c, err := a.connect(false)
	if err != nil {
		return err
	}
	defer c.Close()
	r, err := lookup(ctx, c, n)
	if err != nil {
		return err
	}
	if err := a.fetch(ctx, c, r.Entry.Content, out); err != nil {
		return err
	}
	if receipt != "" {
		if err := saveReceipt(receipt, r.Receipt); err != nil {
			return err
		}
	}
	a.tell(r)
	m := gotOf(r)
	m.Output, m.Receipt = out, receipt
	a.say("%s: %s, bound in epoch %d, proven as of epoch %d of %s; MAS profile %s",
		quote(n), count(r.Entry.Size, "byte"), r.Entry.Epoch, r.Record.Epoch, clock(r.Record.Time), r.Profile)
	return a.message(m)
}

// fetch brings the content to a file or to stdout.
func (a *app) fetch(ctx context.Context, c *client.Client, content archive.Content, out string) error {
	switch {
	case out != "" && out != "-":
		return c.FetchFile(ctx, content, out)
	case out == "" && isTerminal(a.out):
		return c.Fetch(ctx, content, textOnly{a.out})
	}
	return c.Fetch(ctx, content, a.out)
}

// textOnly keeps from a terminal what could steer it.
type textOnly struct{ w io.Writer }

func (t textOnly) Write(b []byte) (int, error) {
	if bytes.IndexFunc(b, steers) >= 0 {
		return 0, withHint(usagef("the content is not plain text, and stdout is a terminal"), "-o FILE, or -o - to print it all the same")
	}
	return t.w.Write(b)
}

func steers(r rune) bool {
	return r < 0x20 && r != '\n' && r != '\t' && r != '\r' || r >= 0x7f && r < 0xa0
}
