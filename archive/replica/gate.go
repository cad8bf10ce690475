package replica

import (
	"net/http"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive/wire"
)

// gate counts the requests under way, and lets no more in once it is shut.
type gate struct {
	next http.Handler

	mu    sync.Mutex
	n     int
	shut  bool
	empty chan struct{} // closed when shut and nobody is inside
}

func newGate(next http.Handler) *gate { return &gate{next: next, empty: make(chan struct{})} }

// ServeHTTP implements http.Handler.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.enter() {
		wire.WriteError(w, wire.Errorf(wire.CodeUnavailable, "the service phase has ended"))
		return
	}
	defer g.leave()
	g.next.ServeHTTP(w, r)
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.shut {
		g.n++
	}
	return !g.shut
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
