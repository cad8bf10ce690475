package cmd

import (
	"context"
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

func (a *app) addCommand() *cobra.Command {
	var wait, recursive bool
	var receipt string
	c := &cobra.Command{
		Use:   "add [-r] NAME FILE|DIR|-",
		Short: "Bind a name to a file's content, for ever",
		Long: `Upload a file, or what comes on stdin, to all replicas and submit its name. Done
when 2f+1 replicas have acknowledged it: the name is then pending, and the next
update phase binds it, unless another Add of the same name wins.

With --wait, stay until the name is bound and keep the receipt, which proves the
binding offline. Running it again is safe.

With -r, add all regular files below a directory, each under NAME, a slash and
its path there; if NAME is empty, under its path alone. What is not a regular
file is left out and reported, and so are files that cannot be read, change
while they are read, or whose names are not valid, the same as another's once
normalised, or bound to other content. The others are added, and the exit status
is 3; if one file was left out and none added, that of what kept it out. If one
name is outside the prefixes that the writer may write, nothing is added.
Running it again uploads nothing twice: it goes on where it was interrupted.`,
		Example: `  bonafide add notes/a.txt a.txt --wait
  bonafide add -r photos/2026 ~/Pictures/2026`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if recursive {
				return about("add -r", args[1], a.addTree(c.Context(), args[0], args[1]))
			}
			return about("add", args[0], a.add(c.Context(), args[0], args[1], wait || receipt != "", receipt))
		},
	}
	clientFlags(c)
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "add the files below a directory")
	c.Flags().BoolVar(&wait, "wait", false, "wait until the name is bound")
	c.Flags().StringVar(&receipt, "receipt", "", "`file` for the receipt; implies --wait (default: kept in the state directory)")
	c.MarkFlagsMutuallyExclusive("recursive", "wait")
	c.MarkFlagsMutuallyExclusive("recursive", "receipt")
	return c
}

// added is what add prints.
type added struct {
	Type    string         `json:"message_type"`
	Name    archive.Name   `json:"name"`
	Digest  archive.Digest `json:"sha256"`
	Size    uint64         `json:"size"`
	Status  string         `json:"status"`
	Due     *time.Time     `json:"due,omitempty"`
	Epoch   archive.Epoch  `json:"epoch,omitempty"`
	MAS     string         `json:"mas,omitempty"`
	Receipt string         `json:"receipt,omitempty"`
}

func (a *app) add(ctx context.Context, arg, file string, wait bool, receipt string) error {
	n, err := a.parseName(arg)
	if err != nil {
		return err
	}
	c, err := a.connect(true)
	if err != nil {
		return err
	}
	defer c.Close()
	open, end, err := a.source(ctx, file)
	if err != nil {
		return err
	}
	defer end()
	return a.addItem(ctx, c, client.Item{Name: n, Open: open}, wait, receipt)
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
		m := added{Type: "added", Name: b.Name, Digest: b.Digest, Size: b.Size, Status: res.Status}
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
			Type: "added", Name: r.Name, Digest: r.Entry.Digest, Size: r.Entry.Size, Status: wire.AckBound,
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
