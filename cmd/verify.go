package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
)

func (a *app) verifyCommand() *cobra.Command {
	var receipt string
	c := &cobra.Command{
		Use:   "verify NAME FILE | --receipt RECEIPT [FILE]",
		Short: "Check a file against the archive, or a receipt offline",
		Long: `Check that a file is what a name is bound to: verify NAME FILE asks the archive.
verify --receipt RECEIPT checks a receipt, and with FILE that the file is what
the receipt is about. That needs no network, only the archive's first roster.`,
		Args: func(_ *cobra.Command, args []string) error {
			if receipt != "" && len(args) > 1 || receipt == "" && len(args) != 2 {
				return errors.New("want NAME FILE, or --receipt RECEIPT [FILE]")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if receipt == "" {
				return about("verify", args[0], a.verify(c.Context(), args[0], args[1]))
			}
			return about("verify", receipt, a.verifyReceipt(c.Context(), receipt, args))
		},
	}
	clientFlags(c)
	c.Flags().StringVar(&receipt, "receipt", "", "`file` with the receipt to check, offline")
	return c
}

func (a *app) verify(ctx context.Context, arg, file string) error {
	n, err := a.parseName(arg)
	if err != nil {
		return err
	}
	c, err := a.connect(false)
	if err != nil {
		return err
	}
	defer c.Close()
	have, err := a.describe(ctx, file)
	if err != nil {
		return err
	}
	r, err := lookup(ctx, c, n)
	if err != nil {
		return err
	}
	if err := same(r.Entry.Content, have, file); err != nil {
		return err
	}
	a.tell(r)
	m := gotOf(r)
	m.Type = "verified"
	return a.result(m, "%s  %s: as bound in epoch %d, proven as of epoch %d of %s; MAS profile %s",
		m.Digest, quote(n), m.Bound, m.Epoch, clock(m.Time), m.MAS)
}

// describe hashes a file or stdin.
func (a *app) describe(ctx context.Context, file string) (archive.Content, error) {
	open, end, err := a.source(ctx, file)
	if err != nil {
		return archive.Content{}, err
	}
	defer end()
	r, err := open()
	if err != nil {
		return archive.Content{}, err
	}
	defer r.Close()
	h := archive.NewContentHasher()
	if _, err := io.Copy(h, &stoppable{ctx, r}); err != nil {
		return archive.Content{}, err
	}
	return h.Content(), nil
}

// stoppable is a reader that ends with its context.
type stoppable struct {
	ctx context.Context
	r   io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}

func same(want, have archive.Content, file string) error {
	if want == have {
		return nil
	}
	return withHint(fmt.Errorf("%w: %s has sha256 %s, the name is bound to %s", archive.ErrIntegrity, quote(file), have.Digest, want.Digest),
		"the file is not what was added under this name")
}

// checked is what verify prints of a receipt.
type checked struct {
	Type    string         `json:"message_type"`
	Name    archive.Name   `json:"name"`
	Digest  archive.Digest `json:"sha256"`
	Size    uint64         `json:"size"`
	Bound   archive.Epoch  `json:"bound"`
	Epoch   archive.Epoch  `json:"epoch"`
	Time    time.Time      `json:"time"`
	Archive archive.Digest `json:"archive"`
	MAS     string         `json:"mas"`
	File    string         `json:"file,omitempty"`
}

func (a *app) verifyReceipt(ctx context.Context, receipt string, files []string) error {
	r, err := a.roster()
	if err != nil {
		return err
	}
	b, err := readFile(receipt, archive.MaxReceipt)
	if err != nil {
		return unreadable(err)
	}
	rc, err := archive.ParseReceipt(b)
	if err != nil {
		return err
	}
	entry, rec, err := rc.Verify(r)
	if err != nil {
		return err
	}
	m := checked{
		Type: "receipt", Name: rc.Name, Digest: entry.Digest, Size: entry.Size, Bound: entry.Epoch,
		Epoch: rec.Epoch, Time: rec.Time, Archive: rec.Archive, MAS: string(r.Profile()),
	}
	for _, file := range files {
		have, err := a.describe(ctx, file)
		if err != nil {
			return err
		}
		if err := same(entry.Content, have, file); err != nil {
			return err
		}
		m.File = file
	}
	return a.result(m, "%s  %s: bound in epoch %d, proven as of epoch %d of %s, by archive %s; MAS profile %s",
		m.Digest, quote(m.Name), m.Bound, m.Epoch, clock(m.Time), m.Archive, m.MAS)
}

// unreadable gives a file that was named but is not there its status.
func unreadable(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return withStatus(exitUsage, err)
	}
	return err
}
