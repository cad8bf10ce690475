package replica

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
)

// A replica that catches up is greeted by another when its device has the new head and
// not yet the new counter, so that it cannot vote. Once it can, the other notices.
func TestGreetedAmidCatchUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.Roster.Limits.Join = archive.Duration(10 * time.Second)
	c.Record = archive.Genesis(c.Roster)
	c.phase(t.Context(), c.all()...)
	c.phase(t.Context(), 1, 2, 3)
	c.agreed(2, 1, 2, 3)
	c.reset(2, 3, 4)
	amid := make(chan struct{})
	var once sync.Once
	c.devices[4] = &device{c.Replicas[3].MAS, func(op string, _ trust.Slots) error {
		if op == "advance" {
			once.Do(func() {
				close(amid)
				pause(t.Context(), 2*time.Second) // in which the other greets it
			})
		}
		return nil
	}}
	var early sync.WaitGroup
	early.Go(func() { c.run(t.Context(), 2, 4) })
	<-amid
	late := &cluster{Archive: c.Archive, t: t, devices: c.devices, last: make(map[uint32]result)}
	late.run(t.Context(), 3)
	early.Wait()
	c.last[3] = late.last[3]
	c.agreed(3, 2, 3, 4)
}

// greeted is replica 2 as a test plays it before replica 1. It answers one request
// at a time, as the other asks.
type greeted struct {
	*forge
	p      *phase // of replica 1
	x      *peer  // replica 2, as it sees it
	run    string
	tick   uint64 // in its device
	hellos int    // that it has answered
}

// newGreeted makes a replica 2 that calls before ahead of each answer, and whose
// board is what board returns of it from the n-th item on.
func newGreeted(t *testing.T, before func(g *greeted, hello bool), board func(g *greeted, n int) []item) *greeted {
	g := &greeted{forge: newForge(t), run: anyRun()}
	g.p = g.newTestPhase()
	g.p.board = newBoard(rand.Reader)
	mux := http.NewServeMux()
	mux.HandleFunc(pathHello, func(w http.ResponseWriter, r *http.Request) {
		before(g, true)
		g.hellos++
		var challenge [32]byte
		io.ReadFull(r.Body, challenge[:])
		g.store(2, g.slots(2, g.tick))
		w.Header().Set(headerRun, g.run)
		w.Write(g.hello(2, 1, challenge).attestation)
	})
	mux.HandleFunc(pathBoard, func(w http.ResponseWriter, r *http.Request) {
		before(g, false)
		n, _ := strconv.Atoi(r.FormValue("after"))
		if r.FormValue("run") != g.run {
			n = 0
		}
		items := board(g, n)
		w.Header().Set(headerRun, g.run)
		w.Write(encodeBatch(items))
	})
	g.x = g.face(g.p, 2, mux.ServeHTTP)
	return g
}

func anyRun() string { return newBoard(rand.Reader).run }

func base(e uint64) item {
	return item{itemBase, append(binary.BigEndian.AppendUint64(nil, e), make([]byte, 32)...)}
}

// shown is how many answers of replica 2 the board of replica 1 shows. Whoever
// reads them knows as much of it as replica 1 does.
func (g *greeted) shown() (n int) {
	reader := g.newTestPhase()
	for _, it := range g.p.board.all {
		h, err := parseHello(it.payload)
		if it.kind != itemHello || err != nil || h.from != 2 {
			continue
		}
		n++
		if _, err := reader.takeHello(h); err != nil {
			g.t.Error(err)
		}
	}
	if got, want := reader.hellos[2].statement.Slots, g.p.hellos[2].statement.Slots; got != want {
		g.t.Errorf("the board shows %+v, we know %+v", got, want)
	}
	return n
}

