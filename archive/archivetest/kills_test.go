package archivetest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// Service and update children, and now and then the serve process of a trial,
// are killed at random moments, half of them at a step of an update phase, while
// writers add and readers get. The history of what clients saw must be that of
// a register a name that is written once; what 2f+1 replicas acknowledged must
// be bound in the end; and the archive must go on.
func TestKills(t *testing.T) {
	t.Parallel()
	tr := newTrial(t, "@every 4s")
	h := newHistory()
	stop := make(chan struct{})
	var all sync.WaitGroup
	for w := range 2 {
		all.Go(func() { h.write(t, tr, w, stop) })
		all.Go(func() { h.read(t, tr, w, stop) })
	}
	archivetest.Eventually(t, 60*time.Second, "a name is acknowledged", func() bool { return len(h.ackedNames()) > 0 })
	k := &killer{trial: tr, rnd: rand.New(rand.NewPCG(*seed, 0)), hit: make(map[string]int)}
	for k.total() < *kills {
		k.kill(t)
	}
	t.Logf("seed %d: killed %v", *seed, k.hit)
	close(stop)
	all.Wait()
	h.settle(t, tr)
	h.check(t)
}

// trial is a whole archive under one serve process.
type trial struct {
	dir    string
	serve  *archivetest.Process
	roster *archive.Roster
}

func newTrial(t *testing.T, every string) *trial {
	dir := filepath.Join(t.TempDir(), "trial")
	port := archivetest.Ports(t, 8)
	tr := &trial{dir: dir, serve: archivetest.Start(t, "serve", "--dir", dir, "--every", every, "--listen", fmt.Sprintf("127.0.0.1:%d", port))}
	archivetest.Eventually(t, 60*time.Second, "the trial has a roster", func() bool {
		r, err := readRoster(filepath.Join(dir, "roster.json"))
		tr.roster = r
		return err == nil
	})
	return tr
}

