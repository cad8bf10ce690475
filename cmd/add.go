package cmd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// adding is how add was asked.
type adding struct {
	recursive, wait, dry, null bool
	receipt, prefix, pathsFrom string
	byPath                     bool // files are named by the paths they are given by
	excluding
}

func (a *app) addCommand() *cobra.Command {
	var g adding
	c := &cobra.Command{
		Use:   "add NAME FILE|- | -r NAME DIR | [-r] --prefix PREFIX PATH... | [-r] --paths-from FILE|-",
		Short: "Bind a name to a file's content, for ever",
		Long: `Upload a file, or what comes on stdin, to all replicas and submit its name. Done
when 2f+1 replicas have acknowledged it: the name is then pending, and the next
update phase binds it, unless another Add of the same name wins.

With --wait, stay until the name is bound and keep the receipt, which proves the
binding offline. Running it again is safe.

With -r, add all regular files below a directory, each under NAME, a slash and
its path there; if NAME is empty, under its path alone. With --prefix, add files,
or with -r directories too, each under PREFIX, a slash and the path as it is given,
without a slash before it; --paths-from takes the paths from a file, one a line.

Hidden files are files like others. What is not a regular file, such as links,
pipes, sockets and devices, is left out and reported, and so are files that cannot
be read, change while they are read, or whose names are not valid, the same as
another's once normalised, or bound to other content. The others are added, and
the exit status is 3; if one file was left out and none added, that of what kept
it out. If one name is outside the prefixes that the writer may write, nothing is
added. Running it again uploads nothing twice: it goes on where it was interrupted.

--exclude leaves out what a pattern of gitignore(5) matches below a directory, and
does not report it: *.o any such name, /build that of the directory itself, tmp/
directories alone, !keep.o takes back what a pattern before it left out. Sets as
[[:alpha:]] are not understood. Patterns of --exclude-from come before all others.

--dry-run reads all files and says what would come of them, and adds nothing. What
is pending counts as new.`,
		Example: `  bonafide add notes/a.txt a.txt --wait
  bonafide add -r photos/2026 ~/Pictures/2026 --exclude '.*' --exclude '*.tmp'
  bonafide add --prefix releases/1.2 *.tar.gz SHA256SUMS
  find . -name '*.log' -mtime +1 -print0 | bonafide add --paths-from - -0 --prefix logs`,
		Args: func(c *cobra.Command, args []string) error {
			g.byPath = c.Flags().Changed("prefix") || g.pathsFrom != ""
			return g.check(len(args))
		},
		ValidArgsFunction: a.completeName(func(i int) bool { return i == 0 && g.prefix == "" && g.pathsFrom == "" }),
		RunE:              func(c *cobra.Command, args []string) error { return a.addBy(c.Context(), g, args) },
	}
	clientFlags(c)
	f := c.Flags()
	f.BoolVarP(&g.recursive, "recursive", "r", false, "add the files below a directory")
	f.StringVar(&g.prefix, "prefix", "", "add files by their paths, below this `name`")
	f.StringVar(&g.pathsFrom, "paths-from", "", "add the files whose paths are in this `file`, - for stdin")
	f.BoolVarP(&g.null, "null", "0", false, "those paths end with NUL, as of find -print0")
	f.BoolVarP(&g.dry, "dry-run", "n", false, "add nothing, and say what would be added")
	f.BoolVar(&g.wait, "wait", false, "wait until the name is bound")
	f.StringVar(&g.receipt, "receipt", "", "`file` for the receipt; implies --wait (default: kept in the state directory)")
	g.excluding.flags(c)
	for _, many := range []string{"recursive", "prefix", "paths-from", "dry-run"} {
		c.MarkFlagsMutuallyExclusive(many, "wait")
		c.MarkFlagsMutuallyExclusive(many, "receipt")
	}
	return c
}

// check checks how many arguments there are.
func (g adding) check(args int) error {
	switch {
	case g.pathsFrom != "" && args > 0:
		return errors.New("want no PATH with --paths-from")
	case g.null && g.pathsFrom == "":
		return errors.New("--null is of --paths-from")
	case g.byPath && g.pathsFrom == "" && args == 0:
		return errors.New("want PATH")
	case !g.byPath && args != 2:
		return errors.New("want NAME FILE, -r NAME DIR or --prefix PREFIX PATH")
	}
	return nil
}

