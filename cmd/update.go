package cmd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive/replica"
)

func (a *app) updateCommand() *cobra.Command {
	var dir string
	var child, yes, lock bool
	c := &cobra.Command{
		Use:   "update [--dir DIR] [--lock]",
		Short: "Run an update phase now",
		Long: `Run an update phase now, wait for its end and print the new epoch.

The watchdogs that serve the trial, or the one that serves the replica in --dir,
are asked to. One replica alone makes no epoch: 2f+1 have to join in. A replica
that nobody serves runs its phase by this command, provided that its device is
in update mode, which only a device reset opens.

--lock runs no phase: it locks the device at once, whatever runs, and is how a
boot that went wrong ends update mode. To lock twice does no harm.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if child {
				m, err := openMember(dir)
				if err != nil {
					return err
				}
				return a.updateChild(c.Context(), m)
			}
			if lock {
				return a.lock(c.Context(), a.localDir())
			}
			return a.update(c.Context(), a.localDir(), yes)
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "", "`directory` of the replica or the trial (default: the local trial)")
	f.BoolVar(&yes, "yes", false, "do not ask before this machine is rebooted")
	f.BoolVar(&lock, "lock", false, "lock the device at once and run no phase")
	f.BoolVar(&child, "child", false, "run the phase as a watchdog's child")
	_ = f.MarkHidden("child")
	c.PersistentPreRunE = func(c *cobra.Command, args []string) error {
		if child { // it is told everything by its parent
			return nil
		}
		return a.prepare(c, args)
	}
	return c
}

// localDir is the directory of the trial or replica that a command is about.
func (a *app) localDir() string {
	if dir := a.v.GetString("dir"); dir != "" {
		return dir
	}
	return dataHome()
}

func (a *app) update(ctx context.Context, dir string, yes bool) error {
	members, err := membersIn(dir)
	if err != nil {
		return err
	}
	if err := a.mayReboot(ctx, members, yes); err != nil {
		return err
	}
	phase := a.updateServed
	if len(members) == 1 {
		phase = a.updateOne
	}
	reports, errs := make([]childReport, len(members)), make([]error, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() { reports[i], errs[i] = phase(ctx, m) })
	}
	wg.Wait()
	for i, m := range members {
		if errs[i] == nil {
			errs[i] = a.printPhase(m, reports[i])
		}
	}
	err = allOf(errs)
	if errors.Is(err, errNoWatchdog) && len(members) > 1 {
		return withHint(err, "bonafide serve keeps the archive running")
	}
	return err
}

// mayReboot asks before an update phase that reboots the machine. Only watchdogs
// do that.
func (a *app) mayReboot(ctx context.Context, members []member, yes bool) error {
	for _, m := range members {
		if reply, err := m.ask(ctx, doState); yes || err != nil || !reply.Reboots {
			continue
		}
		if err := a.confirm(ctx, fmt.Sprintf("an update phase of replica %d reboots this machine", m.ID), "--yes if it may"); err != nil {
			return err
		}
	}
	return nil
}

// confirm asks, on a terminal, whether what is said may happen. Elsewhere nobody
// could answer, and the hint says how to.
func (a *app) confirm(ctx context.Context, what, hint string) error {
	if !isTerminal(a.stdin) {
		return withHint(usagef("%s", what), "%s", hint)
	}
	_ = a.line(a.err, plain(what+". Type yes if it may:"))
	answer := make(chan string, 1)
	go func() {
		var s string
		_, _ = fmt.Fscanln(a.stdin, &s)
		answer <- s
	}()
	select {
	case s := <-answer:
		if s != "yes" {
			return usagef("not confirmed")
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// updateServed asks the replica's watchdog.
func (a *app) updateServed(ctx context.Context, m member) (childReport, error) {
	reply, err := m.ask(ctx, doUpdate)
	if err != nil {
		return childReport{}, err
	}
	rp := childReport{Status: exitFailure, Error: reply.Error}
	if reply.Report != nil {
		rp = *reply.Report
	}
	if rp.Error == "" && reply.Error != "" {
		rp.Status, rp.Error = exitFailure, reply.Error
	}
	a.back(ctx, m)
	return rp, nil
}

// back waits until the replica serves again, for a while.
func (a *app) back(ctx context.Context, m member) {
	ctx, cancel := context.WithTimeout(ctx, a.v.GetDuration("timeout"))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := replica.StatusServed(ctx, m.dir); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// updateOne asks the watchdog, or does without one.
func (a *app) updateOne(ctx context.Context, m member) (childReport, error) {
	rp, err := a.updateServed(ctx, m)
	if !errors.Is(err, errNoWatchdog) {
		return rp, err
	}
	r, err := m.roster()
	if err != nil {
		return rp, err
	}
	lock, err := m.claim()
	if err != nil {
		return rp, err
	}
	defer lock.Close()
	h := &host{member: m, roster: r, verbose: a.stderr()}
	return h.once(ctx)
}

// lock ends update mode now. A device that is busy is asked again, for a while.
func (a *app) lock(ctx context.Context, dir string) error {
	members, err := membersIn(dir)
	if err != nil {
		return err
	}
	errs := make([]error, len(members))
	for i, m := range members {
		if errs[i] = m.lockSoon(ctx); errs[i] == nil {
			a.say("replica %d: device locked", m.ID)
		}
	}
	return allOf(errs)
}

const (
	lockAttempts = 10
	lockPause    = time.Second
)

func (m member) lockSoon(ctx context.Context) error {
	for try := 1; ; try++ {
		err := m.lockMAS(ctx)
		if err == nil {
			return nil
		}
		if try == lockAttempts || ctx.Err() != nil {
			return fmt.Errorf("replica %d: device left as it was: %w", m.ID, err)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
		}
	}
}

// printPhase prints what came of a phase, and returns it as an error if it made
// no epoch.
func (a *app) printPhase(m member, rp childReport) error {
	if rp.Error != "" {
		return withStatus(rp.Status, fmt.Errorf("replica %d: %s", m.ID, rp.Error))
	}
	how := "helped to make it"
	if !rp.Advanced {
		how = "took it over"
	}
	return a.result(struct {
		Kind    string `json:"kind"`
		Replica uint32 `json:"replica"`
		childReport
	}{"update", m.ID, rp}, "replica %d: epoch %d, joined by %s; %s", m.ID, rp.Epoch, replicas(rp.Joined), how)
}

// allOf makes one error of several items': nil if none failed, the common
// status if all did, otherwise partial.
func allOf(errs []error) error {
	failed := 0
	status := exitDone
	for _, err := range errs {
		if err == nil {
			continue
		}
		if s := exitStatus(err); failed == 0 {
			status = s
		} else if s != status {
			status = exitFailure
		}
		failed++
	}
	switch {
	case failed == 0:
		return nil
	case failed < len(errs):
		status = exitPartial
	case failed == 1:
		return errors.Join(errs...)
	}
	return withStatus(status, errors.Join(errs...))
}
