package archivetest_test

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
)

var (
	huge   = flag.Bool("huge", false, "have TestMemory add 20 GiB of zeros and 4 GiB of random bytes")
	restic = flag.Int("restic", 0, "how many rounds TestAddBesideRestic takes")
)

// randomFile writes size bytes that depend on seed.
func (c *cluster) randomFile(name string, seed byte, size int64) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	f, err := os.Create(path)
	if err == nil {
		_, err = io.CopyN(f, rand.NewChaCha8([32]byte{seed}), size)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return path
}

func digestOfFile(t *testing.T, path string) archive.Digest {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return archive.Digest(h.Sum(nil))
}

// partial returns how much a replica has of uploads under way, in bytes.
func (c *cluster) partial(id uint32) (n int64) {
	entries, _ := os.ReadDir(filepath.Join(c.replicaDir(id), "store", "partial"))
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			n += fi.Size()
		}
	}
	return n
}

// underWay waits, as closely as it can, until a replica has got some of an
// upload.
func (c *cluster) underWay(id uint32, more int64) {
	c.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); c.partial(id) < more; {
		select {
		case <-tick.C:
		case <-late:
			c.t.Fatalf("replica %d got no upload", id)
		}
	}
}

// An upload goes on after the client was killed in the middle, and then after two
// replicas were.
func TestUploadKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, "software")
	const size = 160 << 20
	file := c.randomFile("large", 1, size)
	add := func() *exec.Cmd {
		cmd := c.command("add", "large", file)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	cmd := add()
	c.underWay(1, 4<<20)
	cmd.Process.Kill()
	cmd.Wait()
	left := c.partial(1)
	if left == 0 || left >= size {
		t.Fatalf("the client was killed with %d bytes at replica 1", left)
	}
	cmd = add()
	c.underWay(1, left+4<<20)
	services := c.services()
	if len(services) != 4 {
		t.Fatalf("%d service processes", len(services))
	}
	for _, pid := range services[2:] {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := cmd.Wait(); err != nil { // two were away for too long
		t.Logf("%v; once more", err)
		c.ok("add", "large", file)
	}
	c.phase(2, 1, 2, 3, 4)
	out := filepath.Join(c.dir, "out")
	c.ok("get", "large", "-o", out)
	if digestOfFile(t, out) != digestOfFile(t, file) {
		t.Error("got other bytes")
	}
}

// maxMemory is how much memory a process may take, in KiB, however large a
// content is.
const maxMemory = 256 << 10

// Memory does not grow with contents, neither the client's nor a replica's, and
// holes stay holes on the replicas.
func TestMemory(t *testing.T) {
	c := newCluster(t, 4, "software")
	zeros, noise := int64(128<<20), int64(32<<20)
	if *huge {
		zeros, noise = 20<<30, 4<<30
	}
	sparse := c.write("sparse", []byte("begin"))
	if err := os.Truncate(sparse, zeros); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"sparse": sparse, "random": c.randomFile("random", 2, noise)}
	for _, name := range []string{"random", "sparse"} {
		c.measured("add", name, files[name])
	}
	d := digestOfFile(t, sparse)
	for _, m := range c.roster.Replicas {
		fi, err := os.Stat(archivetest.ContentPath(c.replicaDir(m.ID), d))
		if err != nil {
			t.Fatal(err)
		}
		if on := fi.Sys().(*syscall.Stat_t).Blocks * 512; fi.Size() != zeros || on > 1<<20 {
			t.Errorf("replica %d: the sparse file takes %d bytes of the disk", m.ID, on)
		}
	}
	c.phase(2, 1, 2, 3, 4)
	for name, file := range files {
		out := filepath.Join(c.dir, "out")
		c.measured("get", name, "-o", out)
		if digestOfFile(t, out) != digestOfFile(t, file) {
			t.Errorf("%s: got other bytes", name)
		}
		os.Remove(out)
	}
}

