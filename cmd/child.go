package cmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

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
	limitMemory()
	rp, err := a.updatePhase(ctx, m)
	rp.Memory = peakMemory()
	return errors.Join(err, a.line(a.out, encode(rp)))
}

// updateMemory is what an update process tries to keep its own memory below, in bytes:
// with the pages of the files that it maps, a phase of a million Adds then takes less
// than 1 GiB.
const updateMemory = 448 << 20

// limitMemory has garbage collected in time, unless the environment says when.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(updateMemory)
	}
}

// peakMemory is the most memory that this process has had, in bytes, what it maps of
// files included; 0 where the system does not say (proc(5), VmHWM).
func peakMemory() (kib int64) {
	b, _ := os.ReadFile("/proc/self/status")
	_, line, _ := bytes.Cut(b, []byte("VmHWM:"))
	fmt.Sscan(string(line), &kib)
	return kib << 10
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
