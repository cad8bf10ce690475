package archivetest_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

// Devices that are killed, that hang with their sockets open, or that lose their
// power behind their replica's back, under Gets: with f+1 left the archive answers
// rightly, with fewer it does so, or says that it is not available, and nothing
// else. All come back by themselves, locked, without an update phase.
func TestSwtpmFaults(t *testing.T) {
	t.Parallel()
	archivetest.NeedSwtpm(t, "swtpm")
	c := newCluster(t, 4, "swtpm")
	c.bind("chip/a", "still here")
	at := c.awaitEpoch(1, c.ids()...)
	for _, fault := range []struct {
		name  string
		hit   func(id uint32)
		shut  bool // with three hit, nothing can be had for a while
		plain bool // without -every too
	}{
		{"killed", func(id uint32) { c.signalDevice(id, syscall.SIGKILL) }, false, false},
		{"wedged", func(id uint32) { c.signalDevice(id, syscall.SIGSTOP) }, true, true},
		{"without power", func(id uint32) { c.cycleDevice(id, false) }, false, false},
		{"power-cycled", func(id uint32) { c.cycleDevice(id, true) }, false, true},
	} {
		if !*every && !fault.plain {
			continue
		}
		l := c.getAlways("chip/a", "still here")
		back := func() {
			archivetest.Eventually(t, 90*time.Second, "devices that were "+fault.name+" vouch for their replicas again", func() bool {
				return c.vouches(1) && c.vouches(2) && c.vouches(3)
			})
		}
		if fault.shut { // all at once: the first may be back soon
			fault.hit(1)
			fault.hit(2)
			fault.hit(3)
			if out, errs, status := c.run("get", "chip/a", "-o", "-", "--timeout", "1s"); status != 6 || len(out) > 0 {
				t.Errorf("three devices %s: status %d, %q, %s", fault.name, status, out, errs)
			}
			back()
		}
		fault.hit(1)
		fault.hit(2)
		for range 3 {
			if got := c.get("chip/a"); got != "still here" {
				t.Errorf("two devices %s: got %q", fault.name, got)
			}
		}
		fault.hit(3)
		back()
		l.end(fault.name)
	}
	c.phase(at+1, c.ids()...)
	if _, errs, status := c.run("get", "chip/never", "-o", "-"); status != 4 {
		t.Errorf("absent after a phase: status %d, want 4: %s", status, errs)
	}
}

// load is Gets of one name without end.
type load struct {
	c              *cluster
	stop           atomic.Bool
	all            sync.WaitGroup
	right, refused atomic.Int32
	name, want     string
}

func (c *cluster) getAlways(name, want string) *load {
	l := &load{c: c, name: name, want: want}
	c.t.Cleanup(func() { l.stop.Store(true); l.all.Wait() })
	for range 2 {
		l.all.Go(func() {
			for !l.stop.Load() {
				l.get()
			}
		})
	}
	return l
}

func (l *load) get() {
	out, errs, status := l.c.run("get", l.name, "-o", "-", "--timeout", "2s")
	switch {
	case status == 0 && string(out) == l.want:
		l.right.Add(1)
	case status == 6 && len(out) == 0:
		l.refused.Add(1)
	case l.c.t.Context().Err() != nil: // the test has failed, and this Get was cut off
	default:
		l.c.t.Errorf("under load: status %d, %q, %s", status, out, errs)
	}
}

// end ends the load, with one Get more that must go well.
func (l *load) end(fault string) {
	l.c.t.Helper()
	l.stop.Store(true)
	l.all.Wait()
	if got := l.c.get(l.name); got != l.want {
		l.c.t.Errorf("after %s: got %q", fault, got)
	}
	l.c.t.Logf("%s: %d Gets answered, %d told to try again", fault, l.right.Load(), l.refused.Load())
	if l.right.Load() == 0 {
		l.c.t.Errorf("%s: no Get was answered", fault)
	}
}

// vouches says whether a replica's device attests its head.
func (c *cluster) vouches(id uint32) bool {
	m, _ := c.roster.Replica(id)
	w := wire.NewClient(m, c.roster, wire.Options{Timeout: 2 * time.Second})
	defer w.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	n := trust.Nonce{byte(id)}
	a, err := w.Answer(ctx, wire.AnswerRequest{Nonce: n, Name: "chip/a"})
	if err != nil {
		return false
	}
	if _, err := a.Verify(c.roster, id, n); err != nil {
		c.t.Errorf("replica %d: %v", id, err)
	}
	return true
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

// cycleDevice takes the power of a replica's swtpm away and gives it back, and, if
// told to, starts the TPM up, unlocked, as a machine's firmware would.
func (c *cluster) cycleDevice(id uint32, startup bool) {
	c.t.Helper()
	c.tell(id, "tpm.sock.ctrl", binary.BigEndian.AppendUint64(nil, 2<<32), 4) // CMD_INIT, no flags
	if startup {
		c.tell(id, "tpm.sock", []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0}, 10) // TPM2_Startup(CLEAR)
	}
}

// tell sends a message to one of the sockets of a replica's swtpm and waits for n
// bytes.
func (c *cluster) tell(id uint32, socket string, message []byte, n int) {
	c.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(c.replicaDir(id), "run", socket))
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = conn.Write(message); err == nil {
		_, err = io.ReadFull(conn, make([]byte, n))
	}
	if err != nil {
		c.t.Fatalf("replica %d: %s: %v", id, socket, err)
	}
}
