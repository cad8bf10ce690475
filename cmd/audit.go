package cmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/replica"
	"github.com/bonafide-archive/bonafide/trust/tpm"
)

func (a *app) auditCommand() *cobra.Command {
	var repair, history bool
	var part string
	var id uint32
	c := &cobra.Command{
		Use:   "audit [--repair] [--subset N/T] [--dir DIR] | --history [--replica ID]",
		Short: "Check everything that replicas hold, and repair it",
		Long: `Read everything that a replica holds and check it: the tree against the head that
its own device attests, each record of history against its chain and
certificate, each content against its digest. With --repair, fetch what is
damaged from the other replicas, which need not be trusted.

With --subset n/t, check one part of the contents, the n-th of t, and everything
else: t runs, one for each n, check them all.

Without --dir, every replica of the local trial. A replica that is served audits
itself; another is audited by this process. Damage that is left ends with status
5; a device that is behind the other replicas with 7: the next update phase
mends that.

With --history, be an auditor from outside, with the archive's first roster and
no trust in any replica: ask one, over the network, for all records and
certificates since the genesis and for all names. Each record must stand on the
one before and be certified by 2f+1 devices; the newest must be what the
replica's own device attests now; and the names that stand now, without those
bound later, must give each epoch's root. So no name has ever changed or gone, or
the audit ends with status 5 and says in which epoch. It takes time in proportion
to names times the epochs that bound some.`,
		Example: `  bonafide audit
  bonafide audit --repair --dir /var/lib/bonafide
  bonafide audit --history --replica 2 --roster genesis.json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if history {
				return about("audit", "", a.auditHistory(c.Context(), id))
			}
			subset, err := replica.ParseSubset(part)
			if err != nil {
				return usagef("audit: --subset: %w", err)
			}
			return about("audit", "", a.audit(c.Context(), a.localDir(), replica.AuditOptions{Repair: repair, Subset: subset}))
		},
	}
	c.Flags().BoolVar(&repair, "repair", false, "fetch what is damaged from the other replicas")
	c.Flags().StringVar(&part, "subset", "", "check part `N/T` of the contents (default: all)")
	c.Flags().String("dir", "", "`directory` of the replica or the trial (default: the local trial)")
	c.Flags().BoolVar(&history, "history", false, "check all epochs and names since the genesis, over the network")
	clientFlags(c)
	replicaFlag(c, &id)
	for _, own := range []string{"repair", "subset", "dir"} {
		c.MarkFlagsMutuallyExclusive("history", own)
	}
	return c
}

func (a *app) audit(ctx context.Context, dir string, o replica.AuditOptions) error {
	members, err := membersIn(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range members {
		rp, err := a.auditMember(ctx, m, o)
		if ctx.Err() != nil {
			return err
		}
		errs = append(errs, a.audited(m, rp, err))
	}
	err = allOf(errs)
	if !o.Repair && exitStatus(err) == exitIntegrity {
		return withHint(err, "bonafide audit --repair fetches good copies from the other replicas")
	}
	return err
}

// auditMember has the replica audit itself, or does it if nobody serves it.
func (a *app) auditMember(ctx context.Context, m member, o replica.AuditOptions) (replica.Report, error) {
	var rp replica.Report
	err := a.alive(ctx, m)
	if err == nil {
		return replica.AuditServed(ctx, m.dir, o, a.event)
	}
	if !errors.Is(err, replica.ErrNotServed) {
		return rp, err
	}
	if _, err := m.ask(ctx, doState); err == nil {
		return rp, withStatus(exitUnavailable, withHint(errors.New("in an update phase"), "try again in a moment"))
	}
	lock, err := m.claim()
	if err != nil {
		return rp, err
	}
	defer lock.Close()
	end, err := m.powered(ctx)
	if err != nil {
		return rp, err
	}
	defer end()
	cfg, mas, err := a.replicaConfig(ctx, m)
	if err != nil {
		return rp, err
	}
	defer mas.Close()
	return replica.Audit(ctx, cfg, o, a.event)
}

// alive asks the replica's service process whether it listens. The audit itself
// may take as long as its disk does.
func (a *app) alive(ctx context.Context, m member) error {
	limit, cancel := context.WithTimeout(ctx, a.v.GetDuration("timeout"))
	defer cancel()
	_, err := replica.StatusServed(limit, m.dir)
	if limit.Err() != nil && ctx.Err() == nil {
		return withStatus(exitUnavailable, errors.New("its service process does not answer"))
	}
	return err
}

// powered gives a device that no watchdog runs its power, locked. The returned
// function takes it away again.
func (m member) powered(ctx context.Context) (func() error, error) {
	if m.MAS != masSwtpm {
		return func() error { return nil }, nil
	}
	s, err := tpm.StartSwtpm(ctx, m.path(masDir), m.path(runDir))
	if err != nil {
		return nil, err
	}
	if err := m.lockMAS(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s.Stop, nil
}

// event prints one line of an audit's story as it comes.
func (a *app) event(e replica.Event) {
	if a.json {
		if e.Kind != replica.EventReport {
			_ = a.message(e)
		}
		return
	}
	text := fmt.Sprintf("replica %d: %s: %s", e.Replica, e.Kind, e.Subject())
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	switch e.Kind {
	case replica.EventDamage, replica.EventRepaired, replica.EventUnrepaired:
		_ = a.line(a.out, plain(text))
	case replica.EventBehind:
		_ = a.line(a.out, plain(fmt.Sprintf("replica %d: behind: epoch %d is proven by others: %s", e.Replica, e.Epoch, e.Detail)))
	}
}

// audited prints a replica's report, and returns what is wrong as an error.
func (a *app) audited(m member, rp replica.Report, err error) error {
	switch {
	case errors.Is(err, replica.ErrBusy):
		return withStatus(exitUnavailable, withHint(fmt.Errorf("replica %d: %w", m.ID, err), "try again in a moment"))
	case err != nil:
		return fmt.Errorf("replica %d: %w", m.ID, err)
	}
	err = a.result(struct {
		Kind string `json:"kind"`
		replica.Report
	}{"audit", rp}, "replica %d: epoch %d: %s, %s, %s of %s: %s",
		m.ID, rp.Epoch, count(rp.Records, "record"), count(rp.Names, "name"), count(rp.Contents, "content"), count(rp.Bytes, "byte"), verdict(rp))
	switch {
	case err != nil:
		return err
	case !rp.Sound():
		return fmt.Errorf("replica %d: %w: %d damaged, %d repaired", m.ID, archive.ErrIntegrity, rp.Damaged, rp.Repaired)
	case rp.Behind > 0:
		return withStatus(exitStale, fmt.Errorf("replica %d: its device is %d epochs behind", m.ID, rp.Behind))
	}
	return nil
}

func verdict(rp replica.Report) string {
	switch {
	case rp.Damaged == 0:
		return "sound"
	case rp.Sound():
		return fmt.Sprintf("%d damaged, all repaired", rp.Damaged)
	}
	return fmt.Sprintf("%d damaged, %d repaired", rp.Damaged, rp.Repaired)
}
