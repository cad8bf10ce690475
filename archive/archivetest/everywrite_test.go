package archivetest_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

var every = flag.Bool("every", false, "have TestEveryWrite and TestEveryPhaseWrite fail each write of an Add and of an update phase, not some, and TestSwtpmFaults, TestNetworkFaults and TestNetworkRules play each fault")

// asTracer makes the test binary call trace.
const asTracer = "BONAFIDE_TEST_AS_TRACER"

// Each write, fsync, rename and the like that a service process does for an Add
// fails once, alone. Whatever was acknowledged is there after a kill; all else
// was refused for a reason that is documented, soon, and by a process that its
// parent starts again.
func TestEveryWrite(t *testing.T) {
	e := newEvery(t)
	e.serveOnly()
	n := len(e.trial(t, "none", 0, syscall.EIO))
	if n < 20 {
		t.Fatalf("only %d writes were seen", n)
	}
	for _, no := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for i := range n {
			if *every || i%18 == int(no)%18 {
				e.trial(t, fmt.Sprintf("%d %d", no, i+1), i+1, no)
			}
		}
	}
	t.Logf("%d writes for an Add; failed: %v; requests: %v", n, e.failed, e.requests)
	e.rejoin()
	e.allBound()
	e.auditRepairs(4)
	e.unharmed()
}

// Each write that an update child does fails once, alone. The others make their
// epoch without the replica; with the next it has come back to their head, or
// before, and what it acknowledged is bound in the end.
func TestEveryPhaseWrite(t *testing.T) {
	e := newEvery(t)
	n := len(e.phaseTrial(t, "none", 0))
	if n < 20 {
		t.Fatalf("only %d writes were seen", n)
	}
	step := n
	if *every {
		step = 1
	}
	for i := n - 1 - step/2; i >= 0; i -= step {
		e.phaseTrial(t, fmt.Sprint(i+1), i+1)
	}
	t.Logf("%d writes for a phase; failed: %v; requests: %v", n, e.failed, e.requests)
	e.next()
	e.allBound()
	e.auditRepairs(4)
	e.unharmed()
}

// phaseTrial has the n-th write of replica 4's update child fail, and returns
// the writes that it did. Then another phase runs, with all well.
func (e *everyWrite) phaseTrial(t *testing.T, name string, n int) (writes []string) {
	t.Run(name, func(t *testing.T) {
		e := e.on(t)
		if a := e.newAdd(); a.these(nil, a.batch([]byte(a.id), []byte(a.id+"b")), a.single([]byte(a.id+"c")), a.submit) != a.steps {
			t.Fatalf("refused: %v", a.refused)
		}
		tr := e.trace(e.serve[4].Pid(), "update", n, syscall.EIO, "store", "mas")
		done := make(chan struct{})
		go func() {
			e.run("update", "--dir", e.replicaDir(4), "--timeout", "30s")
			close(done)
		}()
		e.phase(e.awaitEpoch(1, 1, 2, 3)+1, 1, 2, 3)
		<-done
		writes = tr.writes()
		e.tally(writes)
		e.rejoin()
	})
	return writes
}

// everyWrite makes single writes of replica 4 fail.
type everyWrite struct {
	*siege
	slow     *wire.Client                     // to replica 4, with time
	phases   *archivetest.Process             // serves replica 4, and runs its update phases
	failed   map[string]int                   // how often each call did
	requests map[string]int                   // how often each was acknowledged, or refused with what
	names    map[archive.Name]archive.Content // of acknowledged submissions
}

func newEvery(t *testing.T) *everyWrite {
	needTracer(t)
	t.Parallel()
	c := newSiege(t)
	c.bind("good/a", "here to stay")
	m, _ := c.roster.Replica(4)
	e := &everyWrite{siege: c, slow: wire.NewClient(m, c.roster, wire.Options{Timeout: time.Minute}),
		phases: c.serve[4], failed: make(map[string]int), requests: make(map[string]int), names: make(map[archive.Name]archive.Content)}
	t.Cleanup(e.slow.Close)
	return e
}

// needTracer skips a test, or fails it where all must run, if the n-th system call
// of a process cannot be made to fail: the tracer knows the registers of one kind
// of machine only.
func needTracer(t *testing.T) {
	t.Helper()
	archivetest.NeedStrace(t)
	switch {
	case canTrace:
	case os.Getenv("BONAFIDE_REQUIRE_STRACE") != "":
		t.Fatalf("no tracer for %s, and BONAFIDE_REQUIRE_STRACE is set", runtime.GOARCH)
	default:
		t.Skipf("no tracer for %s", runtime.GOARCH)
	}
}

// serveOnly has replica 4 run no update phases: when it is started again they
// would take the time for the others to join.
func (e *everyWrite) serveOnly() {
	e.t.Helper()
	e.halted()
	e.serve[4] = archivetest.Start(e.t, "serve", "--dir", e.replicaDir(4), "--roster", filepath.Join(e.dir, "roster.json"), "--service-only")
	e.awaitService(4)
}

