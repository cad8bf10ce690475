package replica

import (
	"net/http"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive/wire"
)

// gate counts the requests under way, and lets no more in while there are limit
// of them, or once it is shut.
type gate struct {
	next  http.Handler
	limit int

	mu    sync.Mutex
	n     int
	shut  bool
	empty chan struct{} // closed when shut and nobody is inside
}

func newGate(next http.Handler, limit int) *gate {
	return &gate{next: next, limit: limit, empty: make(chan struct{})}
}

// ServeHTTP implements http.Handler.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := g.enter(); err != nil {
		wire.WriteError(w, err)
		return
	}
	defer g.leave()
	g.next.ServeHTTP(w, r)
}

func (g *gate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.shut:
		return errEnded
	case g.n >= g.limit:
		return wire.Errorf(wire.CodeUnavailable, "too busy")
	}
	g.n++
	return nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n--
	g.settle()
}

func (g *gate) settle() {
	if g.shut && g.n == 0 {
		close(g.empty)
	}
}

// close shuts the gate and waits until all requests have left, but not longer
// than grace.
func (g *gate) close(grace time.Duration) {
	g.mu.Lock()
	if !g.shut {
		g.shut = true
		g.settle()
	}
	g.mu.Unlock()
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-g.empty:
	case <-t.C:
	}
}
