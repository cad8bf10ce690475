package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/soft"
)

// Variables that make TestChild an update process of its own.
const (
	childDir  = "BONAFIDE_TEST_CHILD_DIR"  // the replica's; with roster.json and id
	childKill = "BONAFIDE_TEST_CHILD_KILL" // "before" or "after", and a device operation, at which it kills itself
	childHold = "BONAFIDE_TEST_CHILD_HOLD" // if set, it stops there instead, and writes a byte to its file 3
)

// TestChild is no test: it is the process that crash tests start and kill.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("only started by other tests")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "roster.json"))
	must(t, err)
	r, err := archive.ParseRoster(raw)
	must(t, err)
	text, err := os.ReadFile(filepath.Join(dir, "id"))
	must(t, err)
	id, err := strconv.Atoi(string(text))
	must(t, err)
	mas, err := soft.Open(filepath.Join(dir, "mas"))
	must(t, err)
	when, op, _ := strings.Cut(os.Getenv(childKill), " ")
	if _, err := Update(t.Context(), Config{Dir: dir, ID: uint32(id), Roster: r, MAS: &suicide{MAS: mas, when: when, op: op}}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}

// suicide kills its process with kill -9 at one operation.
type suicide struct {
	trust.MAS
	when, op string
	mu       sync.Mutex
	lookups  int
}

func (d *suicide) at(op string, do func() error) error {
	if d.when == "before" && d.op == op {
		d.die()
	}
	err := do()
	if d.when == "after" && d.op == op {
		d.die()
	}
	return err
}

func (d *suicide) die() {
	if os.Getenv(childHold) == "" {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	} else if _, err := os.NewFile(3, "hold").Write([]byte{1}); err != nil {
		panic(err)
	}
	select {}
}

func (d *suicide) Store(ctx context.Context, s trust.Slots) error {
	op := "store-tick"
	switch {
	case s.Tick == 0:
		op = "store-head"
	case s.Committed.Epoch == s.Epoch+1 && s.Committed.Tick == s.Tick:
		op = "store-commit"
	}
	return d.at(op, func() error { return d.MAS.Store(ctx, s) })
}

func (d *suicide) Advance(ctx context.Context) error {
	return d.at("advance", func() error { return d.MAS.Advance(ctx) })
}

func (d *suicide) Lock(ctx context.Context) error {
	return d.at("lock", func() error { return d.MAS.Lock(ctx) })
}

func (d *suicide) Lookup(ctx context.Context, n trust.Nonce) (a trust.Attestation, err error) {
	d.mu.Lock()
	d.lookups++
	op := fmt.Sprint("lookup ", d.lookups)
	d.mu.Unlock()
	err = d.at(op, func() (err error) { a, err = d.MAS.Lookup(ctx, n); return err })
	return a, err
}

// childProcess returns the update process of a replica, to be started.
func (c *cluster) childProcess(id uint32, kill string) *exec.Cmd {
	c.t.Helper()
	dir := c.Replicas[id-1].Dir
	err := errors.Join(os.WriteFile(filepath.Join(dir, "roster.json"), c.Roster.Bytes(), 0o600),
		os.WriteFile(filepath.Join(dir, "id"), []byte(fmt.Sprint(id)), 0o600))
	if err != nil {
		c.t.Error(err)
	}
	cmd := exec.CommandContext(c.t.Context(), os.Args[0], "-test.run=^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), childDir+"="+dir, childKill+"="+kill)
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// wait waits for a child's end; killed says that it was.
func wait(cmd *exec.Cmd) (killed bool, err error) {
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true, nil
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, cmd.Stdout)
	}
	return false, err
}

// child runs the update process of a replica to its end.
func (c *cluster) child(id uint32, kill string) (killed bool, err error) {
	cmd := c.childProcess(id, kill)
	if err := cmd.Start(); err != nil {
		return false, err
	}
	return wait(cmd)
}

