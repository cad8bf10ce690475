package cmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive/replica"
	"github.com/bonafide-archive/bonafide/trust/tpm"
)

func (a *app) updateCommand() *cobra.Command {
	var dir string
	var child, yes bool
	c := &cobra.Command{
		Use:   "update [--dir DIR]",
		Short: "Run an update phase now",
		Long: `Run an update phase now, wait for its end and print the new epoch.

The watchdogs that serve the trial, or the one that serves the replica in --dir,
are asked to. One replica alone makes no epoch: 2f+1 have to join in. A replica
that nobody serves runs its phase in this process, provided that its device is
in update mode, which only a device reset opens.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if child {
				m, err := openMember(dir)
				if err != nil {
					return err
				}
				return a.updateChild(c.Context(), m)
			}
			return a.update(c.Context(), a.localDir(), yes)
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "", "`directory` of the replica or the trial (default: the local trial)")
	f.BoolVar(&yes, "yes", false, "do not ask before this machine is rebooted")
	f.BoolVar(&child, "child", false, "run the phase as a watchdog's child")
	_ = f.MarkHidden("child")
	c.PersistentPreRunE = func(c *cobra.Command, args []string) error {
		if child {
			a.running = true
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
	if err := a.mayReboot(members, yes); err != nil {
		return err
	}
	if len(members) == 1 {
		err := a.updateOne(ctx, members[0])
		return a.updated(members, []error{err})
	}
	errs := make([]error, len(members))
	done := make(chan struct{})
	for i, m := range members {
		go func() {
			errs[i] = a.updateServed(ctx, m)
			done <- struct{}{}
		}()
	}
	for range members {
		<-done
	}
	return a.updated(members, errs)
}

// mayReboot asks before an update phase that reboots the machine.
func (a *app) mayReboot(members []member, yes bool) error {
	for _, m := range members {
		if m.MAS != masTPM || yes {
			continue
		}
		if !isTerminal(a.stdin) {
			return withHint(usagef("an update phase of replica %d reboots this machine", m.ID), "--yes if it may")
		}
		a.say("An update phase of replica %d reboots this machine. Type yes if it may:", m.ID)
		var answer string
		if _, err := fmt.Fscanln(a.stdin, &answer); err != nil || answer != "yes" {
			return usagef("not confirmed")
		}
	}
	return nil
}

// updateServed asks the replica's watchdog.
func (a *app) updateServed(ctx context.Context, m member) error {
	reply, err := m.ask(ctx, doUpdate)
	if err != nil {
		return err
	}
	rp := reply.Report
	if rp == nil {
		rp = &childReport{Status: exitFailure, Error: reply.Error}
	}
	if rp.Error == "" && reply.Error != "" {
		rp.Status, rp.Error = exitFailure, reply.Error
	}
	return a.printPhase(m, *rp)
}

// updateOne asks the watchdog, or does without one.
func (a *app) updateOne(ctx context.Context, m member) error {
	err := a.updateServed(ctx, m)
	if !errors.Is(err, errNoWatchdog) {
		return err
	}
	lock, err := m.claim()
	if err != nil {
		return err
	}
	defer lock.Close()
	if m.MAS == masSwtpm { // its start is a device reset
		s, err := tpm.StartSwtpm(ctx, m.path(masDir), m.path(runDir))
		if err != nil {
			return err
		}
		defer s.Stop()
	}
	rp, err := a.updatePhase(ctx, m)
	if errors.Is(err, replica.ErrLocked) {
		return withHint(fmt.Errorf("replica %d: %w", m.ID, err), "bonafide serve --dir %s opens an update phase", quote(m.dir))
	}
	return a.printPhase(m, rp)
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
		Type    string `json:"message_type"`
		Replica uint32 `json:"replica"`
		childReport
	}{"update", m.ID, rp}, "replica %d: epoch %d, joined by %s; %s", m.ID, rp.Epoch, replicas(rp.Joined), how)
}

// updated joins what came of the phases of several replicas.
func (a *app) updated(members []member, errs []error) error {
	err := allOf(errs)
	if errors.Is(err, errNoWatchdog) && len(members) > 1 {
		return withHint(err, "bonafide serve keeps the archive running")
	}
	return err
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
