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
	childKill = "BONAFIDE_TEST_CHILD_KILL" // "before" or "after", and a durable change, or "lookup" and its number, at which it kills itself
	childHold = "BONAFIDE_TEST_CHILD_HOLD" // if set, it stops there instead, and writes a byte to its file 3
	childTell = "BONAFIDE_TEST_CHILD_TELL" // if set, it writes a byte to its file 3 at each point
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
	d := &suicide{MAS: mas, when: when, op: op}
	if os.Getenv(childTell) != "" {
		d.tell = os.NewFile(3, "tell")
	}
	if _, err := Update(t.Context(), Config{Dir: dir, ID: uint32(id), Roster: r, MAS: d, at: d.at}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	open, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	fmt.Println("descriptors", len(open))
}

// suicide kills its process with kill -9 at one point of the phase, or at one
// lookup in its device.
type suicide struct {
	trust.MAS
	when, op string
	mu       sync.Mutex
	lookups  int
	held     sync.Once
	tell     *os.File
}

// at dies at the one point of the phase.
func (d *suicide) at(point string) {
	if d.tell != nil {
		d.tell.Write([]byte{1})
	}
	if point == d.when+" "+d.op {
		d.die()
	}
}

func (d *suicide) die() {
	if os.Getenv(childHold) == "" {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	d.held.Do(func() {
		if _, err := os.NewFile(3, "hold").Write([]byte{1}); err != nil {
			panic(err)
		}
	})
	select {}
}

func (d *suicide) Lookup(ctx context.Context, n trust.Nonce) (a trust.Attestation, err error) {
	d.mu.Lock()
	d.lookups++
	op := fmt.Sprint("lookup ", d.lookups)
	d.mu.Unlock()
	d.at("before " + op)
	a, err = d.MAS.Lookup(ctx, n)
	d.at("after " + op)
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
// step, and kills them there. Once f+1 stop there the others may lack the company
// that it takes to come: after some seconds they are killed where they are.
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
	_, err = io.ReadFull(held, make([]byte, c.Roster.F+1))
	held.SetReadDeadline(time.Now().Add(lastPatience))
	more, _ := io.ReadFull(held, make([]byte, len(all)-c.Roster.F-1))
	c.t.Logf("%s: %d replicas have come", step, c.Roster.F+1+more)
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

// lastPatience is how long killAll waits for the last.
const lastPatience = 8 * time.Second

// listening starts the update process of a replica, and returns once it listens.
func (c *cluster) listening(id uint32, kill string) *exec.Cmd {
	c.t.Helper()
	cmd := c.childProcess(id, kill)
	must(c.t, cmd.Start())
	archivetest.Eventually(c.t, time.Minute, "the process listens", func() bool { return c.listens(id) })
	return cmd
}

// listens says whether a process of the replica listens.
func (c *cluster) listens(id uint32) bool {
	conn, err := net.Dial("tcp", c.Replicas[id-1].Address)
	if err == nil {
		conn.Close()
	}
	return err == nil
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
		"before tick", "after tick", "before lookup 6", "before lookup 8",
		"before commit", "after commit", "before head", "after head", "after counter", "after lock",
	}
	if testing.Short() || archivetest.RaceDetector { // which makes each process ten times as dear
		steps = []string{"after tick", "after commit", "after head"}
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
	for _, step := range []string{"after tick", "after commit"} {
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

// A tree that takes its names in parts is cut off after the first: in the same
// boot or after a reset, none is lost and none is there before its epoch.
func TestKilledBetweenParts(t *testing.T) {
	for _, reset := range []bool{false, true} {
		t.Run(fmt.Sprintf("reset %v", reset), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 4)
			var all []archive.Submission
			for i := range addedAtOnce/archive.MaxBindings + 1 {
				all = append(all, c.files(archive.MaxBindings, fmt.Sprint("part", i)))
			}
			c.addAll(all, c.all()...)
			c.reset(c.all()...)
			c.killAll("after tree")
			c.withStore(1, func(s *Store) error {
				tr, err := s.OpenTree(true)
				if err != nil {
					return err
				}
				defer tr.Close()
				if _, n, err := tr.Rehash(t.Context(), nil); err != nil || n != addedAtOnce {
					t.Errorf("killed with %d names in the tree, %v; want %d", n, err, addedAtOnce)
				}
				return nil
			})
			if reset {
				c.reset(c.all()...)
			}
			c.run(t.Context(), c.all()...)
			if rec := c.agreed(1, c.all()...); rec.Names != uint64(len(all)*archive.MaxBindings) || c.pending(1) != 0 {
				t.Errorf("%d names, %d pending; want %d", rec.Names, c.pending(1), len(all)*archive.MaxBindings)
			}
		})
	}
}
