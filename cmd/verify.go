package cmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// verifying is how verify was asked.
type verifying struct {
	recursive bool
	sums      string
	receipts  []string
	status    bool // print nothing of what was compared
	ignore    bool // what is missing here
	excluding
}

func (a *app) verifyCommand() *cobra.Command {
	var v verifying
	c := &cobra.Command{
		Use:   "verify NAME FILE | -r DIR [PREFIX] | -c SUMS [PREFIX] | --receipt RECEIPT... [FILE...]",
		Short: "Check files against the archive, or receipts offline",
		Long: `Check that a file is what a name is bound to: verify NAME FILE asks the archive.

verify -r DIR PREFIX checks all files below a directory that add -r PREFIX DIR has
added, by one listing of the names below PREFIX (without one, of all), proven
complete; --exclude is as in add. It prints a line for each in the style of sha256sum -c:

    OK       what the name is bound to
    FAILED   other content than that, or a file that cannot be read
    MISSING  bound in the archive, and no such file here
    UNKNOWN  a file here, and proven absent from the archive

verify -c SUMS does so for the files that a list names, as sha256sum writes it or
as the manifest-sha256.txt of a BagIt bag; their names are PREFIX, a slash and the
path in the list. A file is OK only if it, the list and the archive agree. Paths
are relative to the working directory, those of a manifest to its bag.

verify --receipt RECEIPT checks a receipt, and with FILE that the file is what
the receipt is about: one FILE for all receipts, or one for each in their order.
That needs no network, only the archive's first roster.

Ends with status 0 only if there was something to check and all of it is right.
Otherwise the first of these that fits: 5 if a content is another than was bound;
1 if a file cannot be read; 7 if newer names may be missing from the listing, 6 if
it could not be had; 4 if a file is not in the archive, or no name begins with
PREFIX; 3 if files are missing here. With --quiet, lines that say OK are left out;
with --status all are, and nothing but the status tells.`,
		Example: `  bonafide verify notes/a.txt a.txt
  bonafide verify -r ~/Pictures/2026 photos/2026
  bonafide verify -r -q . site || mail -s 'files changed' root </dev/null
  bonafide verify -c SHA256SUMS releases/1.2
  bonafide verify -c bag/manifest-sha256.txt deposits/17
  bonafide verify --receipt a.receipt --receipt b.receipt a.txt b.txt`,
		Args: func(_ *cobra.Command, args []string) error { return v.check(len(args)) },
		ValidArgsFunction: a.completeName(func(i int) bool {
			switch {
			case v.recursive:
				return i == 1
			case len(v.receipts) > 0:
				return false
			}
			return i == 0
		}),
		RunE: func(c *cobra.Command, args []string) error { return a.verifyBy(c.Context(), v, args) },
	}
	clientFlags(c)
	f := c.Flags()
	f.BoolVarP(&v.recursive, "recursive", "r", false, "check the files below a directory")
	f.StringVarP(&v.sums, "check", "c", "", "`file` with the digests and paths to check, - for stdin")
	f.StringArrayVar(&v.receipts, "receipt", nil, "`file` with a receipt to check, offline; can be given again")
	f.BoolVar(&v.status, "status", false, "print nothing of what was checked; the exit status tells")
	f.BoolVar(&v.ignore, "ignore-missing", false, "pass over files that are missing here")
	v.excluding.flags(c)
	c.MarkFlagsMutuallyExclusive("recursive", "check", "receipt")
	c.MarkFlagsMutuallyExclusive("receipt", "ignore-missing")
	return c
}

// check checks how many arguments there are.
func (v verifying) check(args int) error {
	switch n := len(v.receipts); {
	case v.recursive, v.sums != "":
		if v.recursive && args != 1 && args != 2 || !v.recursive && args > 1 {
			return errors.New("want -r DIR [PREFIX] or -c SUMS [PREFIX]")
		}
	case n > 0:
		if args > 1 && args != n {
			return errors.New("want no FILE, one for all receipts or one for each")
		}
	case args != 2:
		return errors.New("want NAME FILE, -r DIR, -c SUMS or --receipt RECEIPT")
	}
	return nil
}

func (a *app) verifyBy(ctx context.Context, v verifying, args []string) error {
	switch {
	case v.recursive:
		return about("verify -r", args[0], a.verifyTree(ctx, v, args[0], argOr(args, 1, "")))
	case v.sums != "":
		return about("verify -c", v.sums, a.verifySums(ctx, v, argOr(args, 0, "")))
	case len(v.receipts) > 0:
		return a.verifyReceipts(ctx, v, args)
	}
	return about("verify", args[0], v.silence(a.verify(ctx, v, args[0], args[1])))
}

// argOr returns argument i, or what stands for it if there is none.
func argOr(args []string, i int, otherwise string) string {
	if i < len(args) {
		return args[i]
	}
	return otherwise
}

// silence keeps what is wrong with a content from being printed, if asked to.
func (v verifying) silence(err error) error {
	if s := exitStatus(err); v.status && (s == exitIntegrity || s == exitAbsent) {
		return &silentError{err}
	}
	return err
}

func (a *app) verify(ctx context.Context, v verifying, arg, file string) error {
	n, err := a.parseName(arg)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx, false)
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
	if v.status {
		return nil
	}
	m := gotOf(r)
	m.Kind = "verified"
	return a.result(m, "%s  %s: as bound in epoch %d, proven as of epoch %d of %s; MAS profile %s",
		m.Digest, quote(n), m.Bound, m.Epoch, clock(m.Time), m.MAS)
}

// describe hashes a file or stdin.
func (a *app) describe(ctx context.Context, file string) (hashed, error) {
	open, end, err := a.source(ctx, file)
	if err != nil {
		return hashed{}, err
	}
	defer end()
	return hashItem(ctx, client.Item{Open: open})
}

func same(want archive.Content, have hashed, file string) error {
	if have.of(want) {
		return nil
	}
	return withHint(fmt.Errorf("%w: %s has sha256 %s, the name is bound to %s", archive.ErrIntegrity, quote(file), have.Digest, want.Digest),
		"the file is not what was added under this name")
}
