package cmd

import (
	"context"
	"errors"
	"os/exec"

	"github.com/bonafide-archive/bonafide/trust/soft"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/watchdog"
)

// device returns what the watchdog resets and locks. The returned function
// ends what it keeps running.
func (m member) device(ctx context.Context) (watchdog.Device, func() error, error) {
	switch m.MAS {
	case masSoftware:
		return softDevice{m}, func() error { return nil }, nil
	case masTPM:
		return machine{m}, func() error { return nil }, nil
	}
	s, err := tpm.StartSwtpm(ctx, m.path(masDir), m.path(runDir))
	if err != nil {
		return nil, nil, withHint(err, "is swtpm installed? (apt install swtpm)")
	}
	return swtpmDevice{m, s}, s.Stop, nil
}

// lockMAS is update mode's end, in this process.
func (m member) lockMAS(ctx context.Context) error {
	mas, err := m.openMAS(ctx)
	if err != nil {
		return err
	}
	return errors.Join(mas.Lock(ctx), mas.Close())
}

type softDevice struct{ m member }

func (d softDevice) Reset(context.Context) error    { return soft.Reset(d.m.path(masDir)) }
func (d softDevice) Lock(ctx context.Context) error { return d.m.lockMAS(ctx) }

type swtpmDevice struct {
	m member
	s *tpm.Swtpm
}

func (d swtpmDevice) Reset(ctx context.Context) error { return d.s.PowerCycle(ctx) }

// Lock gives a TPM that has died its power back first: it comes up unlocked.
func (d swtpmDevice) Lock(ctx context.Context) error {
	err := d.m.lockMAS(ctx)
	if err == nil {
		return nil
	}
	if dead := d.s.PowerCycle(ctx); dead != nil {
		return errors.Join(err, dead)
	}
	return d.m.lockMAS(ctx)
}

// machine is the TPM of this machine, which only a reboot resets.
type machine struct{ m member }

// Reset reboots the machine, so it returns only if that could not be done.
func (d machine) Reset(ctx context.Context) error {
	if err := exec.CommandContext(ctx, "systemctl", "reboot").Run(); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (d machine) Lock(ctx context.Context) error { return d.m.lockMAS(ctx) }
