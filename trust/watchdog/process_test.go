package watchdog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary plays the children, and a watchdog to be killed: roleEnv says
// which. Every process of a test holds the write end of one pipe, its standard
// output, so that the end of that stream means that nobody is left.
const roleEnv = "BONAFIDE_WATCHDOG_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(strings.Fields(role)))
	}
	goleak.VerifyTestMain(m)
}

func play(role []string) int {
	switch role[0] {
	case "exit":
		return 0
	case "kill-self-once": // dies of SIGKILL the first time
		if mark(role[1]) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	case "polite":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		fmt.Println("polite", os.Getpid())
		<-stop
		fmt.Println("goodbye")
	case "stubborn":
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
		fmt.Println("stubborn", os.Getpid())
		hang()
	case "parent": // of a bound grandchild
		if _, err := Start(actor(os.Stdout, "stubborn")); err != nil {
			return 1
		}
		fmt.Println("parent", os.Getpid())
		hang()
	case "group": // with a grandchild that is only in its group
		if err := actor(os.Stdout, "stubborn").Start(); err != nil {
			return 1
		}
		fmt.Println("group", os.Getpid())
		hang()
	case "watchdog":
		w := New(Config{
			Schedule: never{}, Device: noDevice{},
			Update:  func(context.Context) *exec.Cmd { return actor(os.Stdout, role[1]) },
			Service: func(context.Context) *exec.Cmd { return actor(os.Stdout, role[2]) },
		})
		_ = w.Run(context.Background())
	}
	return 0
}

// hang never returns, nor looks like a deadlock to the runtime.
func hang() {
	for {
		_ = syscall.Pause()
	}
}

// mark reports whether it is the first to be called with this path.
func mark(path string) bool {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

func actor(out *os.File, role ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+strings.Join(role, " "), "GORACE=atexit_sleep_ms=0")
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	return cmd
}

// noDevice needs no reset and no lock.
type noDevice struct{}

func (noDevice) Reset(context.Context) error { return nil }
func (noDevice) Lock(context.Context) error  { return nil }

// stage is the pipe that all processes of one test write to.
type stage struct {
	t     *testing.T
	write *os.File
	read  *os.File
	lines *bufio.Reader
}

func newStage(t *testing.T) *stage {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return &stage{t: t, write: w, read: r, lines: bufio.NewReader(r)}
}

// hear returns the next line's process id after its word.
func (s *stage) hear(want string) (pid int) {
	s.t.Helper()
	line, err := s.lines.ReadString('\n')
	if err != nil {
		s.t.Fatalf("waiting for %q: %v", want, err)
	}
	var got string
	_, _ = fmt.Sscan(line, &got, &pid)
	if got != want {
		s.t.Fatalf("heard %q, want %q", line, want)
	}
	return pid
}

// empty waits until no process holds the pipe.
func (s *stage) empty() {
	s.t.Helper()
	s.write.Close()
	rest, err := io.ReadAll(s.lines)
	if err != nil {
		s.t.Fatalf("somebody is left: %v, last words %q", err, rest)
	}
}

func start(t *testing.T, cmd *exec.Cmd) *Process {
	t.Helper()
	p, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStart(t *testing.T) {
	s := newStage(t)
	p := start(t, actor(s.write, "polite"))
	if pid := s.hear("polite"); pid != p.Pid() {
		t.Errorf("Pid = %d, want %d", p.Pid(), pid)
	}
	p.Signal(syscall.SIGTERM)
	<-p.Done()
	s.hear("goodbye")
	if p.Err() != nil || p.Status() != 0 {
		t.Errorf("after SIGTERM: %v, status %d", p.Err(), p.Status())
	}
	p.Signal(syscall.SIGTERM) // to nobody
	p.Kill()
	s.empty()
	if _, err := Start(exec.Command("/nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Start of no program: %v", err)
	}
}

func TestKillTakesTheGroup(t *testing.T) {
	s := newStage(t)
	p := start(t, actor(s.write, "group"))
	s.hears("group", "stubborn")
	p.Kill()
	<-p.Done()
	if p.Err() == nil || p.Status() != -1 {
		t.Errorf("after Kill: %v, status %d", p.Err(), p.Status())
	}
	s.empty()
}

// hears waits for both lines, in whatever order, and returns their ids.
func (s *stage) hears(words ...string) map[string]int {
	s.t.Helper()
	got := map[string]int{}
	for range words {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			s.t.Fatalf("heard %v: %v", got, err)
		}
		var word string
		var pid int
		_, _ = fmt.Sscan(line, &word, &pid)
		got[word] = pid
	}
	for _, w := range words {
		if got[w] == 0 {
			s.t.Fatalf("heard %v, want %v", got, words)
		}
	}
	return got
}

