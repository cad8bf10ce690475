package archivetest_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/bonafide-archive/bonafide/archive/archivetest"
)

// Devices that are killed, or that hang with their sockets open, under Gets: with
// f+1 left the archive answers rightly, with fewer it says that it is not
// available, and nothing else. The next update phase brings all of them back.
func TestSwtpmFaults(t *testing.T) {
	t.Parallel()
	archivetest.NeedSwtpm(t, "swtpm")
	c := newCluster(t, 4, "swtpm")
	c.bind("chip/a", "still here")
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		at := c.awaitEpoch(1, c.ids()...)
		c.signalDevice(1, sig)
		c.signalDevice(2, sig)
		for range 3 {
			if got := c.get("chip/a"); got != "still here" {
				t.Errorf("%v of two devices: got %q", sig, got)
			}
		}
		c.signalDevice(3, sig)
		for range 2 {
			out, errs, status := c.run("get", "chip/a", "-o", "-", "--timeout", "1s")
			if status != 6 || len(out) > 0 {
				t.Errorf("%v of three devices: status %d, %q, %s", sig, status, out, errs)
			}
		}
		c.phase(at+1, c.ids()...)
		if got := c.get("chip/a"); got != "still here" {
			t.Errorf("after %v and a phase: got %q", sig, got)
		}
	}
}

// signalDevice sends sig to the swtpm of a replica.
func (c *cluster) signalDevice(id uint32, sig syscall.Signal) {
	c.t.Helper()
	for _, pid := range archivetest.Descendants(c.serve[id].Pid()) {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if strings.TrimSpace(string(name)) == "swtpm" {
			if err := syscall.Kill(pid, sig); err != nil {
				c.t.Fatal(err)
			}
			return
		}
	}
	c.t.Fatalf("replica %d has no swtpm", id)
}
