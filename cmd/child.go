package cmd

import (
	"context"
	"errors"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive/replica"
	"github.com/bonafide-archive/bonafide/trust"
)

// serviceCommand is the service child of a watchdog. People have no use for it.
func (a *app) serviceCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:    "service --dir DIR",
		Short:  "Serve a replica's clients, as a watchdog's child",
		Hidden: true,
		Args:   cobra.NoArgs,
		// A child is told everything by its parent.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE: func(c *cobra.Command, _ []string) error {
			return a.service(c.Context(), dir)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "`directory` of the replica")
	require(c, "dir")
	return c
}

func (a *app) service(ctx context.Context, dir string) error {
	m, err := openMember(dir)
	if err != nil {
		return err
	}
	cfg, mas, err := a.replicaConfig(ctx, m)
	if err != nil {
		return err
	}
	defer mas.Close()
	err = replica.Serve(ctx, cfg)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// replicaConfig opens what a process of the replica works with. The caller
// closes the MAS.
func (a *app) replicaConfig(ctx context.Context, m member) (replica.Config, trust.MAS, error) {
	r, err := m.roster()
	if err != nil {
		return replica.Config{}, nil, err
	}
	key, err := loadKey(m.path(serviceKey))
	if err != nil {
		return replica.Config{}, nil, err
	}
	mas, err := m.openMAS(ctx)
	if err != nil {
		return replica.Config{}, nil, err
	}
	return replica.Config{
		Dir: m.dir, ID: m.ID, Roster: r, MAS: mas, ServiceKey: key,
		Log: slog.New(slog.NewTextHandler(a.stderr(), nil)),
	}, mas, nil
}

// updateChild is the update child of a watchdog: one phase, then a report.
func (a *app) updateChild(ctx context.Context, m member) error {
	if err := secretive(); err != nil {
		return err
	}
	rp, err := a.updatePhase(ctx, m)
	return errors.Join(err, a.line(a.out, encode(rp)))
}

// updatePhase runs the replica's update phase in this process.
func (a *app) updatePhase(ctx context.Context, m member) (childReport, error) {
	cfg, mas, err := a.replicaConfig(ctx, m)
	if err != nil {
		return report(replica.Outcome{}, err), err
	}
	defer mas.Close()
	out, err := replica.Update(ctx, cfg)
	return report(out, err), err
}

func report(out replica.Outcome, err error) childReport {
	rp := childReport{
		Epoch: out.Epoch, Head: out.Head, Tick: out.Tick, Joined: out.Joined,
		Advanced: out.Advanced, CaughtUp: out.CaughtUp, Steps: out.Steps, Status: exitStatus(err),
	}
	if err != nil {
		rp.Error = oneLine(err.Error())
	}
	return rp
}
