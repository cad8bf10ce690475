package replica

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// The last replica to certify an epoch knows at once that all hold the certificate, and
// has nothing to linger for; but the others, far away, have yet to hear that it does.
// None waits until the linger limit for it.
func TestLingerFarApart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.Roster.Limits.Linger = archive.Duration(40 * time.Second)
	c.Record = archive.Genesis(c.Roster)
	for n := range archive.Epoch(2) {
		c.reset(c.all()...)
		c.runFarApart(t.Context(), 60*time.Millisecond)
		c.agreed(n+1, c.all()...)
		for id, r := range c.last {
			i := slices.IndexFunc(r.Steps, func(s Step) bool { return s.Name == StepLingered })
			if i < 0 || r.Steps[i].Took >= c.Roster.Limits.Linger.Std() {
				t.Errorf("epoch %d, replica %d lingered until the limit: %v", n+1, id, r.Steps)
			}
		}
	}
}

// A peer that is in its service phase already shows by its history that it holds the
// certificate, also of an epoch that this replica has itself.
func TestHistoryShowsWhoHolds(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.phase(t.Context(), c.all()...)
	c.agreed(1, c.all()...)
	startService(t, c.Archive, c.Replicas[1])
	c.reset(1)
	_, err := played(t.Context(), c.config(1), nil, func(ctx context.Context, p *phase) (Outcome, error) {
		if err := p.open(ctx); err != nil {
			return Outcome{}, err
		}
		p.lingering = true
		x := p.peers[slices.IndexFunc(p.peers, func(x *peer) bool { return x.ID == 2 })]
		err := p.fetchHistory(ctx, x)
		if p.holds[2] != 1 || p.newest.Epoch != 1 {
			t.Errorf("replica 2 holds epoch %d, we %d", p.holds[2], p.newest.Epoch)
		}
		return Outcome{}, err
	})
	must(t, err)
}

// runFarApart runs the update processes of all replicas, what they say to each other
// on the way for so long.
func (c *cluster) runFarApart(ctx context.Context, way time.Duration) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, id := range c.all() {
		all.Go(func() {
			far := func(p *phase) {
				for _, x := range p.peers {
					dialFar(x.client.HTTP().Transport.(*http.Transport), way)
				}
			}
			config := c.config(id)
			config.at = func(point string) {
				if id == 4 && point == "before tree" { // the others certify meanwhile
					pause(ctx, 2*time.Second)
				}
			}
			out, err := played(ctx, config, far, func(ctx context.Context, p *phase) (Outcome, error) {
				out, err := p.run(ctx)
				out.Steps = p.steps
				return out, err
			})
			mu.Lock()
			defer mu.Unlock()
			c.last[id] = result{out, err}
		})
	}
	all.Wait()
}

// dialFar has all that goes over connections of t take so long.
func dialFar(t *http.Transport, way time.Duration) {
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		there, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		here, end := net.Pipe()
		go carryLate(there, end, way)
		go carryLate(end, there, way)
		return here, nil
	}
}

// carryLate passes on what it reads, each part so long after it came.
func carryLate(to, from net.Conn, way time.Duration) {
	type part struct {
		b  []byte
		at time.Time
	}
	parts := make(chan part, 1<<10)
	go func() {
		defer close(parts)
		for {
			b := make([]byte, 64<<10)
			n, err := from.Read(b)
			parts <- part{b[:n], time.Now().Add(way)}
			if err != nil {
				return
			}
		}
	}()
	for p := range parts {
		pause(context.Background(), time.Until(p.at))
		to.Write(p.b)
	}
	to.Close()
	from.Close()
}