func (a *app) addBy(ctx context.Context, g adding, args []string) error {
	switch {
	case g.byPath:
		return about("add", argOr(args, 0, ""), a.addPaths(ctx, g, args))
	case g.recursive:
		return about("add -r", args[1], a.addTree(ctx, g, args[0], args[1]))
	}
	return about("add", args[0], a.add(ctx, g, args[0], args[1]))
}

// added is what add prints.
type added struct {
	Kind    string         `json:"kind"`
	Name    archive.Name   `json:"name"`
	Digest  archive.Digest `json:"sha256"`
	Size    uint64         `json:"size"`
	Status  string         `json:"status"`
	Due     *time.Time     `json:"due,omitempty"`
	Epoch   archive.Epoch  `json:"epoch,omitempty"`
	MAS     string         `json:"mas,omitempty"`
	Receipt string         `json:"receipt,omitempty"`
}

func (a *app) add(ctx context.Context, g adding, arg, file string) error {
	n, err := a.parseName(arg)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx, true)
	if err != nil {
		return err
	}
	defer c.Close()
	open, end, err := a.source(ctx, file)
	if err != nil {
		return err
	}
	defer end()
	it := client.Item{Name: n, Open: open}
	if g.dry {
		return a.addItems(ctx, c, []client.Item{it}, 0, &addedTree{Kind: "summary", DryRun: true})
	}
	return a.addItem(ctx, c, it, g.wait || g.receipt != "", g.receipt)
}

// addItem adds one name, and stays until it is bound if asked to.
func (a *app) addItem(ctx context.Context, c *client.Client, it client.Item, wait bool, receipt string) error {
	res, err := c.Add(ctx, []client.Item{it})
	if err != nil {
		return err
	}
	for id, err := range res.Failed {
		a.warn("replica %d did not acknowledge: %v", id, err)
	}
	if wait {
		return a.await(ctx, c, res, receipt)
	}
	return a.acknowledged(res)
}

// acknowledged says what is pending and until when.
func (a *app) acknowledged(res client.AddResult) error {
	for _, b := range res.Bindings {
		m := added{Kind: "added", Name: b.Name, Digest: b.Digest, Size: b.Size, Status: res.Status}
		text := fmt.Sprintf("%s  %s: bound already", b.Digest, quote(b.Name))
		if res.Status == wire.AckPending {
			m.Due = &res.Due
			text = fmt.Sprintf("%s  %s: pending; the next update phase is due at %s", b.Digest, quote(b.Name), clock(res.Due))
		}
		if err := a.result(m, "%s", text); err != nil {
			return err
		}
	}
	return nil
}

// await stays until the names are bound, and keeps their receipts.
func (a *app) await(ctx context.Context, c *client.Client, res client.AddResult, receipt string) error {
	if res.Status == wire.AckPending {
		a.say("pending; waiting for the update phase due at %s", clock(res.Due))
	}
	results, err := c.Wait(ctx, res.Bindings)
	if err != nil {
		return err
	}
	for _, r := range results {
		file, err := a.keepReceipt(receipt, r)
		if err != nil {
			return err
		}
		a.tell(r)
		m := added{
			Kind: "added", Name: r.Name, Digest: r.Entry.Digest, Size: r.Entry.Size, Status: wire.AckBound,
			Epoch: r.Entry.Epoch, MAS: string(r.Profile), Receipt: file,
		}
		err = a.result(m, "%s  %s: bound in epoch %d; MAS profile %s; receipt: %s",
			r.Entry.Digest, quote(r.Name), r.Entry.Epoch, r.Profile, quote(file))
		if err != nil {
			return err
		}
	}
	return nil
}

// keepReceipt writes the receipt to file, or where receipts are kept.
func (a *app) keepReceipt(file string, r client.Result) (string, error) {
	if file == "" {
		file = filepath.Join(a.stateDir(), "receipts", r.Receipt.Archive.String(), receiptName(r.Name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return "", err
		}
	}
	return file, saveReceipt(file, r.Receipt)
}

// receiptName makes one file name of a name.
func receiptName(n archive.Name) string {
	const room = 200
	s := url.PathEscape(string(n))
	if len(s) > room {
		s = archive.DigestOf([]byte(n)).String()
	}
	return s + ".receipt"
}
