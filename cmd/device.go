package cmd

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/bonafide-archive/bonafide/trust/soft"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/watchdog"
)

// Who resets the device of a replica, and so opens update mode. The first two
// are what the device is, and reset by its watchdog.
const (
	resetSoftware = masSoftware
	resetSwtpm    = masSwtpm
	resetReboot   = "reboot"
)

// checkReset refuses a reset that the device does not know. A machine is not
// rebooted unasked.
func (m member) checkReset(reset string) error {
	switch {
	case reset == "" && m.MAS == masTPM:
		err := usagef("replica %d is on this machine's TPM: each update phase reboots the machine", m.ID)
		return withHint(err, "--reset %s if it may; --service-only if systemd does", resetReboot)
	case reset == "", reset == m.MAS, reset == resetReboot && m.MAS != masSoftware:
		return nil
	}
	return usagef("--reset %s: replica %d has a device of kind %s, which that does not reset", quote(reset), m.ID, m.MAS)
}

// device returns what the watchdog resets and locks. The returned function
// ends what it keeps running.
func (h *host) device(ctx context.Context) (watchdog.Device, func() error, error) {
	m := h.member
	switch m.MAS {
	case masSoftware:
		return softDevice{m}, func() error { return nil }, nil
	case masTPM:
		return machine{m.lockMAS}, func() error { return nil }, nil
	}
	s, err := tpm.StartSwtpm(ctx, m.path(masDir), m.path(runDir))
	if err != nil {
		return nil, nil, withHint(err, "is swtpm installed? (apt install swtpm)")
	}
	d := swtpmDevice{m, s}
	if h.reset == resetReboot {
		return machine{d.Lock}, s.Stop, nil
	}
	return d, s.Stop, nil
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

// lockPatience is how long an swtpm may take to lock before it is taken for dead.
const lockPatience = 5 * time.Second

// Lock gives a TPM that has died its power back first: it comes up unlocked.
func (d swtpmDevice) Lock(ctx context.Context) error {
	once, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	err := d.m.lockMAS(once)
	if err == nil {
		return nil
	}
	if dead := d.s.PowerCycle(ctx); dead != nil {
		return errors.Join(err, dead)
	}
	return d.m.lockMAS(ctx)
}

// machine is a device that only a reboot of this machine resets. It is locked
// by calling it.
type machine struct{ lock func(context.Context) error }

// Reset reboots the machine, so it returns only if that could not be done, or
// when this process has to end for it. Never by kexec, which resets no TPM, nor
// by a soft reboot.
func (d machine) Reset(ctx context.Context) error {
	if out, err := exec.CommandContext(ctx, "systemctl", "reboot").CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl reboot: %w: %s", err, oneLine(string(out)))
	}
	<-ctx.Done()
	return ctx.Err()
}

func (d machine) Lock(ctx context.Context) error { return d.lock(ctx) }