// A peer that wants to be greeted over and over has failed, and leaves room on our
// board, which shows what is new in its answers.
func TestGreetedTooOften(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(g *greeted, hello bool)
		board  func(g *greeted, n int) []item
		shown  int
	}{
		{"a new run in each answer", func(g *greeted, _ bool) { g.run = anyRun() },
			func(*greeted, int) []item { return []item{base(0)} }, 1},
		{"a new run and a new tick in each answer", func(g *greeted, _ bool) { g.run = anyRun(); g.tick++ },
			func(*greeted, int) []item { return []item{base(0)} }, maxGreetings},
		{"other runs in its hellos than on its board", func(g *greeted, hello bool) {
			g.run = strings.Repeat(map[bool]string{true: "1", false: "2"}[hello], runLength)
		},
			func(*greeted, int) []item { return []item{base(0)} }, 1},
		{"a new epoch in each item", func(*greeted, bool) {},
			func(_ *greeted, n int) []item { return []item{base(uint64(n) + 7)} }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			g := newGreeted(t, func(g *greeted, hello bool) {
				tt.before(g, hello)
				if g.hellos > maxGreetings {
					cancel()
				}
			}, tt.board)
			g.p.followPeer(ctx, g.x, g.p.takeEarly)
			if g.hellos != maxGreetings || ctx.Err() != nil {
				t.Errorf("greeted %d times, %v; want %d", g.hellos, ctx.Err(), maxGreetings)
			}
			if g.x.next > maxGreetings {
				t.Errorf("%d items read of one that would be greeted again", g.x.next)
			}
			if n := g.shown(); n != tt.shown {
				t.Errorf("our board shows %d of its answers, want %d", n, tt.shown)
			}
		})
	}
}

// A peer whose process is started anew is greeted once more, and what each of its
// processes says is read.
func TestGreetedAnew(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var took []byte
	g := newGreeted(t, func(*greeted, bool) {}, func(g *greeted, n int) []item {
		if n > 0 {
			g.run, g.tick = anyRun(), g.tick+1
		}
		return []item{{'?', []byte{byte(g.tick)}}}
	})
	g.p.followPeer(ctx, g.x, func(_ context.Context, _ *peer, it item) error {
		if took = append(took, it.payload...); len(took) == 6 {
			cancel()
		}
		return nil
	})
	if want := []byte{0, 1, 2, 3, 4, 5}; !slices.Equal(took, want) {
		t.Errorf("took %v, want %v", took, want)
	}
	if n := g.shown(); g.hellos != 5 || n != 5 {
		t.Errorf("greeted %d times, shown %d; want 5, the last process not yet", g.hellos, n)
	}
}

// Whoever reads a board from its beginning again, for another attempt, does not
// greet again for what its replica has said before it was greeted.
func TestGreetedOnce(t *testing.T) {
	var said []item
	g := newGreeted(t, func(*greeted, bool) {}, func(_ *greeted, n int) []item { return said[n:] })
	pull := func(hellos int, items ...item) {
		t.Helper()
		said = items
		must(t, g.p.pull(t.Context(), g.x, g.p.takeEarly))
		if g.hellos != hellos || g.x.next != len(said) {
			t.Errorf("greeted %d times, %d items read; want %d, %d", g.hellos, g.x.next, hellos, len(said))
		}
	}
	for range 5 {
		g.x.next = 0
		pull(2, base(0), base(0), base(5))
	}
	g.run = anyRun()
	pull(2, base(0))
	pull(3, base(0))
	pull(4, base(0), base(5)) // of the new process, which has moved
}

// A replica that left garbage as its head of the right epoch is greeted by others before
// it has mended that. It is company all the same in its first phase after.
func TestGreetedWithGarbageHead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.Roster.Limits.Join = archive.Duration(6 * time.Second)
	c.Record = archive.Genesis(c.Roster)
	c.phase(t.Context(), c.all()...)
	c.agreed(1, c.all()...)
	c.reset(1, 2, 4)
	slots := c.Replicas[3].Statement(t).Slots
	rand.Read(slots.Head[:])
	must(t, c.Replicas[3].MAS.Store(t.Context(), slots))
	c.run(t.Context(), 1, 2, 4)
	c.agreed(2, 1, 2, 4)
}

// A hello of ours that was answered once says nothing of now where a board shows it.
func TestAnswerShownAgain(t *testing.T) {
	f := newForge(t)
	p := f.newTestPhase()
	was := f.hello(2, 1, p.asked[2])
	if _, err := p.takeAnswer(was); err != nil || p.present() != 2 {
		t.Fatalf("%v, %d present", err, p.present())
	}
	must(t, f.Replicas[1].MAS.Lock(t.Context()))
	if _, err := p.takeAnswer(f.hello(2, 1, p.asked[2])); err != nil || p.present() != 1 {
		t.Fatalf("locked: %v, %d present", err, p.present())
	}
	if _, err := p.takeHello(was); err != nil || p.present() != 1 || !p.away[2] {
		t.Errorf("shown again: %v, %d present, away %v", err, p.present(), p.away)
	}
}
