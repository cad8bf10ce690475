package archivetest

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// asCommand makes a test binary behave as the program itself; it is inherited
// by the children that the program starts from /proc/self/exe.
const asCommand = "BONAFIDE_TEST_AS_COMMAND"

// program is what Command runs.
var program = "/proc/self/exe"

// Main runs a package's tests, or the program when the binary was started by
// Command. Call it from TestMain.
func Main(m *testing.M, run func(args []string) int) {
	if os.Getenv(asCommand) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(runTests(m))
}

// sideBySide is how many parallel tests run at a time: they mostly wait for
// schedules.
const sideBySide = "5"

func runTests(m *testing.M) int {
	flag.Parse()
	flag.Set("test.parallel", sideBySide)
	dir, err := os.MkdirTemp("", "bonafide-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// Build makes the program in dir where this test binary carries the race
// detector and has not been told by Apart where it is, and otherwise does nothing.
// Processes with the detector cost ten
// times as much; what they run is tested under it in one process.
func Build(dir string) error {
	if built := os.Getenv(asBuilt); built != "" {
		program = built
		return nil
	}
	if !RaceDetector {
		return nil
	}
	program = filepath.Join(dir, "bonafide")
	if out, err := exec.Command("go", "build", "-o", program, "github.com/bonafide-archive/bonafide").CombinedOutput(); err != nil {
		return fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return nil
}

// Thinned returns every third of a table's cases where the race detector makes
// each ten times as dear, and otherwise all: a race shows in one as in another.
func Thinned[T any](all []T) []T {
	if !RaceDetector {
		return all
	}
	var some []T
	for i := 0; i < len(all); i += 3 {
		some = append(some, all[i])
	}
	return some
}

// Command returns a run of the program under test with the given arguments, in
// its own process group.
func Command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, program, args...)
	c.Env = append(os.Environ(), asCommand+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // a test that runs out of time leaves nobody behind
	return c
}

// Process is a long-running run of the program.
type Process struct {
	Args []string
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
	out  *lockedBuffer
}

// Start starts the program and stops it when the test ends.
func Start(t testing.TB, args ...string) *Process {
	t.Helper()
	p := &Process{Args: args, out: new(lockedBuffer)}
	if err := p.start(); err != nil {
		t.Fatalf("start %v: %v", args, err)
	}
	t.Cleanup(func() {
		p.Stop(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("output of %v:\n%s", args, p.Output())
		}
	})
	return p
}

func (p *Process) start() error {
	c := Command(context.Background(), p.Args...)
	c.Stdout, c.Stderr = p.out, p.out
	if err := c.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.done = c, done
	p.mu.Unlock()
	go func() {
		c.Wait()
		close(done)
	}()
	return nil
}

// Stop sends sig and waits for the process to end.
func (p *Process) Stop(sig syscall.Signal) {
	p.mu.Lock()
	c, done := p.cmd, p.done
	p.mu.Unlock()
	syscall.Kill(c.Process.Pid, sig)
	<-done
}

// Restart starts the program again after Stop.
func (p *Process) Restart() error { return p.start() }

// Pid returns the process ID.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// Output returns what the program printed so far.
func (p *Process) Output() string { return p.out.String() }

// Signal sends sig to the process and all its descendants.
func (p *Process) Signal(sig syscall.Signal) {
	for _, pid := range append(Descendants(p.Pid()), p.Pid()) {
		syscall.Kill(pid, sig)
	}
}

// Descendants lists the processes that pid started, directly or not.
func Descendants(pid int) []int {
	var all []int
	for _, child := range children(pid) {
		all = append(append(all, child), Descendants(child)...)
	}
	return all
}

func children(pid int) []int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var out []int
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// Cmdline returns the arguments of a process, or nothing if it has ended.
func Cmdline(pid int) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// Ports returns the first of n free consecutive loopback ports. Those of a
// replica that is down are free to see and wanted again: so each package's tests,
// which run beside those of others, have a range of their own, below that from
// which the kernel picks ports for outgoing connections, and go round in it.
func Ports(t testing.TB, n int) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	least, end := portRange()
	if ports.next == 0 {
		ports.next = least + os.Getpid()%portsEach
	}
	for range portsEach {
		first := ports.next
		if ports.next += n; ports.next > end {
			ports.next = least
			continue
		}
		if free(first, n) {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

var ports struct {
	sync.Mutex
	next int
}

// portsEach is how many ports the tests of a package have. Those of cmd have
// 25,000 to 27,499, those of consensus the ones from there to 29,999.
const portsEach = 2500

// portRange returns the first port of this test binary, and the one after the
// last.
func portRange() (least, end int) {
	name := strings.TrimSuffix(filepath.Base(os.Args[0]), ".test")
	i := 1 + slices.Index([]string{"archivetest", "replica", "client", "wire", "content"}, name)
	least = 10_000 + i*portsEach
	return least, least + portsEach
}

func free(first, n int) bool {
	for p := first; p < first+n; p++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// Eventually polls cond until it holds, and fails the test when it does not
// within limit.
func Eventually(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// lockedBuffer keeps the last megabyte written to it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buf.Len() > 1<<20 {
		b.buf.Next(b.buf.Len() / 2)
	}
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
