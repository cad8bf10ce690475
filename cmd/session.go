package cmd

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// clientFlags are those of every command that speaks to an archive.
func clientFlags(c *cobra.Command) {
	c.Flags().String("roster", "", "`file` with the archive's first roster (default: the configuration's)")
}

// roster loads the roster that flags, environment or configuration name, or
// that of the local trial.
func (a *app) roster() (*archive.Roster, error) {
	file := a.v.GetString("roster")
	if file == "" {
		file = filepath.Join(a.localDir(), rosterFile)
		if !exists(file) {
			return nil, withHint(usagef("no archive is configured: neither roster nor local trial"),
				"bonafide serve makes a trial; for another archive set roster in the configuration")
		}
	}
	return loadRoster(file)
}

// connect makes a client of the configured archive. Only a writer needs a key.
func (a *app) connect(ctx context.Context, writer bool) (*client.Client, error) {
	r, err := a.roster()
	if err != nil {
		return nil, err
	}
	var key ed25519.PrivateKey
	if writer {
		if key, err = a.writerKey(ctx); err != nil {
			return nil, err
		}
	}
	return client.New(client.Config{
		Roster: r, Key: key, StateDir: a.stateDir(),
		Timeout: a.v.GetDuration("timeout"), Progress: a.progress(r),
	})
}

func (a *app) writerKey(ctx context.Context) (ed25519.PrivateKey, error) {
	file := a.v.GetString("writer-key")
	if file == "" {
		return nil, withHint(usagef("no writer key is configured"), "bonafide init writer makes one; set writer-key in the configuration")
	}
	return a.loadWriterKey(ctx, file)
}

func (a *app) stateDir() string {
	if dir := a.v.GetString("state"); dir != "" {
		return dir
	}
	return stateHome()
}

// parseName normalises a name, and says so when that changed something.
func (a *app) parseName(s string) (archive.Name, error) {
	n, changed := archive.NormalizeName(s)
	if err := n.Check(); err != nil {
		return n, withHint(fmt.Errorf("%s: %w", quote(s), err),
			"names are UTF-8 with / between segments, none of them empty, . or .., and no control characters")
	}
	if changed {
		a.say("%s: taken in Unicode normalisation form C", quote(n))
	}
	return n, nil
}

// getNames asks the configured archive for names, once each of them is one. The caller
// closes the client, which fetches the contents.
func (a *app) getNames(ctx context.Context, args []string) (*client.Client, []client.Result, error) {
	var names []archive.Name
	for _, arg := range args {
		n, err := a.parseName(arg)
		if err != nil {
			return nil, nil, err
		}
		names = append(names, n)
	}
	c, err := a.connect(ctx, false)
	if err != nil {
		return nil, nil, err
	}
	results, err := c.Get(ctx, names...)
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, results, nil
}

// lookup gets one name.
func lookup(ctx context.Context, c *client.Client, n archive.Name) (client.Result, error) {
	results, err := c.Get(ctx, n)
	if err != nil {
		return client.Result{}, err
	}
	return results[0], results[0].Err
}

// about puts the command and its subject before an error, and gives it a hint.
func about(command string, subject string, err error) error {
	if err == nil {
		return nil
	}
	if subject != "" {
		command += " " + quote(subject)
	}
	hint := adviceOn(err)
	err = fmt.Errorf("%s: %w", command, err)
	if hint == "" || hintOf(err) != "" {
		return err
	}
	return withHint(err, "%s", hint)
}

// adviceOn says what to do about an error of an archive.
func adviceOn(err error) string {
	var absent *client.AbsentError
	var none *client.NoQuorumError
	var conflict *client.ConflictError
	switch {
	case errors.As(err, &absent) && absent.Pending:
		return fmt.Sprintf("it is pending; the next update phase is due at %s", clock(absent.Due))
	case errors.As(err, &absent):
		return "bonafide ls shows which names there are"
	case errors.As(err, &conflict):
		return "names are bound for ever; choose another name"
	case errors.Is(err, client.ErrStale):
		return "bonafide status shows which replicas are behind; after the next update phase try again"
	case errors.Is(err, client.ErrDenied):
		return "the roster says which keys may write which names"
	case errors.Is(err, client.ErrQuota):
		return "the quota is free again after the next update phase"
	case errors.As(err, &none) && none.Updating():
		return "replicas are in an update phase; try again in a moment"
	case errors.As(err, &none):
		return "bonafide status shows which replicas answer; bonafide serve starts a trial"
	}
	return ""
}

func clock(t time.Time) string { return t.Local().Format(time.DateTime) }

// tell prints what is odd about a result, though it is right, and each thing once.
func (a *app) tell(r client.Result) {
	for _, w := range r.Warnings {
		if !a.told[w] {
			a.told[w] = true
			a.warn("%s", w)
		}
	}
}

// saveReceipt writes a receipt where it was asked for.
func saveReceipt(file string, rc archive.Receipt) error {
	if err := writeFile(file, rc.Bytes(), 0o644); err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	return nil
}

// spool copies a stream to a file that is gone when it is closed, since its
// bytes are read more than once.
func spool(ctx context.Context, r io.Reader) (*os.File, error) {
	f, err := os.CreateTemp("", "bonafide-*")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(f, r)
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done(): // the reader may never return
		return nil, ctx.Err()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// source returns a way to read the named file, or stdin, from its start any
// number of times.
func (a *app) source(ctx context.Context, file string) (open func() (io.ReadCloser, error), end func() error, err error) {
	if file != "-" {
		fi, err := os.Stat(file)
		switch {
		case err != nil:
			return nil, nil, err
		case fi.IsDir():
			return nil, nil, usagef("%s is a directory", quote(file))
		case fi.Mode().IsRegular():
			return func() (io.ReadCloser, error) { return os.Open(file) }, func() error { return nil }, nil
		}
	}
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, nil, err
		}
		defer f.Close()
		in = f
	}
	f, err := spool(ctx, in)
	if err != nil {
		return nil, nil, err
	}
	return func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, 0, 1<<62)), nil
	}, f.Close, nil
}
