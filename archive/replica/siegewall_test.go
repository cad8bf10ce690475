package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// A cut keeps connections from one replica to another from being opened, and ends
// those that are open. Boards are pulled: so from hears nothing of what to says,
// except in the engine, if to can still connect to it.
type cut struct {
	from, to    uint32
	after, long time.Duration // when it begins, and how long it lasts; 0: to the end
}

func (c cut) String() string { return fmt.Sprintf("%d-/->%d %v+%v", c.from, c.to, c.after, c.long) }

// drawCuts draws a partition: into two parts, both ways or one way, of one
// replica from all, or of pairs.
func (s *siege) drawCuts() (cuts []cut) {
	var after, long time.Duration
	if s.chance(2) {
		after = time.Duration(s.rnd.IntN(1000)) * time.Millisecond
	}
	if s.chance(2) {
		long = time.Duration(200+s.rnd.IntN(3000)) * time.Millisecond
	}
	both := s.chance(2)
	part := make(map[uint32]bool)
	for _, i := range s.rnd.Perm(s.Roster.N())[:1+s.rnd.IntN(s.Roster.N()/2)] {
		part[uint32(i+1)] = true
	}
	pairs := s.chance(3)
	for _, a := range s.all() {
		for _, b := range s.all() {
			apart := part[a] && !part[b] || both && part[b] && !part[a]
			if pairs {
				apart = s.chance(4)
			}
			if a != b && apart {
				cuts = append(cuts, cut{a, b, after, long})
			}
		}
	}
	return cuts
}

// A wall stands between the replicas of one phase. Connections of pairs that are
// to be cut go through it.
type wall struct {
	cuts  []cut
	mu    sync.Mutex
	shut  map[[2]uint32]bool
	conns map[[2]uint32]map[io.Closer]bool
	gates []net.Listener
	all   sync.WaitGroup
}

func newWall(cuts []cut) *wall {
	w := &wall{cuts: cuts, shut: make(map[[2]uint32]bool), conns: make(map[[2]uint32]map[io.Closer]bool)}
	for _, c := range cuts {
		w.conns[[2]uint32{c.from, c.to}] = make(map[io.Closer]bool)
	}
	return w
}

// begin makes the cuts when their times come, and heals them.
func (w *wall) begin(ctx context.Context) {
	for _, c := range w.cuts {
		if c.after == 0 {
			w.set(c, true)
		}
		w.all.Go(func() {
			if pause(ctx, c.after) == nil {
				w.set(c, true)
			}
			if c.long > 0 && pause(ctx, c.long) == nil {
				w.set(c, false)
			}
		})
	}
}

func (w *wall) set(c cut, shut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pair := [2]uint32{c.from, c.to}
	w.shut[pair] = shut
	if shut {
		for conn := range w.conns[pair] {
			conn.Close()
		}
		clear(w.conns[pair])
	}
}

var errWall = errors.New("cut off by the test")

// pass notes a connection, unless its pair is cut off.
func (w *wall) pass(pair [2]uint32, c io.Closer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shut[pair] {
		c.Close()
		return errWall
	}
	w.conns[pair][c] = true
	return nil
}

// around has a phase connect to its peers through the wall.
func (w *wall) around(from uint32) func(*phase) {
	return func(p *phase) {
		for _, x := range p.peers {
			pair := [2]uint32{from, x.ID}
			if w.conns[pair] != nil {
				w.dialThrough(pair, x)
			}
		}
		for i, m := range p.members {
			pair := [2]uint32{from, m.ID}
			if w.conns[pair] != nil {
				p.members[i].Address = w.gate(pair, m.Address)
			}
		}
	}
}

func (w *wall) dialThrough(pair [2]uint32, x *peer) {
	t := x.client.HTTP().Transport.(*http.Transport)
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err == nil {
			err = w.pass(pair, c)
		}
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

// gate listens for the engine of one replica, and passes its connections on to
// another's.
func (w *wall) gate(pair [2]uint32, to string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nowhere
	}
	w.mu.Lock()
	w.gates = append(w.gates, l)
	w.mu.Unlock()
	w.all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			w.all.Go(func() { w.carry(pair, in, to) })
		}
	})
	return l.Addr().String()
}

func (w *wall) carry(pair [2]uint32, in net.Conn, to string) {
	defer in.Close()
	if w.pass(pair, in) != nil {
		return
	}
	out, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		io.Copy(out, in)
		out.Close()
	}()
	io.Copy(in, out)
}

// close ends all that goes through the wall.
func (w *wall) close() {
	w.mu.Lock()
	for _, l := range w.gates {
		l.Close()
	}
	for _, conns := range w.conns {
		for c := range conns {
			c.Close()
		}
	}
	w.mu.Unlock()
	w.all.Wait()
}
