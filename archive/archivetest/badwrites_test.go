package archivetest_test

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
)

var badWrites = flag.Int("badwrites", 0, "how many more random failures of writes TestBadWrites injects")

// The system calls that bring something to the disk.
var writeCalls = []string{"pwrite64", "fsync", "fdatasync", "renameat", "fallocate"}

// Writes and fsyncs of a replica fail under it, from some moment on or now and
// then. What it acknowledges nevertheless is there after a kill; once it has
// seen a failure it acknowledges nothing more before it has started anew. The
// archive goes on without it, and it catches up.
func TestBadWrites(t *testing.T) {
	archivetest.NeedStrace(t)
	t.Parallel()
	c := newSiege(t)
	c.bind("good/a", "here to stay")
	b := &badDisk{siege: c, rnd: rand.New(rand.NewPCG(*seed, 77))}
	t.Run("fsync", func(t *testing.T) { b.at(t).service("fsync,fdatasync:error=EIO", true) })
	t.Run("write", func(t *testing.T) { b.at(t).service("pwrite64,fallocate:error=EIO", true) })
	t.Run("room", func(t *testing.T) { b.at(t).service("pwrite64,fallocate:error=ENOSPC", true) })
	t.Run("phase", func(t *testing.T) { b.at(t).phase("fsync:error=EIO:when=4+") })
	for range *badWrites {
		if t.Failed() {
			break
		}
		how := b.some()
		t.Run(how, func(t *testing.T) {
			if b := b.at(t); b.rnd.IntN(3) > 0 {
				b.service(how, false)
			} else {
				b.phase(how)
			}
		})
	}
	b.siege = c
	c.phase(c.awaitEpoch(1, 1, 2, 3)+1, c.ids()...) // it is behind
	c.auditRepairs(4)
	c.next()
	c.unharmed()
	b.allBound()
}

// badDisk makes writes of replica 4 fail.
type badDisk struct {
	*siege
	rnd   *rand.Rand
	n     int
	acked []archive.Name // by replica 4
}

func (b *badDisk) at(t *testing.T) *badDisk {
	b.siege = b.siege.at(t)
	return b
}

// some returns a random way to fail.
func (b *badDisk) some() string {
	no := []string{"EIO", "ENOSPC"}[b.rnd.IntN(2)]
	return fmt.Sprintf("%s:error=%s:when=%d+%d", writeCalls[b.rnd.IntN(len(writeCalls))], no, 1+b.rnd.IntN(8), 1+b.rnd.IntN(5))
}

// service has writes of the service process fail while it takes Adds; always
// says that none of them can come through.
func (b *badDisk) service(how string, always bool) {
	b.t.Helper()
	pid := b.servicePid(4)
	heal := b.inject(pid, how)
	acked := b.adds(6)
	if always && len(acked) > 0 {
		b.t.Errorf("acknowledged without a write: %v", acked)
	}
	heal()
	if strings.Contains(how, "fsync:error=EIO") && always {
		archivetest.Eventually(b.t, 30*time.Second, "a process that saw an fsync fail ends", func() bool { return b.servicePid(4) != pid })
	}
	b.crash(4)
	for _, n := range acked {
		b.kept(n)
	}
	b.acked = append(b.acked, acked...)
	if got := b.adds(1); len(got) != 1 {
		b.t.Error("no add is taken when all is well again")
	} else {
		b.acked = append(b.acked, got...)
	}
}

// servicePid returns the process ID of a replica's service child.
func (c *cluster) servicePid(id uint32) (pid int) {
	for _, p := range archivetest.Descendants(c.serve[id].Pid()) {
		if strings.Contains(strings.Join(archivetest.Cmdline(p), " "), " service ") {
			pid = p
		}
	}
	return pid
}

// inject makes system calls of a process, and of those that it starts, fail as
// strace is told, until heal is called.
func (b *badDisk) inject(pid int, how string) (heal func()) {
	b.t.Helper()
	cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject="+how, "-p", strconv.Itoa(pid))
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	heal = sync.OnceFunc(func() {
		cmd.Process.Kill() // told to let go, it can wait for ever for a process that is just ending
		cmd.Wait()
	})
	b.t.Cleanup(heal)
	archivetest.Eventually(b.t, 20*time.Second, "strace has hold of the process", func() bool { return traced(pid) })
	return heal
}

// traced says whether all threads of a process have a tracer.
func traced(pid int) bool {
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, f := range all {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), "TracerPid:\t0\n") {
			return false
		}
	}
	return err == nil && len(all) > 0
}

// adds uploads and submits n new names at replica 4 alone, and returns those
// that it acknowledged.
func (b *badDisk) adds(n int) (acked []archive.Name) {
	for range n {
		b.n++
		name, body := archive.Name(fmt.Sprintf("bad/%d", b.n)), fmt.Sprintf("content %d", b.n)
		content := archivetest.ContentOf([]byte(body))
		up := archive.SignUpload(b.writers[0], b.roster.ID(), content)
		ctx := b.t.Context()
		if err := b.raw[4].PutContent(ctx, up, int64(len(body)), strings.NewReader(body)); err != nil {
			continue
		}
		if _, err := b.raw[4].Add(ctx, b.submission(archive.Binding{Name: name, Content: content})); err == nil {
			acked = append(acked, name)
		}
	}
	return acked
}

// kept wants an acknowledged name, and its content, at replica 4.
func (b *badDisk) kept(n archive.Name) {
	b.t.Helper()
	if p, err := b.raw[4].Pending(b.t.Context(), n); err != nil || !p.Pending {
		b.t.Errorf("%q was acknowledged, and is lost: %+v, %v", n, p, err)
	}
	body := "content " + strings.TrimPrefix(string(n), "bad/")
	r, _, err := b.raw[4].Content(b.t.Context(), archive.DigestOf([]byte(body)), 0)
	if err != nil {
		b.t.Errorf("content of %q: %v", n, err)
		return
	}
	defer r.Close()
	if got, err := io.ReadAll(r); string(got) != body {
		b.t.Errorf("content of %q: %q, %v", n, got, err)
	}
}

// phase has writes of everything fail that replica 4's watchdog starts, while an
// update phase runs that the others bring to its end.
func (b *badDisk) phase(how string) {
	b.t.Helper()
	heal := b.inject(b.serve[4].Pid(), how)
	done := make(chan struct{})
	go func() { // it may wait until the device can be written again
		b.run("update", "--dir", b.replicaDir(4))
		close(done)
	}()
	b.cluster.phase(b.awaitEpoch(1, 1, 2, 3)+1, 1, 2, 3)
	heal()
	<-done
	b.crash(4)
	b.unlessBound()
}

// unlessBound forgets what is bound.
func (b *badDisk) unlessBound() {
	left := b.acked[:0]
	for _, n := range b.acked {
		if p, err := b.raw[4].Pending(b.t.Context(), n); err != nil || p.Pending {
			left = append(left, n)
		}
	}
	b.acked = left
}

// allBound wants everything that was acknowledged to be bound in the end.
func (b *badDisk) allBound() {
	for _, n := range b.acked {
		if got := b.get(string(n)); got != "content "+strings.TrimPrefix(string(n), "bad/") {
			b.t.Errorf("%q is bound to %q", n, got)
		}
	}
}
