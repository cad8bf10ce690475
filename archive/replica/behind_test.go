package replica

import (
	"flag"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

var behindBy = flag.Int("behind", 0, "by how many epochs the replica of TestBehind is behind; 0: by 1 and by 10")

const (
	oldNames = 4000 // in the archive when the replica went away
	newNames = 3    // of each epoch that it missed
	liarID   = 4
)

// A replica comes back behind by some epochs, its tree whole, damaged or gone, to
// two honest peers and one that lies. It catches up in the update phase, and takes
// from the honest ones in proportion to what it lacks: each record that it missed
// once from each, at most, and of the tree what is new or damaged.
func TestBehind(t *testing.T) {
	t.Parallel()
	states := []struct {
		name string
		hurt func(t *testing.T, store string)
		lost int // names, at most; -1: all
	}{
		{"whole", func(*testing.T, string) {}, 0},
		{"damaged", func(t *testing.T, store string) {
			path := filepath.Join(store, treeFile)
			zero(t, path, clustered(rowPages(t, path), 5))
		}, oldNames / 8},
		{"gone", func(t *testing.T, store string) { wipe(t, store) }, -1},
	}
	behind := []int{1, 10}
	if *behindBy > 0 {
		behind = []int{*behindBy}
	}
	for i, n := range behind {
		for j, s := range states {
			lie := behindLies[(i+j)%len(behindLies)]
			t.Run(fmt.Sprintf("%d epochs, %s, %s", n, s.name, lie.name), func(t *testing.T) {
				t.Parallel()
				c := newBehind(t, n, lie.handler)
				store := filepath.Join(c.Replicas[1].Dir, storeDir)
				s.hurt(t, store)
				began := time.Now()
				c.phase(t.Context(), 2)
				c.agreed(archive.Epoch(n)+1, 2)
				if out := c.last[2].Outcome; !out.CaughtUp {
					t.Errorf("outcome %+v", out)
				}
				lost, records := s.lost, n
				if lost < 0 {
					lost, records = oldNames, n+1
				}
				c.took(records, lost+newNames*n, time.Since(began))
			})
		}
	}
}

// behindLies are what the one liar among three peers does.
var behindLies = []struct {
	name    string
	handler func(http.Handler) http.Handler
}{
	{"a peer lies about its tree", func(h http.Handler) http.Handler {
		return lyingAt{h, []string{wire.PathProof, wire.PathChanges, wire.PathTree}}
	}},
	{"a peer lies about its records", func(h http.Handler) http.Handler { return lyingAt{h, []string{wire.PathHistory}} }},
	{"a peer lies about its epoch", func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == wire.PathHistory {
				wire.WriteJSON(w, wire.History{})
				return
			}
			h.ServeHTTP(w, r)
		})
	}},
}

// lyingAt flips a bit in all that it says at some paths.
type lyingAt struct {
	http.Handler
	paths []string
}

func (l lyingAt) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, p := range l.paths {
		if r.URL.Path == p {
			w = flippingWriter{w}
		}
	}
	l.Handler.ServeHTTP(w, r)
}

// behind is an archive of which replica 2 missed the last epochs, and what its
// peers have sent it.
type behind struct {
	*cluster
	mu   sync.Mutex
	sent map[string]int // bytes of bodies, by path, from honest peers
	lies int            // from the liar: as long as it is asked it may send
}

func newBehind(t *testing.T, epochs int, lie func(http.Handler) http.Handler) *behind {
	c := &behind{cluster: newCluster(t, 4), sent: make(map[string]int)}
	old := make(map[archive.Name][]byte)
	for i := range oldNames {
		old[archive.Name(fmt.Sprintf("old/%05d", i))] = []byte("x")
	}
	c.Certify(t, old)
	for e := range epochs {
		missed := make(map[archive.Name][]byte)
		for i := range newNames {
			missed[archive.Name(fmt.Sprintf("old/%05d/%d", (e*37+i*1301)%oldNames, e))] = []byte("x")
		}
		c.CertifyBare(t, missed, 2)
	}
	for _, id := range c.all(2) {
		r := c.Replicas[id-1]
		c.Fill(t, r)
		as := func(h http.Handler) http.Handler { return h }
		if id == liarID {
			as = lie
		}
		c.lend(r, as)
	}
	return c
}

// lend has a replica serve what it holds as its service process does.
func (c *behind) lend(r *archivetest.Replica, as func(http.Handler) http.Handler) {
	store, trees := openStore(c.t, c.Archive, r), new(shelf)
	tr, err := store.OpenTree(true)
	must(c.t, err)
	trees.put(tr, c.Record, c.Certificate)
	c.t.Cleanup(func() { trees.withdraw(nil) })
	mux := http.NewServeMux()
	p := newPeerHandler(store, trees, quiet())
	mux.Handle("/", PeerHandler(store, trees, quiet()))
	mux.HandleFunc("GET "+wire.PathTree, p.replying(p.treeFile))
	h := as(mux)
	startPeer(c.t, r, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		h.ServeHTTP(&sentWriter{w, c, r.ID, q.URL.Path}, q)
	}))
}

type sentWriter struct {
	http.ResponseWriter
	c    *behind
	id   uint32
	path string
}

func (w *sentWriter) Write(b []byte) (int, error) {
	w.c.mu.Lock()
	if w.id == liarID {
		w.c.lies += len(b)
	} else {
		w.c.sent[w.path] += len(b)
	}
	w.c.mu.Unlock()
	return w.ResponseWriter.Write(b)
}

func (w *sentWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// took bounds what the two honest peers have sent: of history each record once
// each, as JSON; of the tree what the replica lacks, with proofs of the pages.
func (c *behind) took(records, names int, d time.Duration) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	one := len(c.History()[0].Record) + len(c.History()[0].Certificate)
	history, tree := c.sent[wire.PathHistory], c.sent[wire.PathProof]+c.sent[wire.PathChanges]+c.sent[wire.PathTree]
	c.t.Logf("%d records of %d bytes, %d of %d names lacking: %d bytes of history, %d of the tree: %v; %d from the liar; %s",
		records, one, names, c.Record.Names, history, tree, c.sent, c.lies, d.Round(time.Millisecond))
	if limit := 2 * (records + 2) * one * 3 / 2; history > limit {
		c.t.Errorf("%d bytes of history, at most %d expected", history, limit)
	}
	if limit := 3*names*pairSize/2 + 32<<10; tree > limit {
		c.t.Errorf("%d bytes of the tree, at most %d expected", tree, limit)
	}
}

// pairSize is more than a name and its entry take in a page or a file.
const pairSize = 200