// trial has the n-th write fail while replica 4 takes an Add, and returns the
// writes that it did for it.
func (e *everyWrite) trial(t *testing.T, name string, n int, no syscall.Errno) (writes []string) {
	t.Run(name, func(t *testing.T) {
		e := e.on(t)
		tr := e.trace(e.servicePid(4), "service", n, no, "store")
		a := e.newAdd()
		a.all(tr)
		e.anew(e.serve[4])
		writes = tr.writes()
		e.tally(writes)
		a.kept()
		if again := e.newAdd(); again.all(nil) != again.steps {
			t.Errorf("not all is taken when all is well again: %v", again.refused)
		}
	})
	return writes
}

// anew kills all processes of replica 4, and starts p in place of the first.
func (e *everyWrite) anew(p *archivetest.Process) {
	e.t.Helper()
	e.halted()
	if e.serve[4] = p; p.Restart() != nil {
		e.t.Fatal("serve does not start again")
	}
	e.awaitService(4)
}

// rejoin has replica 4 run update phases again, the first of them as it starts.
func (e *everyWrite) rejoin() {
	e.t.Helper()
	e.halted()
	if e.serve[4] = e.phases; e.phases.Restart() != nil {
		e.t.Fatal("serve does not start again")
	}
	at := e.epoch(1)
	var all sync.WaitGroup
	for id := range uint32(3) {
		all.Go(func() { e.run("update", "--dir", e.replicaDir(id+1), "--timeout", "30s") })
	}
	all.Wait()
	e.phase(at+1, e.ids()...) // if it came too late
}

// halted kills all processes of replica 4, of which the first must have come
// through.
func (e *everyWrite) halted() {
	e.t.Helper()
	p := e.serve[4]
	if out := p.Output(); syscall.Kill(p.Pid(), 0) != nil || strings.Contains(out, "panic: ") || strings.Contains(out, "fatal error: ") {
		e.t.Errorf("serve did not come through: %s", out)
	}
	p.Signal(syscall.SIGKILL)
	p.Stop(syscall.SIGKILL)
}

// on returns e for a subtest; what it counts it shares.
func (e *everyWrite) on(t *testing.T) *everyWrite {
	d := *e
	d.siege = e.siege.at(t)
	return &d
}

func (e *everyWrite) tally(writes []string) {
	for _, w := range writes {
		if f := strings.Fields(w); f[len(f)-1] == "failed" {
			e.failed[f[1]]++
		}
	}
}

// tracing is a process that makes a write fail.
type tracing struct {
	t   testing.TB
	cmd *exec.Cmd
	out string
}

// trace follows a process of replica 4 until it is killed.
func (e *everyWrite) trace(pid int, kind string, n int, no syscall.Errno, dirs ...string) *tracing {
	e.t.Helper()
	f, err := os.CreateTemp(e.t.TempDir(), "writes")
	if err != nil {
		e.t.Fatal(err)
	}
	defer f.Close()
	args := []string{strconv.Itoa(pid), kind, strconv.Itoa(n), strconv.Itoa(int(no))}
	for _, d := range dirs {
		args = append(args, filepath.Join(e.replicaDir(4), d))
	}
	tr := &tracing{e.t, exec.Command("/proc/self/exe", args...), f.Name()}
	tr.cmd.Env = append(os.Environ(), asTracer+"=1")
	tr.cmd.Stdout, tr.cmd.Stderr = f, os.Stderr
	tr.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := tr.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { tr.cmd.Process.Kill(); tr.cmd.Wait() })
	archivetest.Eventually(e.t, 20*time.Second, "the tracer has hold of the process", func() bool {
		return tr.lines() != nil && traced(pid)
	})
	return tr
}

// lines returns what the tracer has printed.
func (tr *tracing) lines() []string {
	b, err := os.ReadFile(tr.out)
	if err != nil {
		tr.t.Fatal(err)
	}
	return strings.Split(string(b), "\n")[:bytes.Count(b, []byte("\n"))]
}

func (tr *tracing) writes() []string {
	all := tr.lines()
	return all[min(1, len(all)):]
}

// hit returns the write that has failed, if it has.
func (tr *tracing) hit() string {
	for _, l := range tr.writes() {
		if strings.HasSuffix(l, " failed") {
			return l
		}
	}
	return ""
}

// oneAdd is an Add of several names at replica 4, with contents of all kinds.
type oneAdd struct {
	e        *everyWrite
	id       string
	steps    int
	refused  []error
	bodies   [][]byte // acknowledged
	bindings []archive.Binding
	bound    bool // the submission was acknowledged
}

func (e *everyWrite) newAdd() *oneAdd {
	return &oneAdd{e: e, id: strconv.FormatInt(time.Now().UnixNano(), 36)}
}

