package cmd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

func (a *app) receiptCommand() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "receipt NAME...",
		Short: "Write receipts, which prove bindings offline",
		Long: `Write the receipt of a name to stdout or a file, or those of several names, one
file each, to a directory. A receipt proves what the name is bound to, to anyone
who has the archive's first roster, with no network: bonafide verify --receipt
checks one, and bonafide-formats(5) shows how to do so by hand. It holds no content.

In a directory, the receipt of docs/a.txt is docs%2Fa.txt.receipt: the name as a
segment of a URL, or its SHA-256 if that is too long. What is there is replaced.

Without a receipt for some of several names, those of the others are written, and
the exit status is 3.`,
		Example: `  bonafide receipt docs/a.txt >a.receipt
  bonafide receipt docs/a.txt docs/b.txt -o receipts/
  bonafide ls -q docs/ | xargs -d '\n' bonafide receipt -o receipts/`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeName(every),
		RunE: func(c *cobra.Command, args []string) error {
			return about("receipt", onlyOne(args), a.receipt(c.Context(), args, out))
		},
	}
	clientFlags(c)
	c.Flags().StringVarP(&out, "output", "o", "", "`file` for the receipt, - for stdout; a directory for several")
	return c
}

// onlyOne returns an argument that stands alone.
func onlyOne(args []string) string {
	if len(args) == 1 {
		return args[0]
	}
	return ""
}

// isDirectory reports whether an output is asked for in a directory.
func isDirectory(out string) bool {
	fi, err := os.Stat(out)
	return strings.HasSuffix(out, string(filepath.Separator)) || err == nil && fi.IsDir()
}

// receipted is what receipt prints.
type receipted struct {
	Kind    string         `json:"kind"`
	Name    archive.Name   `json:"name"`
	Digest  archive.Digest `json:"sha256"`
	Bound   archive.Epoch  `json:"bound"`
	Epoch   archive.Epoch  `json:"epoch"`
	MAS     string         `json:"mas"`
	Receipt string         `json:"receipt"`
}

func (a *app) receipt(ctx context.Context, args []string, out string) error {
	toStdout := out == "" || out == "-"
	switch {
	case toStdout && len(args) > 1, !toStdout && len(args) > 1 && exists(out) && !isDirectory(out):
		return usagef("several receipts need -o DIRECTORY")
	case toStdout && a.json:
		return usagef("with --json the receipt needs -o FILE")
	}
	c, results, err := a.getNames(ctx, args)
	if err != nil {
		return err
	}
	defer c.Close()
	if len(results) == 1 && !isDirectory(out) {
		return a.writeReceipt(results[0], out)
	}
	return a.writeReceipts(results, out)
}

// writeReceipts writes one file each.
func (a *app) writeReceipts(results []client.Result, dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	errs, failed := make([]error, len(results)), uint64(0)
	for i, r := range results {
		if errs[i] = a.writeReceipt(r, filepath.Join(dir, receiptName(r.Name))); errs[i] == nil {
			continue
		}
		failed++
		if len(results) > 1 {
			if err := a.failed(r.Name, errs[i]); err != nil {
				return err
			}
		}
	}
	if failed == 0 || len(errs) == 1 {
		return errs[0]
	}
	return withStatus(exitStatus(allOf(errs)), fmt.Errorf("no receipt of %d of %s", failed, count(uint64(len(errs)), "name")))
}

// writeReceipt writes one receipt to a file or stdout.
func (a *app) writeReceipt(r client.Result, out string) error {
	if r.Err != nil {
		return r.Err
	}
	a.tell(r)
	if out == "" || out == "-" {
		_, err := a.out.Write(r.Receipt.Bytes())
		return err
	}
	if err := saveReceipt(out, r.Receipt); err != nil {
		return err
	}
	m := receipted{"receipt", r.Name, r.Entry.Digest, r.Entry.Epoch, r.Record.Epoch, string(r.Profile), out}
	return a.result(m, "%s  %s: bound in epoch %d, proven as of epoch %d; MAS profile %s; receipt: %s",
		m.Digest, quote(m.Name), m.Bound, m.Epoch, m.MAS, quote(out))
}