// A child that dies by another's hand takes its group along.
func TestDeathTakesTheGroup(t *testing.T) {
	s := newStage(t)
	p := start(t, actor(s.write, "group"))
	s.hears("group", "stubborn")
	if err := syscall.Kill(p.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	s.empty()
}

// The kernel's death signal follows the thread that forked. A child must not
// die with the thread of the goroutine that called Start.
func TestChildOutlivesTheStartingThread(t *testing.T) {
	s := newStage(t)
	var p *Process
	var err error
	tid := onDyingThread(func() { p, err = Start(actor(s.write, "polite")) })
	if err != nil {
		t.Fatal(err)
	}
	s.hear("polite")
	for threadExists(tid) {
		runtime.Gosched()
	}
	p.Signal(syscall.SIGTERM)
	s.hear("goodbye") // it was there to say so
	<-p.Done()
	if p.Err() != nil {
		t.Errorf("child ended of %v", p.Err())
	}
}

// onDyingThread calls f on a thread that ends soon after, and returns its id.
// The main thread never ends: where that comes up, it is kept busy meanwhile.
func onDyingThread(f func()) (tid int) {
	gone := make(chan int)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with this goroutine
		tid := syscall.Gettid()
		if tid == os.Getpid() {
			tid = onDyingThread(f)
			runtime.UnlockOSThread()
		} else {
			f()
		}
		gone <- tid
	}()
	return <-gone
}

func threadExists(tid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
	return err == nil
}

// Nothing survives a kill -9 of the watchdog: not the child, however it treats
// signals, and not what the child has started.
func TestNothingSurvivesTheWatchdog(t *testing.T) {
	tests := []struct {
		name, update, service string
		hear                  []string
	}{
		{"in the service phase", "exit", "stubborn", []string{"stubborn"}},
		{"in the update phase", "stubborn", "exit", []string{"stubborn"}},
		{"with a grandchild", "exit", "parent", []string{"parent", "stubborn"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			dog := actor(s.write, "watchdog", tt.update, tt.service)
			if err := dog.Start(); err != nil {
				t.Fatal(err)
			}
			s.hears(tt.hear...)
			if err := dog.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = dog.Wait()
			s.empty()
		})
	}
}

// real runs a watchdog over real children in this process.
func real(t *testing.T, c Config) (w *Watchdog, stop func()) {
	t.Helper()
	c.Schedule, c.Device = never{}, noDevice{}
	c.BackoffMin = time.Millisecond
	w = New(c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return w, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func TestKilledServiceComesBack(t *testing.T) {
	s := newStage(t)
	shown := map[int]bool{}
	_, stop := real(t, Config{
		Update:   func(context.Context) *exec.Cmd { return actor(s.write, "exit") },
		Service:  func(context.Context) *exec.Cmd { return actor(s.write, "polite") },
		OnChange: func(s State) { shown[s.Child] = true },
	})
	seen := map[int]bool{}
	for range 5 {
		pid := s.hear("polite")
		seen[pid] = true
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	s.hear("polite")
	stop()
	s.hear("goodbye")
	s.empty()
	if len(seen) != 5 {
		t.Errorf("children %v, want five", seen)
	}
	for pid := range seen {
		if !shown[pid] {
			t.Errorf("child %d never stood in the state", pid)
		}
	}
}

func TestKilledUpdateComesBackWithinThePhase(t *testing.T) {
	s := newStage(t)
	path := filepath.Join(t.TempDir(), "died")
	w, stop := real(t, Config{
		Update:  func(context.Context) *exec.Cmd { return actor(s.write, "kill-self-once", path) },
		Service: func(context.Context) *exec.Cmd { return actor(s.write, "polite") },
	})
	s.hear("polite")
	if got := w.State(); got.Phases != 1 || got.LastError != "" {
		t.Errorf("after the phase: %+v", got)
	}
	if mark(path) {
		t.Error("the update child never died")
	}
	stop()
	s.hear("goodbye")
	s.empty()
}

func TestHardEndOfAPhase(t *testing.T) {
	s := newStage(t)
	w, stop := real(t, Config{
		PhaseLimit: 500 * time.Millisecond,
		Update:     func(context.Context) *exec.Cmd { return actor(s.write, "stubborn") },
		Service:    func(context.Context) *exec.Cmd { return actor(s.write, "polite") },
	})
	s.hear("stubborn")
	s.hear("polite")
	if got := w.State().LastError; !strings.Contains(got, "over its time limit") {
		t.Errorf("LastError = %q", got)
	}
	stop()
	s.hear("goodbye")
	s.empty()
}

func TestStubbornServiceIsKilledAfterGrace(t *testing.T) {
	s := newStage(t)
	_, stop := real(t, Config{
		StopGrace: 20 * time.Millisecond,
		Update:    func(context.Context) *exec.Cmd { return actor(s.write, "exit") },
		Service:   func(context.Context) *exec.Cmd { return actor(s.write, "stubborn") },
	})
	s.hear("stubborn")
	stop()
	s.empty()
}

func TestStoppedServiceIsKilled(t *testing.T) {
	s := newStage(t)
	w, stop := real(t, Config{
		StopGrace: 20 * time.Millisecond,
		Update:    func(context.Context) *exec.Cmd { return actor(s.write, "exit") },
		Service:   func(context.Context) *exec.Cmd { return actor(s.write, "polite") },
	})
	if err := syscall.Kill(s.hear("polite"), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := w.Trigger(t.Context()); err != nil {
		t.Errorf("Trigger over a stopped child: %v", err)
	}
	s.hear("polite")
	stop()
	s.hear("goodbye")
	s.empty()
}
