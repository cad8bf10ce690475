package cmd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// getting is how get was asked.
type getting struct {
	out, receipt string
	recursive    bool
	excluding
}

func (a *app) getCommand() *cobra.Command {
	var g getting
	c := &cobra.Command{
		Use:   "get NAME... | -r PREFIX DIR",
		Short: "Get the contents of names",
		Long: `Ask all replicas for a name, believe what f+1 of them prove, and fetch the
content from whichever serves it. Nothing is written before its digest is right:
to stdout, or to a file that is there whole or not at all. Blocks of 1 MiB are
checked as they come, and a damaged one is fetched from another replica. What an
interrupted get has fetched stays beside the file, as .bonafide-part-DIGEST, and
the next get of that content goes on from there.

The contents of several names go to stdout one after the other, if all are to be
had, or with -o DIR each
to its name below that directory. With -r, get all names below PREFIX, one proven
listing of them (if it is empty, of all), each to its path below PREFIX in DIR:
what add -r PREFIX has added. Directories are made as needed, and no name and no
link leads out of DIR. What is there with the right content is not fetched again,
so that an interrupted get -r goes on; other regular files in the way are replaced.
A name that cannot be a file, as where another needs a directory or a segment is
longer than the file system takes, is reported, and the others are got.

A name that is proven absent ends with status 4; one that is only pending is
absent too. Answers older than what this client has seen before are refused
with status 7. If some of several names are not got, the status is 3.`,
		Example: `  bonafide get notes/a.txt
  bonafide get notes/a.txt -o a.txt --receipt a.receipt
  bonafide get notes/a.txt notes/b.txt -o here/
  bonafide get -r photos/2026 ~/Pictures/2026 --exclude '*.tmp'`,
		Args:              func(_ *cobra.Command, args []string) error { return g.check(len(args)) },
		ValidArgsFunction: a.completeName(func(i int) bool { return i == 0 || !g.recursive }),
		RunE:              func(c *cobra.Command, args []string) error { return a.getBy(c.Context(), g, args) },
	}
	clientFlags(c)
	f := c.Flags()
	f.BoolVarP(&g.recursive, "recursive", "r", false, "get all names below a prefix")
	f.StringVarP(&g.out, "output", "o", "", "`file` for the content, - for stdout; a directory, if it is one or ends with /")
	f.StringVar(&g.receipt, "receipt", "", "`file` for the receipt; of several, a directory")
	g.excluding.flags(c)
	c.MarkFlagsMutuallyExclusive("recursive", "output")
	return c
}

// check checks how many arguments there are.
func (g getting) check(args int) error {
	switch {
	case g.recursive && args != 2:
		return errors.New("want -r PREFIX DIR")
	case args == 0:
		return errors.New("want NAME")
	case !g.recursive && len(g.patterns)+len(g.files) > 0:
		return errors.New("--exclude is of -r")
	}
	return nil
}

func (a *app) getBy(ctx context.Context, g getting, args []string) error {
	switch {
	case g.recursive:
		return about("get -r", args[0], a.getTree(ctx, g, args[0], args[1]))
	case len(args) > 1 || g.out != "-" && isDirectory(g.out):
		return about("get", onlyOne(args), a.getMany(ctx, g, args))
	}
	return about("get", args[0], a.get(ctx, args[0], g.out, g.receipt))
}

// getMany gets several names into a directory, each to its name there, or to
// stdout.
func (a *app) getMany(ctx context.Context, g getting, args []string) error {
	toStdout := g.out == "" || g.out == "-"
	if a.json && toStdout {
		return usagef("with --json the contents need -o DIR")
	}
	c, results, err := a.getNames(ctx, args)
	if err != nil {
		return err
	}
	defer c.Close()
	t := &gotTree{Kind: "summary", Epoch: results[0].Record.Epoch, MAS: string(c.Roster.Profile()), dir: g.out, receipt: g.receipt}
	var all []*fetching
	for _, r := range results {
		all = append(all, &fetching{Result: r, rel: filepath.FromSlash(string(r.Name))})
	}
	if toStdout {
		return a.printAll(ctx, c, all, t)
	}
	return a.fetchAll(ctx, c, all, t)
}

// printAll writes contents to stdout, one after the other, if all are to be had.
func (a *app) printAll(ctx context.Context, c *client.Client, all []*fetching, t *gotTree) error {
	for _, f := range all {
		if t.errs = append(t.errs, f.Result.Err); f.Result.Err != nil {
			t.Failed++
			if err := a.failed(f.Name, f.Result.Err); err != nil {
				return err
			}
		}
	}
	if err := t.verdict(); err != nil {
		return err
	}
	for _, f := range all {
		if err := a.printOne(ctx, c, f, t.receipt); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printOne(ctx context.Context, c *client.Client, f *fetching, receipts string) error {
	if err := a.fetch(ctx, c, f.Entry.Content, ""); err != nil {
		return err
	}
	a.tell(f.Result)
	if receipts == "" {
		return nil
	}
	if err := os.MkdirAll(receipts, 0o777); err != nil {
		return err
	}
	return saveReceipt(filepath.Join(receipts, receiptName(f.Name)), f.Receipt)
}

// got is what get prints.
type got struct {
	Kind     string         `json:"kind"`
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
		Kind: "got", Name: r.Name, Digest: r.Entry.Digest, Size: r.Entry.Size, Bound: r.Entry.Epoch,
		Epoch: r.Record.Epoch, Time: r.Record.Time, Overdue: r.Overdue, MAS: string(r.Profile), Warnings: r.Warnings,
	}
}

func (a *app) get(ctx context.Context, arg, out, receipt string) error {
	if a.json && (out == "" || out == "-") {
		return usagef("with --json the content needs -o FILE")
	}
	c, results, err := a.getNames(ctx, []string{arg})
	if err != nil {
		return err
	}
	defer c.Close()
	r := results[0]
	if r.Err != nil {
		return r.Err
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
		quote(r.Name), count(r.Entry.Size, "byte"), r.Entry.Epoch, r.Record.Epoch, clock(r.Record.Time), r.Profile)
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