// all sends contents and submission, and returns how many of the requests were
// acknowledged.
func (a *oneAdd) all(tr *tracing) (acked int) {
	small := func(i int) []byte { return fmt.Appendf(nil, "%s small %d", a.id, i) }
	medium := func(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%s medium %d ", a.id, i), 6000) }
	large := make([]byte, 9<<20) // with holes
	copy(large, a.id)
	copy(large[len(large)-100_000:], medium(0))
	return a.these(tr,
		a.batch(small(0), small(1), medium(0)),
		a.single(small(2)),
		a.single(medium(1)),
		a.single(large),
		a.submit)
}

// these makes requests, one after the other.
func (a *oneAdd) these(tr *tracing, steps ...func(context.Context) error) (acked int) {
	for _, step := range steps {
		a.steps++
		if a.step(tr, step) {
			acked++
		}
	}
	return acked
}

// step makes one request. One in which a write failed must not be acknowledged.
func (a *oneAdd) step(tr *tracing, send func(context.Context) error) bool {
	t := a.e.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	before := ""
	if tr != nil {
		before = tr.hit()
	}
	err := send(ctx)
	if err != nil {
		a.refused = append(a.refused, err)
		a.e.requests[reasonOf(t, err)]++
		return false
	}
	a.e.requests["acknowledged"]++
	if tr != nil && before == "" && tr.hit() != "" {
		t.Errorf("request %d was acknowledged, though in it %s", a.steps, tr.hit())
	}
	return true
}

// reasonOf wants an error that is documented, or a connection that ended with
// its process.
func reasonOf(t testing.TB, err error) string {
	t.Helper()
	var known *wire.Error
	switch {
	case errors.As(err, &known):
		if !slices.Contains([]wire.Code{wire.CodeUnavailable, wire.CodeFull, wire.CodeMissing}, known.Code) {
			t.Errorf("refused with %v", err)
		}
		return string(known.Code)
	case errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err):
		t.Errorf("it hangs: %v", err)
	}
	return "gone"
}

func (a *oneAdd) batch(bodies ...[]byte) func(context.Context) error {
	slices.SortFunc(bodies, func(x, y []byte) int {
		dx, dy := archive.DigestOf(x), archive.DigestOf(y)
		return bytes.Compare(dx[:], dy[:])
	})
	return func(ctx context.Context) error {
		var all []archive.Sized
		for _, b := range bodies {
			all = append(all, archive.Sized{Digest: archive.DigestOf(b), Size: uint32(len(b))})
			a.bind(b)
		}
		up := archive.SignUploads(a.e.writers[0], a.e.roster.ID(), all)
		err := a.e.slow.PutContents(ctx, up, bytes.NewReader(bytes.Join(bodies, nil)))
		if err == nil {
			a.bodies = append(a.bodies, bodies...)
		}
		return err
	}
}

func (a *oneAdd) single(b []byte) func(context.Context) error {
	return func(ctx context.Context) error {
		a.bind(b)
		up := archive.SignUpload(a.e.writers[0], a.e.roster.ID(), archivetest.ContentOf(b))
		err := a.e.slow.PutContent(ctx, up, int64(len(b)), bytes.NewReader(b))
		if err == nil {
			a.bodies = append(a.bodies, b)
		}
		return err
	}
}

func (a *oneAdd) bind(b []byte) {
	n := archive.Name(fmt.Sprintf("every/%s/%d", a.id, len(a.bindings)))
	a.bindings = append(a.bindings, archive.Binding{Name: n, Content: archivetest.ContentOf(b)})
}

func (a *oneAdd) submit(ctx context.Context) error {
	_, err := a.e.slow.Add(ctx, a.e.submission(a.bindings...))
	if err == nil {
		a.bound = true
		for _, b := range a.bindings {
			a.e.names[b.Name] = b.Content
		}
	}
	return err
}

// kept wants at replica 4 what it has acknowledged.
func (a *oneAdd) kept() {
	t := a.e.t
	t.Helper()
	for _, b := range a.bodies {
		r, _, err := a.e.slow.Content(t.Context(), archive.DigestOf(b), 0)
		if err != nil {
			t.Errorf("a content of %d bytes was acknowledged, and is lost: %v", len(b), err)
			continue
		}
		got, err := io.ReadAll(r)
		if r.Close(); !bytes.Equal(got, b) {
			t.Errorf("a content of %d bytes is %d others: %v", len(b), len(got), err)
		}
	}
	for _, b := range a.bindings {
		if p, err := a.e.slow.Pending(t.Context(), b.Name); a.bound && (err != nil || !p.Pending) {
			t.Errorf("%q was acknowledged, and is lost: %+v, %v", b.Name, p, err)
		}
	}
}

// allBound wants everything that was acknowledged to be bound in the end.
func (e *everyWrite) allBound() {
	e.t.Helper()
	var names []archive.Name
	for n := range e.names {
		names = append(names, n)
	}
	for part := range slices.Chunk(names, 1000) {
		results, err := e.client(0).Get(e.t.Context(), part...)
		if err != nil {
			e.t.Fatal(err)
		}
		for _, r := range results {
			if r.Err != nil || r.Entry.Content != e.names[r.Name] {
				e.t.Errorf("%q was acknowledged, and is not bound: %v", r.Name, r.Err)
			}
		}
	}
}
