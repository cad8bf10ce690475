package cmd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

func (a *app) statusCommand() *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what each replica says and attests of itself",
		Long: `Ask every replica how it is. Epoch and head of a replica whose device answers are
attested, and so is what NOTE says of it: that its device was reset since the
update phase it joined, that no reset came when one was due, that its clock or its
epoch are below what status saw before. The rest is what it says of itself. Of a local trial, directories and
process ids are shown too. Ends with status 6 if fewer than f+1 replicas attest
an epoch.

On a terminal, what does not fit is left out or goes below its line, and what is
wrong is coloured, unless NO_COLOR is set.

With --check, print one line with performance data, as plugins of Nagios, Icinga
and the like do. Replicas in an update phase count as there. The line names what
is wrong, the worst first.

` + checkHelp,
		Example: `  bonafide status
  bonafide status --json | jq -r 'select(.overdue).address'
  bonafide status --check --timeout 5s`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if check {
				return a.checkStatus(c.Context())
			}
			return about("status", "", a.status(c.Context()))
		},
	}
	clientFlags(c)
	c.Flags().String("dir", "", "`directory` of the trial (default: the local trial)")
	c.Flags().BoolVar(&check, checkFlag, false, "print one line, and end as a monitoring plugin does")
	return c
}

const checkFlag = "check"

// checks reports whether a command was asked to end as a monitoring plugin does.
func checks(c *cobra.Command) bool {
	f := c.Flags().Lookup(checkFlag)
	return c.Name() == "status" && f != nil && f.Changed
}

func (a *app) checkStatus(ctx context.Context) error {
	c, err := a.connect(ctx, false)
	if err != nil {
		return err
	}
	defer c.Close()
	all := statuses(ctx, c)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	now := time.Now()
	return a.printHealth(c.Roster, healthOf(c.Roster, all, now), now)
}

// replicaStatus is one replica as status prints it.
type replicaStatus struct {
	Kind      string         `json:"kind"`
	ID        uint32         `json:"id"`
	Address   string         `json:"address"`
	Reachable bool           `json:"reachable"`
	Attested  bool           `json:"attested"` // mode, epoch and head are proven by its device
	Phase     string         `json:"phase"`
	Mode      string         `json:"mode"`
	MAS       string         `json:"mas"`
	Epoch     archive.Epoch  `json:"epoch"`
	Head      archive.Digest `json:"head"`
	Root      archive.Digest `json:"root"`
	Names     uint64         `json:"names"`
	Pending   uint64         `json:"pending"`
	Tick      uint64         `json:"tick"`
	Counts    string         `json:"counts"`
	Last      time.Time      `json:"last"`
	Next      time.Time      `json:"next"`
	Behind    archive.Epoch  `json:"behind"` // epochs that another replica's device attests to be ahead
	Overdue   bool           `json:"overdue"`
	// What the attestations show that should not be.
	Unscheduled bool  `json:"unscheduled_reset"`   // since the phase it joined
	Suppressed  bool  `json:"watchdog_suppressed"` // overdue, and no reset since the phase it joined
	RolledBack  bool  `json:"rolled_back"`         // below what it attested before
	ClockBack   int64 `json:"clock_back_ms"`       // by how much it is below what it was
	was         string
	Damaged     bool   `json:"damaged"`
	Note        string `json:"note"`
	Directory   string `json:"directory,omitempty"`
	Watchdog    int    `json:"watchdog,omitempty"` // process ids
	Child       int    `json:"child,omitempty"`
}

func (a *app) status(ctx context.Context) error {
	c, err := a.connect(ctx, false)
	if err != nil {
		return err
	}
	defer c.Close()
	all := statuses(ctx, c)
	locate(ctx, c.Roster, a.localDir(), all)
	if err := a.printStatus(c.Roster, all); err != nil {
		return err
	}
	attested := 0
	for _, st := range all {
		if st.Attested && st.Epoch > 0 {
			attested++
		}
	}
	if need := c.Roster.F + 1; attested < need {
		err := withStatus(exitUnavailable, fmt.Errorf("%d of %d needed replicas attest an epoch", attested, need))
		return withHint(err, "in an update phase, try again in a moment; otherwise, is it served? bonafide serve")
	}
	return nil
}

