package replica

import (
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
)

var (
	inARow = flag.Int("inarow", 2, "how often in a row TestKilledInARow kills all replicas")
	phases = flag.Int("phases", 0, "how many phases TestManyPhases runs on one archive; 0: few, with no bound checked")
)

// All replicas are killed at random points of an update phase, time after time,
// in one boot or another. When they are left alone they make their epoch: one
// history, and all that was pending before is in the first epoch of it.
func TestKilledInARow(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(*seed, 10))
	c := newCrashed(t, "all")
	c.Roster.Limits.Grace = archive.Duration(2 * time.Second)
	c.whole()
	first := c.at + 1
	c.pend(c.all()...)
	names := maps.Clone(c.names)
	c.reset(c.all()...)
	for range *inARow {
		if rnd.IntN(2) == 0 || c.anyLocked() {
			c.reset(c.all()...)
		}
		n := 1 + rnd.IntN(4*2*25) // as many as four replicas come by in a phase
		t.Logf("killed at the %d-th point of all", c.killAt(n))
	}
	c.undisturbed() // its epoch may be one that was committed, and frozen, before a kill
	for n, d := range names {
		if e, ok := c.entry(1, n); !ok || e.Digest != d || e.Epoch != first {
			t.Errorf("%q, pending before epoch %d was made: %+v", n, first, e)
		}
	}
	c.whole()
	t.Logf("seed %d: epochs %d to %d", *seed, first, c.at)
}

func (c *crashed) anyLocked() bool {
	for _, r := range c.Replicas {
		if r.Statement(c.t).Mode != trust.ModeUpdate {
			return true
		}
	}
	return false
}

// killAt runs all update processes until together they have come by n points,
// or nothing more happens, and kills them. It returns how many they came by.
func (c *crashed) killAt(n int) int {
	c.t.Helper()
	told, tell, err := os.Pipe()
	must(c.t, err)
	defer told.Close()
	var all []*exec.Cmd
	for _, id := range c.all() {
		cmd := c.childProcess(id, "")
		cmd.Env, cmd.ExtraFiles = append(cmd.Env, childTell+"=1"), []*os.File{tell}
		must(c.t, cmd.Start())
		all = append(all, cmd)
	}
	tell.Close()
	told.SetReadDeadline(time.Now().Add(20 * time.Second))
	came, _ := io.ReadFull(told, make([]byte, n))
	for _, cmd := range all {
		cmd.Process.Kill()
		wait(cmd) // some may have ended before
	}
	return came
}

// Phase after phase on one archive, an update process takes no more memory, no
// more descriptors and no more of the disk than before: one record and its
// certificate a phase.
func TestManyPhases(t *testing.T) {
	t.Parallel()
	c := newCrashed(t, "all")
	c.whole()
	var costs []cost
	for range max(*phases, 2) {
		costs = append(costs, c.measured())
	}
	n := max(len(costs)/10, 1)
	early, late := mean(costs[:n]), mean(costs[len(costs)-n:])
	t.Logf("%d phases: at first %+v, at last %+v", len(costs), early, late)
	// To and from each peer a connection may still be open, or not.
	if late.descriptors > early.descriptors+2*(len(c.Replicas)-1) {
		t.Errorf("%d descriptors at last, %d at first", late.descriptors, early.descriptors)
	}
	if late.files > 2 || late.bytes > 8<<10 {
		t.Errorf("a phase leaves %d files, %d bytes", late.files, late.bytes)
	}
	if *phases > 0 && late.memory > early.memory*5/4 {
		t.Errorf("%d KiB at last, %d at first", late.memory, early.memory)
	}
}

// cost is what replica 1 took for a phase.
type cost struct {
	memory      int64 // peak, KiB
	descriptors int   // open at its end
	files       int   // more than before
	bytes       int64 // on the disk, more than before
}

func mean(all []cost) (m cost) {
	for _, x := range all {
		m.memory += x.memory
		m.descriptors += x.descriptors
		m.files += x.files
		m.bytes += x.bytes
	}
	n := len(all)
	return cost{m.memory / int64(n), m.descriptors / n, m.files / n, m.bytes / int64(n)}
}

// measured runs a phase with nothing to add.
func (c *crashed) measured() (x cost) {
	c.t.Helper()
	files, bytes := usage(c.t, c.Replicas[0].Dir)
	c.reset(c.all()...)
	var all sync.WaitGroup
	for _, id := range c.all() {
		all.Go(func() {
			cmd := c.childProcess(id, "")
			err := cmd.Start()
			if err == nil {
				_, err = wait(cmd)
			}
			if err != nil {
				c.t.Errorf("replica %d: %v", id, err)
			} else if id == 1 {
				x.memory = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
				m := regexp.MustCompile(`descriptors (\d+)`).FindStringSubmatch(fmt.Sprint(cmd.Stdout))
				x.descriptors, _ = strconv.Atoi(m[1])
			}
		})
	}
	all.Wait()
	if c.t.Failed() {
		c.t.FailNow()
	}
	after, now := usage(c.t, c.Replicas[0].Dir)
	x.files, x.bytes = after-files, now-bytes
	return x
}

// usage counts the files below dir and the bytes that the disk gives them.
func usage(t testing.TB, dir string) (files int, bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			files, bytes = files+1, bytes+info.Sys().(*syscall.Stat_t).Blocks*512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, bytes
}