func (tr *trial) client(t testing.TB) *client.Client {
	cl, err := client.New(client.Config{Roster: tr.roster, Key: readKey(t, filepath.Join(tr.dir, "writer.key"))})
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

// killer kills one process after the other.
type killer struct {
	trial *trial
	rnd   *rand.Rand
	hit   map[string]int // how many of each kind
}

// kill waits for a random moment and kills a random child, or, once in twenty,
// the serve process, which it then starts again.
func (k *killer) kill(t *testing.T) {
	pause(time.Duration(k.rnd.IntN(800)) * time.Millisecond)
	if k.rnd.IntN(20) == 0 {
		k.hit["serve"]++
		k.trial.serve.Stop(syscall.SIGKILL)
		if err := k.trial.serve.Restart(); err != nil {
			t.Fatal(err)
		}
		return
	}
	if k.rnd.IntN(2) == 0 {
		k.killIn(steps[k.rnd.IntN(len(steps))], 1+k.rnd.IntN(4))
		return
	}
	if pids := k.children("service"); len(pids) > 0 {
		k.hit["service"]++
		syscall.Kill(pids[k.rnd.IntN(len(pids))], syscall.SIGKILL)
	}
}

// steps are what an update child logs when it ends a step of the phase.
var steps = []string{"opened", `"tick chosen"`, "joined", `"proposals certified"`, `"block decided"`,
	"applied", "prepared", "committed", `"head stored"`, "lingered"}

// killIn waits until the update child of a replica has ended a step, and kills
// it within the next milliseconds.
func (k *killer) killIn(step string, id int) {
	dir := filepath.Join(k.trial.dir, fmt.Sprintf("replica-%d", id))
	logged := filepath.Join(dir, "run", "update.log")
	before := tail(logged, 0)
	for range 15_000 {
		if strings.Contains(tail(logged, len(before)), "msg="+step+" ") {
			break
		}
		pause(time.Millisecond)
	}
	pause(time.Duration(k.rnd.IntN(20)) * time.Millisecond)
	for _, pid := range k.children("update") {
		if slices.Contains(archivetest.Cmdline(pid), dir) {
			k.hit["update after "+step]++
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// tail returns what a log holds from an offset on; all of it, if it has become
// shorter.
func tail(name string, from int) string {
	b, _ := os.ReadFile(name)
	if from > len(b) {
		from = 0
	}
	return string(b[from:])
}

func (k *killer) total() (n int) {
	for _, times := range k.hit {
		n += times
	}
	return n
}

// children lists the serve process's children that run the given command.
func (k *killer) children(kind string) []int {
	return slices.DeleteFunc(archivetest.Descendants(k.trial.serve.Pid()), func(pid int) bool {
		return !slices.Contains(archivetest.Cmdline(pid), kind)
	})
}

// pause waits. Randomly spread kills are the purpose here, not synchronisation.
func pause(d time.Duration) { <-time.After(d) }

// input is an operation on one name: an Add of a digest, or a Get.
type input struct {
	name  archive.Name
	add   archive.Digest // zero: a Get
	reply archive.Digest // what the name was bound to; zero: proven absent
	known bool           // whether there was a reply at all
}

// history is what clients did and saw.
type history struct {
	mu    sync.Mutex
	ops   []porcupine.Operation
	acked map[archive.Name][]archive.Digest
	began time.Time
	names atomic.Int64
}

func newHistory() *history {
	return &history{acked: make(map[archive.Name][]archive.Digest), began: time.Now()}
}

func (h *history) now() int64 { return int64(time.Since(h.began)) }

func (h *history) record(in input, call int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	end := h.now()
	if !in.known {
		end = int64(24 * time.Hour) // may take effect at any time
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: len(h.ops), Input: in, Call: call, Output: in, Return: end})
}

// write adds names, some of which the other writer adds too, until stop.
func (h *history) write(t *testing.T, tr *trial, w int, stop chan struct{}) {
	cl := tr.client(t)
	defer cl.Close()
	ctx, cancel := untilStop(stop)
	defer cancel()
	var waits sync.WaitGroup
	defer waits.Wait()
	for i := 0; ctx.Err() == nil; i++ {
		name := archive.Name(fmt.Sprintf("kills/%d/%d", w, i))
		if i%3 == 0 {
			name = archive.Name(fmt.Sprintf("kills/shared/%d", i))
		}
		body := fmt.Sprintf("by writer %d, number %d", w, i)
		item := client.Item{Name: name, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }}
		call := h.now()
		res, err := cl.Add(ctx, []client.Item{item})
		in := input{name: name, add: archivetest.ContentOf([]byte(body)).Digest}
		if err != nil || len(res.Bindings) == 0 {
			h.record(in, call)
			pause(50 * time.Millisecond)
			continue
		}
		h.acknowledge(name, in.add)
		h.names.Store(int64(i))
		waits.Go(func() { h.await(ctx, cl, in, call, res.Bindings) })
		pause(300 * time.Millisecond)
	}
}

func (h *history) acknowledge(n archive.Name, d archive.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acked[n] = append(h.acked[n], d)
}

// await ends an Add: bound, or bound to another's content.
func (h *history) await(ctx context.Context, cl *client.Client, in input, call int64, b []archive.Binding) {
	_, err := cl.Wait(ctx, b)
	var conflict *client.ConflictError
	switch {
	case err == nil:
		in.reply, in.known = in.add, true
	case errors.As(err, &conflict):
		in.reply, in.known = conflict.Bound.Digest, true
	}
	h.record(in, call)
}

// read gets names that are, were or will be added.
func (h *history) read(t *testing.T, tr *trial, w int, stop chan struct{}) {
	cl := tr.client(t)
	defer cl.Close()
	ctx, cancel := untilStop(stop)
	defer cancel()
	for i := 0; ctx.Err() == nil; i++ {
		n := max(int(h.names.Load())+2-i%12, 0)
		name := archive.Name(fmt.Sprintf("kills/%d/%d", i%2, n))
		if n%3 == 0 {
			name = archive.Name(fmt.Sprintf("kills/shared/%d", n))
		}
		h.get(ctx, cl, name)
		pause(40 * time.Millisecond)
	}
}

// get records a Get that was answered; one that was not has no effect.
func (h *history) get(ctx context.Context, cl *client.Client, name archive.Name) bool {
	call := h.now()
	res, err := cl.Get(ctx, name)
	if err != nil {
		return false
	}
	var absent *client.AbsentError
	switch {
	case res[0].Err == nil:
		h.record(input{name: name, reply: res[0].Entry.Digest, known: true}, call)
	case errors.As(res[0].Err, &absent):
		h.record(input{name: name, known: true}, call)
	}
	return res[0].Err == nil
}

func untilStop(stop chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		<-stop
	}()
	return ctx, cancel
}

// settle waits, now that nothing is killed any more, until all that was
// acknowledged is bound.
func (h *history) settle(t *testing.T, tr *trial) {
	t.Helper()
	cl := tr.client(t)
	defer cl.Close()
	left := h.ackedNames()
	t.Logf("%d names acknowledged, %d operations", len(left), len(h.ops))
	if len(left) == 0 {
		t.Fatal("nothing was acknowledged")
	}
	archivetest.Eventually(t, 90*time.Second, "all that was acknowledged is bound", func() bool {
		for len(left) > 0 {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			ok := h.get(ctx, cl, left[0])
			cancel()
			if !ok {
				return false
			}
			left = left[1:]
		}
		return true
	})
}

func (h *history) ackedNames() []archive.Name {
	h.mu.Lock()
	defer h.mu.Unlock()
	var names []archive.Name
	for n := range h.acked {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// check gives the history to the linearizability checker, name by name.
func (h *history) check(t *testing.T) {
	t.Helper()
	model := porcupine.Model{
		Partition: byName,
		Init:      func() any { return archive.Digest{} },
		Step:      step,
		Equal:     func(a, b any) bool { return a == b },
	}
	if got := porcupine.CheckOperationsTimeout(model, h.ops, time.Minute); got != porcupine.Ok {
		t.Errorf("history of %d operations: %v", len(h.ops), got)
	}
}

func byName(ops []porcupine.Operation) [][]porcupine.Operation {
	names := make(map[archive.Name][]porcupine.Operation)
	for _, op := range ops {
		n := op.Input.(input).name
		names[n] = append(names[n], op)
	}
	var out [][]porcupine.Operation
	for _, part := range names {
		out = append(out, part)
	}
	return out
}

// step is a register that is written once.
func step(state, in, _ any) (bool, any) {
	bound, op := state.(archive.Digest), in.(input)
	if !op.add.IsZero() && bound.IsZero() {
		// It binds the name now, or, where no reply says so, perhaps never;
		// then it stands after everything else.
		bound = op.add
	}
	return !op.known || op.reply == bound, bound
}
