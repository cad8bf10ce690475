package cmd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

func (a *app) logCommand() *cobra.Command {
	var id uint32
	c := &cobra.Command{
		Use:   "log [--replica ID]",
		Short: "Show the history of epochs, verified from genesis",
		Long: `Show each epoch: when it was made, how many names there are and how many came
with it, its tree's root, and which replicas' devices signed it.

One replica is asked, and not trusted: from the genesis on, each record must
stand on the one before and be certified by 2f+1 devices of the roster, and the
newest be what the replica's own device attests now. What does not verify ends
with status 5. Whether names changed is the affair of bonafide audit --history.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return about("log", "", a.log(c.Context(), id))
		},
	}
	clientFlags(c)
	replicaFlag(c, &id)
	return c
}

func replicaFlag(c *cobra.Command, id *uint32) {
	c.Flags().Uint32Var(id, "replica", 0, "ask the replica with this `ID` (default: the first that answers)")
}

// logged is an epoch as log prints it.
type logged struct {
	Kind     string         `json:"kind"`
	Epoch    archive.Epoch  `json:"epoch"`
	Time     time.Time      `json:"time"`
	Names    uint64         `json:"names"`
	Added    uint64         `json:"added"`
	Head     archive.Digest `json:"head"`
	Previous archive.Digest `json:"previous"`
	Root     archive.Digest `json:"root"`
	Tick     uint64         `json:"tick"`      // at which its record was first built
	SignedAt uint64         `json:"signed_at"` // tick of the certificate
	Joined   []uint32       `json:"joined"`
	Signers  []uint32       `json:"signers"`
}

// walked ends what log and audit --history print.
type walked struct {
	Kind    string         `json:"kind"`
	Replica uint32         `json:"replica"`
	Archive archive.Digest `json:"archive"`
	Epoch   archive.Epoch  `json:"epoch"`
	Time    time.Time      `json:"time"`
	Head    archive.Digest `json:"head"`
	Names   uint64         `json:"names"`
	Checked bool           `json:"names_checked"`
	MAS     string         `json:"mas"`
}

func (a *app) log(ctx context.Context, id uint32) error {
	w := bufio.NewWriter(a.out)
	h, profile, err := a.history(ctx, client.HistoryOptions{
		Replica: id,
		Step:    func(s client.Step) error { return a.logStep(w, s) },
	})
	if err := errors.Join(err, w.Flush()); err != nil {
		return err
	}
	a.say("%s, verified from genesis; replica %d's device attests the last; MAS profile %s",
		count(uint64(h.Record.Epoch), "epoch"), h.Replica, profile)
	return a.message(walkedTo(h, profile, false))
}

// history walks through the history of the configured archive.
func (a *app) history(ctx context.Context, o client.HistoryOptions) (h client.History, profile string, err error) {
	c, err := a.connect(ctx, false)
	if err != nil {
		return h, "", err
	}
	defer c.Close()
	if _, ok := c.Roster.Replica(o.Replica); o.Replica != 0 && !ok {
		return h, "", usagef("--replica: the roster has no replica %d", o.Replica)
	}
	h, err = c.History(ctx, o)
	return h, string(c.Roster.Profile()), err
}

func (a *app) logStep(w *bufio.Writer, s client.Step) error {
	rec := s.Record
	text := encode(logged{
		"epoch", rec.Epoch, rec.Time, rec.Names, s.Added, rec.Head(), rec.Previous, archive.Digest(rec.Root),
		rec.Tick, s.Certificate.Tick, rec.Joined, s.Certificate.Signers(),
	})
	if !a.json {
		text = fmt.Sprintf("%6d  %s  %16s %+10d  root %x  signed by %s",
			rec.Epoch, clock(rec.Time), count(rec.Names, "name"), s.Added, rec.Root[:6], listOf(s.Certificate.Signers()))
	}
	_, err := w.WriteString(text + "\n")
	return err
}

// listOf returns numbers with spaces between them.
func listOf(ids []uint32) string { return strings.Trim(fmt.Sprint(ids), "[]") }

func walkedTo(h client.History, profile string, names bool) walked {
	rec := h.Record
	return walked{"history", h.Replica, rec.Archive, rec.Epoch, rec.Time, rec.Head(), rec.Names, names, profile}
}

// auditHistory is the public check: all of the history, and that no name has
// changed or gone since the genesis.
func (a *app) auditHistory(ctx context.Context, id uint32) error {
	checked, end := a.counting("names")
	h, profile, err := a.history(ctx, client.HistoryOptions{Replica: id, Names: true, Checked: checked})
	end()
	if err != nil {
		return err
	}
	rec := h.Record
	return a.result(walkedTo(h, profile, true),
		"replica %d: epoch %d of %s: %s from genesis, each certified by 2f+1 devices; %s, none changed or removed: sound; MAS profile %s",
		h.Replica, rec.Epoch, clock(rec.Time), count(uint64(rec.Epoch), "record"), count(h.Names, "name"), profile)
}
