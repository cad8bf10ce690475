package replica

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
)

// A faulty replica joins at one tick before some and at the next before another, which
// at first hears the rest too late and follows it there. Those left with it have 2f+1
// joins and one replica too few. They give the attempt up within the phase, and all meet
// again.
func TestSplitTicks(t *testing.T) {
	t.Parallel()
	rec := splitTicks(t, time.Second, delayed{way: 2500 * time.Millisecond, until: time.Now().Add(6 * time.Second)})
	if rec.Tick < 2 {
		t.Errorf("not split: epoch 1 was made at tick %d", rec.Tick)
	}
}

// One that hears the rest within the grace follows a single replica nowhere.
func TestNotLured(t *testing.T) {
	t.Parallel()
	rec := splitTicks(t, 2*time.Second, delayed{way: 200 * time.Millisecond, until: time.Now().Add(time.Hour)})
	if rec.Tick != 1 {
		t.Errorf("epoch 1 was made at tick %d", rec.Tick)
	}
}

// splitTicks plays a phase in which replica 4 joins at two ticks, and what 1 asks of the
// others is late.
func splitTicks(t *testing.T, grace time.Duration, l delayed) archive.EpochRecord {
	t.Helper()
	b := newBetrayed(t, faultNamed("joins at two ticks"))
	c := b.cluster
	c.Roster.Limits.Grace = archive.Duration(grace)
	c.Record = archive.Genesis(c.Roster)
	c.reset(c.all()...)
	stop := b.play()
	defer stop()
	victim := make(chan result)
	go func() {
		slow := func(p *phase) {
			for _, x := range p.peers {
				if x.ID != b.id {
					x.client.HTTP().Transport = delayed{x.client.HTTP().Transport, l.way, l.until}
				}
			}
		}
		out, err := played(t.Context(), c.config(b.victim()), slow, func(ctx context.Context, p *phase) (Outcome, error) {
			return p.run(ctx)
		})
		victim <- result{out, err}
	}()
	c.run(t.Context(), 2, 3)
	c.last[b.victim()] = <-victim
	if b.has(b.f.name) == 0 {
		t.Error("the fault did nothing")
	}
	return c.agreed(1, 1, 2, 3)
}

// delayed sends requests so much later, until some time.
type delayed struct {
	http.RoundTripper
	way   time.Duration
	until time.Time
}

func (l delayed) RoundTrip(r *http.Request) (*http.Response, error) {
	if time.Now().Before(l.until) {
		if err := pause(r.Context(), l.way); err != nil {
			return nil, err
		}
	}
	return l.RoundTripper.RoundTrip(r)
}

// A faulty replica claims before one that a block was decided, before another that a
// second was, while they wait out the grace for its proposal. Nobody takes its word
// before the engine has had its time.
func TestLoneClaims(t *testing.T) {
	t.Parallel()
	b := newBetrayed(t, faultNamed("blocks that nobody decided, early"))
	c := b.cluster
	c.Roster.Limits.Grace = archive.Duration(4 * time.Second)
	c.Record = archive.Genesis(c.Roster)
	c.reset(c.all()...)
	stop := b.play()
	defer stop()
	c.run(t.Context(), 1, 2, 3)
	if rec := c.agreed(1, 1, 2, 3); rec.Tick != 1 || b.has(b.f.name) != 2 {
		t.Errorf("epoch 1 was made at tick %d, with %d claims", rec.Tick, b.has(b.f.name))
	}
}

// A replica whose slot is above those of the others sits the attempt out that they
// join, in which a faulty one then says no more. It begins the next, and they follow.
func TestSitsOutNotForGood(t *testing.T) {
	t.Parallel()
	b := newBetrayed(t, faultNamed("joins and says no more"))
	c := b.cluster
	c.reset(c.all()...)
	base := archive.Genesis(c.Roster)
	for id, tick := range map[uint32]uint64{1: 4, 2: 5, 3: 4, 4: 4} {
		slots := trust.Slots{Head: base.Head(), Archive: c.Roster.ID(), Tick: tick}
		must(t, c.Replicas[id-1].MAS.Store(t.Context(), slots))
	}
	stop := b.play()
	defer stop()
	c.run(t.Context(), 1, 2, 3)
	if rec := c.agreed(1, 1, 2, 3); rec.Tick != 6 {
		t.Errorf("epoch 1 was made at tick %d, want 6", rec.Tick)
	}
}