// statuses asks all replicas.
func statuses(ctx context.Context, c *client.Client) []replicaStatus {
	all := make([]replicaStatus, 0, c.Roster.N())
	for _, s := range c.Status(ctx) {
		all = append(all, statusOf(s, c.Roster))
	}
	compare(all)
	return all
}

func statusOf(s client.ReplicaStatus, r *archive.Roster) replicaStatus {
	st := replicaStatus{Kind: "replica", ID: s.ID, Address: s.Address, MAS: string(s.Profile)}
	switch {
	case errors.Is(s.Err, client.ErrUpdating):
		st.Reachable, st.Phase, st.Mode = true, "update", "update"
		st.Next = r.Schedule.Next(time.Now())
		return st
	case s.Err != nil:
		st.Phase, st.Mode, st.Note = "unknown", "-", reason(s.Err)
		return st
	}
	w := s.Status
	st.Reachable, st.Phase, st.Mode, st.Note = true, w.Phase, w.Mode, w.Note
	st.Epoch, st.Head, st.Root, st.Names = w.Epoch, w.Head, w.Root, w.Names
	st.Pending, st.Tick, st.Counts = w.Pending, w.Tick, w.Counts
	st.Last, st.Next, st.Overdue, st.Damaged = w.Last, w.Next, w.Overdue, w.Damaged
	if v := s.Verified; v != nil {
		st.Attested, st.Mode = true, v.Statement.Mode.String()
		st.Epoch, st.Head, st.Root, st.Names = v.Record.Epoch, v.Head, archive.Digest(v.Record.Root), v.Record.Names
		st.Last, st.Counts = v.Record.Time, v.Statement.Counts.String()
		st.judge(s, r)
	} else if st.Note == "" && s.AttestErr != nil {
		st.Note = s.AttestErr.Error()
	}
	return st
}

// judge notes what the attestation shows that should not be, whatever the replica
// says of itself.
func (st *replicaStatus) judge(s client.ReplicaStatus, r *archive.Roster) {
	due := s.Verified.Record.Due(r.Schedule)
	st.Overdue = time.Now().After(due.Add(r.Limits.Phase.Std()))
	st.Suppressed = st.Overdue && s.Unreset()
	was, yes := s.OutOfTurn()
	st.Unscheduled, st.was = yes, was.String()
	st.RolledBack, st.ClockBack = s.RolledBack(), s.ClockBack().Milliseconds()
}

// reason says shortly why a replica cannot be asked.
func reason(err error) string {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number.Error()
	}
	return err.Error()
}

// compare notes who is behind the newest epoch that any device attests.
func compare(all []replicaStatus) {
	newest := archive.Epoch(0)
	for _, st := range all {
		if st.Attested {
			newest = max(newest, st.Epoch)
		}
	}
	for i := range all {
		if st := &all[i]; st.Attested {
			st.Behind = newest - st.Epoch
		}
	}
}

// locate adds directories and process ids of the replicas of the trial in dir,
// if that is the archive asked.
func locate(ctx context.Context, r *archive.Roster, dir string, all []replicaStatus) {
	local, err := loadRoster(trialAt(dir).path(rosterFile))
	if err != nil || local.ID() != r.ID() {
		return
	}
	members, err := membersIn(dir)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	var wg sync.WaitGroup
	for i, m := range members {
		if i >= len(all) || all[i].ID != m.ID {
			continue
		}
		all[i].Directory = m.dir
		wg.Go(func() {
			if reply, err := m.ask(ctx, doState); err == nil {
				all[i].Watchdog, all[i].Child = reply.Watchdog, reply.Child
			}
		})
	}
	wg.Wait()
}