// killAll runs the update processes of all replicas until each has come to a
// step, and kills them there.
func (c *cluster) killAll(step string) {
	c.t.Helper()
	held, hold, err := os.Pipe()
	must(c.t, err)
	defer held.Close()
	var all []*exec.Cmd
	for _, id := range c.all() {
		cmd := c.childProcess(id, step)
		cmd.Env, cmd.ExtraFiles = append(cmd.Env, childHold+"=1"), []*os.File{hold}
		must(c.t, cmd.Start())
		all = append(all, cmd)
	}
	hold.Close()
	held.SetReadDeadline(time.Now().Add(c.Roster.Limits.Phase.Std()))
	_, err = io.ReadFull(held, make([]byte, len(all)))
	for _, cmd := range all {
		cmd.Process.Kill()
		if killed, early := wait(cmd); err != nil || !killed {
			c.t.Errorf("%s: killed: %v; %v, %v\n%s", step, killed, err, early, cmd.Stdout)
		}
	}
	if err != nil {
		c.t.FailNow()
	}
}

// listening starts the update process of a replica, and returns once it listens.
func (c *cluster) listening(id uint32, kill string) *exec.Cmd {
	c.t.Helper()
	cmd := c.childProcess(id, kill)
	must(c.t, cmd.Start())
	archivetest.Eventually(c.t, time.Minute, "the process listens", func() bool {
		conn, err := net.Dial("tcp", c.Replicas[id-1].Address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return cmd
}

// untilDone is the watchdog's part within a phase: an update process that died
// is started again, without a reset.
func (c *cluster) untilDone(id uint32, kill string, cmd *exec.Cmd) {
	killed, err := wait(cmd)
	if err != nil || !killed {
		c.t.Errorf("replica %d, %s: killed: %v, %v", id, kill, killed, err)
	}
	if c.Replicas[id-1].Statement(c.t).Mode == trust.ModeUpdate {
		if killed, err := c.child(id, ""); killed || err != nil {
			c.t.Errorf("replica %d started again after %s: killed: %v, %v", id, kill, killed, err)
		}
	}
}

// One replica's process is killed at a step, and started again within the phase.
func TestKilledAndRestarted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	steps := []string{
		"before store-tick", "after store-tick", "before lookup 6", "before lookup 8",
		"before store-commit", "after store-commit", "before store-head", "after store-head", "after advance", "after lock",
	}
	if testing.Short() || archivetest.RaceDetector { // which makes each process ten times as dear
		steps = []string{"after store-tick", "after store-commit", "after store-head"}
	}
	for i, step := range steps {
		victim := uint32(i%4) + 1
		c.add(c.files(2, step), c.all()...)
		c.reset(c.all()...)
		var all sync.WaitGroup
		cmd := c.listening(victim, step)
		all.Go(func() { c.untilDone(victim, step, cmd) })
		c.run(t.Context(), c.all(victim)...)
		stop := c.serve(c.all(victim)...)
		all.Wait()
		stop()
		delete(c.last, victim)
		c.agreed(archive.Epoch(i+1), c.all()...)
		if t.Failed() {
			t.Fatalf("after a kill %s", step)
		}
	}
}

// All processes are killed at one step, and started again in the same boot: they
// take the attempt up where it was.
func TestAllKilledAndRestarted(t *testing.T) {
	for _, step := range []string{"after store-tick", "after store-commit"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 4)
			minute := archive.Duration(time.Minute)
			c.Roster.Limits.Phase, c.Roster.Limits.Join, c.Roster.Limits.Grace = 3*minute, minute, minute // all wait for all
			c.add(c.files(5, "kept"), c.all()...)
			c.reset(c.all()...)
			c.killAll(step)
			var all sync.WaitGroup
			for _, id := range c.all() {
				all.Go(func() {
					if killed, err := c.child(id, ""); killed || err != nil {
						t.Errorf("replica %d started again: %v, %v", id, killed, err)
					}
				})
			}
			all.Wait()
			rec := c.agreed(1, c.all()...)
			t.Logf("tick %d, joined %v", rec.Tick, rec.Joined)
			if rec.Names != 5 || rec.Tick != 1 || len(rec.Joined) != 4 {
				t.Errorf("record %s", rec.Bytes())
			}
		})
	}
}