// measured runs a command that must succeed, and wants it and the replicas'
// services to have taken little memory.
func (c *cluster) measured(args ...string) {
	c.t.Helper()
	began := time.Now()
	cmd := c.command(append([]string{"--timeout", "60s"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
	var served []int64
	for _, pid := range c.services() {
		served = append(served, peakOf(pid))
	}
	c.t.Logf("%s %s: %.1f s; MiB of memory: client %d, services %v", args[0], args[1], time.Since(began).Seconds(), peak>>10, inMiB(served))
	for _, n := range append(served, peak) {
		if n > maxMemory {
			c.t.Errorf("%v: a process took %d KiB", args, n)
		}
	}
}

func inMiB(kib []int64) (out []int64) {
	for _, n := range kib {
		out = append(out, n>>10)
	}
	return out
}

// peakOf returns the most memory that a process has had, in KiB.
func peakOf(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n
		}
	}
	return 0
}

// Adding a directory to four replicas is at most twice as long as one backup of
// it by restic, and says so; also how it compares with the floor. All run in turn,
// and the quickest of each counts.
func TestAddBesideRestic(t *testing.T) {
	if *restic == 0 {
		t.Skip("takes minutes: -args -restic 3")
	}
	if _, err := exec.LookPath("restic"); err != nil {
		t.Fatal("no restic to add beside (apt install restic)")
	}
	for _, corpus := range []struct {
		name     string
		n, bytes int
	}{{"2048 x 512 KiB", 2048, 512 << 10}, {"100000 x 1 KiB", 100_000, 1 << 10}} {
		dir := makeCorpus(t, corpus.n, corpus.bytes)
		var ours, theirs, floors []time.Duration
		for range *restic {
			wall, work := backup(t, dir)
			theirs = append(theirs, wall)
			bare, least := floor(t, dir, corpus.bytes)
			floors = append(floors, bare)
			c := newCluster(t, 4, "software")
			began, before := time.Now(), c.servedFor()
			client := c.command("-q", "add", "-r", "corpus", dir)
			if out, err := client.CombinedOutput(); err != nil {
				t.Fatalf("add -r: %v\n%s", err, out)
			}
			ours = append(ours, time.Since(began))
			t.Logf("%s: of the processors' time the client took %.1f s, the replicas %.1f s, the floor %.1f s, restic %.1f s", corpus.name,
				worked(client.ProcessState).Seconds(), (c.servedFor() - before).Seconds(), least.Seconds(), work.Seconds())
			c.allHold(corpus.n)
			for _, m := range c.roster.Replicas {
				c.serve[m.ID].Stop(syscall.SIGKILL)
			}
		}
		a, b, bare := slices.Min(ours).Seconds(), slices.Min(theirs).Seconds(), slices.Min(floors).Seconds()
		t.Logf("%s: add -r to four replicas %.1f s, restic backup %.1f s: %.2f (all: %v, %v)", corpus.name, a, b, a/b, ours, theirs)
		t.Logf("%s: the floor %.1f s: %.2f of restic backup; add -r %.2f of the floor (all: %v)", corpus.name, bare, bare/b, a/bare, floors)
		if a > 2*b {
			t.Errorf("%s: more than twice as long", corpus.name)
		}
	}
}

// makeCorpus makes a directory of n files of random bytes, a thousand in each
// below it.
func makeCorpus(t *testing.T, n, bytes int) string {
	t.Helper()
	dir := t.TempDir()
	src := rand.NewChaCha8([32]byte{byte(n)})
	b := make([]byte, bytes)
	for i := range n {
		src.Read(b)
		path := filepath.Join(dir, fmt.Sprintf("%03d", i/1000), fmt.Sprintf("%06d", i))
		if i%1000 == 0 {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// servedFor returns how much of the processors' time the replicas' services have
// taken so far.
func (c *cluster) servedFor() (all time.Duration) {
	c.t.Helper()
	const tick = time.Second / 100 // USER_HZ
	for _, pid := range c.services() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			c.t.Fatal(err)
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		user, _ := strconv.Atoi(f[11])
		sys, _ := strconv.Atoi(f[12])
		all += time.Duration(user+sys) * tick
	}
	return all
}

// worked returns how much of the processors' time a process took.
func worked(p *os.ProcessState) time.Duration { return p.UserTime() + p.SystemTime() }

// backup backs dir up into a new repository and returns how long that took, and
// how much of the processors' time.
func backup(t *testing.T, dir string) (wall, work time.Duration) {
	t.Helper()
	repo := t.TempDir()
	run := func(args ...string) *os.ProcessState {
		c := exec.CommandContext(t.Context(), "restic", append([]string{"-q", "--no-cache", "-r", repo}, args...)...)
		c.Env = append(os.Environ(), "RESTIC_PASSWORD=x")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("restic %v: %v\n%s", args, err, out)
		}
		return c.ProcessState
	}
	run("init")
	began := time.Now()
	p := run("backup", dir)
	return time.Since(began), worked(p)
}

// allHold wants n names to wait at every replica: each has checked then that it
// holds their contents.
func (c *cluster) allHold(n int) {
	c.t.Helper()
	for _, m := range c.roster.Replicas {
		if st, err := c.status(m.ID); err != nil || st.Pending != uint64(n) {
			c.t.Errorf("replica %d has %d names pending, want %d; %v", m.ID, st.Pending, n, err)
		}
	}
}