func (a *app) printStatus(r *archive.Roster, all []replicaStatus) error {
	if a.json {
		for _, st := range all {
			if err := a.message(st); err != nil {
				return err
			}
		}
		return nil
	}
	rows := [][]string{{"ID", "ADDRESS", "PHASE", "MODE", "MAS", "EPOCH", "HEAD", "NAMES", "PENDING", "LAST", "NEXT", "NOTE"}}
	for _, st := range all {
		rows = append(rows, st.row())
	}
	if err := a.printRows(rows); err != nil {
		return err
	}
	h := healthOf(r, all, time.Now())
	a.say("archive %s, update phases %s; MAS profile %s", quote(r.Name), r.Schedule, r.Profile())
	a.say("%s pending; the next update phase is due at %s", count(h.pending, "name"), clock(h.next))
	a.say("%s", caution(r.Profile()))
	return nil
}

func (st replicaStatus) row() []string {
	row := []string{fmt.Sprint(st.ID), st.Address, st.Phase}
	if !st.Reachable || st.Phase == "update" {
		return append(row, st.Mode, st.MAS, "-", "-", "-", "-", "-", moment(st.Next), st.Note)
	}
	return append(row, st.Mode, st.MAS, fmt.Sprint(st.Epoch), st.Head.String()[:8], fmt.Sprint(st.Names),
		fmt.Sprint(st.Pending), moment(st.Last), moment(st.Next), st.remarks())
}

// remarks say what is wrong with the replica.
func (st replicaStatus) remarks() string {
	var all []string
	for _, r := range []struct {
		is   bool
		text string
	}{
		{st.Behind > 0, fmt.Sprintf("behind by %d", st.Behind)},
		{st.Damaged, "damaged"},
		{!st.Attested, "not attested"},
		{st.RolledBack, "DEVICE ROLLED BACK"},
		{st.Unscheduled, fmt.Sprintf("reset out of turn: counts %s, were %s", st.Counts, st.was)},
		{st.ClockBack > 0, fmt.Sprintf("device clock went back by %s", time.Duration(st.ClockBack)*time.Millisecond)},
		{st.Suppressed, "overdue: its watchdog has not reset the device"},
		{st.Overdue && !st.Suppressed, "overdue"},
		{st.Note != "", st.Note},
	} {
		if r.is {
			all = append(all, r.text)
		}
	}
	return strings.Join(all, "; ")
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	if time.Until(t).Abs() < 12*time.Hour {
		return t.Local().Format(time.TimeOnly)
	}
	return t.Local().Format(time.DateOnly)
}

// spare are the columns that a terminal can do without, the most easily spared first.
var spare = []string{"HEAD", "LAST", "ADDRESS", "MODE", "NAMES", "MAS"}

// printRows prints the table of replicas. On a terminal that is too narrow for all,
// notes stand below their line, and columns are left out until the rest fits.
func (a *app) printRows(rows [][]string) error {
	_, notes := without(rows, "NOTE")
	lines, below := table(rows), false
	if width := terminalWidth(a.out); width > 0 && widest(lines) > width {
		rows, _ = without(rows, "NOTE")
		for i := 0; i < len(spare) && widest(table(rows)) > width; i++ {
			rows, _ = without(rows, spare[i])
		}
		lines, below = table(rows), true
	}
	notes[0] = ""
	for i, l := range lines {
		l, note := plain(l), plain(notes[i])
		if below && note != "" {
			l += "\n    " + note
		}
		if err := a.line(a.out, a.highlight(l, note)); err != nil {
			return err
		}
	}
	return nil
}

// highlight colours the note that ends a line of the table.
func (a *app) highlight(line, note string) string {
	rest, ok := strings.CutSuffix(line, note)
	if !ok || note == "" {
		return line
	}
	return rest + a.coloured(red, note)
}

// without takes a column out of a table.
func without(rows [][]string, column string) (rest [][]string, out []string) {
	at := slices.Index(rows[0], column)
	for _, row := range rows {
		out = append(out, row[at])
		rest = append(rest, slices.Delete(slices.Clone(row), at, at+1))
	}
	return rest, out
}

func widest(lines []string) (w int) {
	for _, l := range lines {
		w = max(w, len([]rune(l)))
	}
	return w
}

// table aligns columns.
func table(rows [][]string) []string {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	var lines []string
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&b, "%-*s  ", width[i], cell)
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

func pad(n uint64, width int) string {
	s := strconv.FormatUint(n, 10)
	return strings.Repeat(" ", max(0, width-len(s))) + s
}
