package replica

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

var benchNames = flag.Int("names", 50_000, "names in a benchmark of repair")

// vault is a tree that some replicas serve over TLS on loopback, and a store
// that is to be repaired from them.
type vault struct {
	*archivetest.Archive
	store   *Store
	rec     archive.EpochRecord
	base    archive.EpochRecord // of an older tree
	pairs   []tree.Pair
	sources []TreeSource
	sent    *atomic.Int64 // bytes of bodies
	whole   string        // the path of a good file
	timeout time.Duration // of a page; 0: a long one
	files   bool          // sources serve their whole file
}

// entryPair is the i-th pair of a vault, bound in the given epoch.
func entryPair(i int, e archive.Epoch) tree.Pair {
	d := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	entry := archive.Entry{Content: archive.Content{Digest: d, Size: uint64(i), Blocks: d}, Epoch: e}
	return tree.Pair{Name: fmt.Appendf(nil, "archive/%x", d[:16])[:39], Val: entry.Bytes()}
}

func entryPairs(lo, hi int, e archive.Epoch) (ps []tree.Pair) {
	for i := lo; i < hi; i++ {
		ps = append(ps, entryPair(i, e))
	}
	return ps
}

func inOrder(ps []tree.Pair) iter.Seq2[tree.Pair, error] {
	slices.SortFunc(ps, func(a, b tree.Pair) int { return bytes.Compare(a.Name, b.Name) })
	return func(yield func(tree.Pair, error) bool) {
		for _, p := range ps {
			if !yield(p, nil) {
				return
			}
		}
	}
}

// newVault makes a tree of the pairs, which n replicas serve. Its record is not
// certified: who repairs has verified it before.
func newVault(t testing.TB, n int, ps []tree.Pair, e archive.Epoch, edit ...func(*vault)) *vault {
	t.Helper()
	a := archivetest.NewRoster(t, 4)
	v := &vault{Archive: a, store: openStore(t, a, a.Replicas[0]), pairs: ps, sent: new(atomic.Int64)}
	v.whole = filepath.Join(t.TempDir(), "tree.db")
	root, count, err := boltstore.Build(t.Context(), v.whole, inOrder(ps), nil)
	if err != nil {
		t.Fatal(err)
	}
	v.rec = archive.Genesis(a.Roster)
	v.rec.Epoch, v.rec.Root, v.rec.Names = e, root, count
	for _, f := range edit {
		f(v)
	}
	for _, r := range a.Replicas[1 : n+1] {
		v.serve(t, r)
	}
	return v
}

// withFiles has the replicas serve the whole file too, as a service process does.
func withFiles(v *vault) { v.files = true }

// serve has r serve the tree.
func (v *vault) serve(t testing.TB, r *archivetest.Replica) {
	t.Helper()
	v.serveAs(t, r, func(h http.Handler) http.Handler { return h })
}

func (v *vault) serveAs(t testing.TB, r *archivetest.Replica, as func(http.Handler) http.Handler) {
	t.Helper()
	tr, err := boltstore.Open(v.whole, boltstore.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	trees := new(shelf)
	trees.put(tr, v.rec, archive.Certificate{})
	t.Cleanup(func() { trees.withdraw(nil) })
	store := openStore(t, v.Archive, r)
	mux := http.NewServeMux()
	mux.Handle("/", PeerHandler(store, trees, quiet()))
	if v.files {
		p := newPeerHandler(store, trees, quiet())
		mux.HandleFunc("GET "+wire.PathTree, p.replying(p.treeFile))
	}
	v.listen(t, r, as(mux))
}

// listen makes a source of h, as replica r.
func (v *vault) listen(t testing.TB, r *archivetest.Replica, h http.Handler) {
	t.Helper()
	startPeer(t, r, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		h.ServeHTTP(&countingWriter{w, v.sent}, q)
	}))
	c := wire.NewClient(r.Replica, v.Roster, wire.Options{Timeout: 10 * time.Second})
	t.Cleanup(c.Close)
	v.sources = append(v.sources, c)
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	w.n.Add(int64(len(b)))
	return w.ResponseWriter.Write(b)
}

func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// repair repairs and checks, and returns the bytes fetched.
func (v *vault) repair(t testing.TB) int64 {
	t.Helper()
	before := v.sent.Load()
	if err := RepairTree(t.Context(), v.store, v.rec, v.sources, quiet()); err != nil {
		t.Fatal(err)
	}
	return v.sent.Load() - before
}

// copyFile copies and syncs.
func copyFile(t testing.TB, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err == nil {
		_, err = io.Copy(dst, src)
		err = errors.Join(err, dst.Sync(), dst.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

const filePage = 4096

// rowPages are the offsets of the pages of a file that hold rows or digests.
func rowPages(t testing.TB, path string) (at []int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := 2 * filePage; off < len(b); off += filePage {
		p := b[off : off+filePage]
		id, flags, count := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint16(p[8:]), binary.LittleEndian.Uint16(p[10:])
		if id == uint64(off/filePage) && flags == 2 && count > 8 {
			at = append(at, int64(off))
		}
	}
	return at
}

// zero loses pages.
func zero(t testing.TB, path string, at []int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range at {
		if _, err := f.WriteAt(make([]byte, filePage), off); err != nil {
			t.Fatal(err)
		}
	}
}

// clustered is a share of the pages, one after the other; spread takes them here
// and there.
func clustered(at []int64, percent int) []int64 {
	from := len(at) / 3
	return at[from : from+len(at)*percent/100]
}

func spread(at []int64, percent int) (out []int64) {
	r := rand.New(rand.NewPCG(1, uint64(percent)))
	for _, i := range r.Perm(len(at))[:len(at)*percent/100] {
		out = append(out, at[i])
	}
	return out
}

// BenchmarkRepairTree repairs a tree of which so many percent of the pages with
// rows are zeroed, in a run or here and there, from three replicas on loopback,
// beside copying the file.
//
//	go test ./archive/replica -run xxx -bench RepairTree -benchtime 3x -names 1000000
func BenchmarkRepairTree(b *testing.B) {
	v := newVault(b, 3, entryPairs(0, *benchNames, 1), 1, withFiles)
	pages := rowPages(b, v.whole)
	v.pairs = nil // the collector would go through them again and again
	for _, c := range []struct {
		name string
		lost []int64 // nil: all
	}{
		{"none", []int64{}}, {"1%run", clustered(pages, 1)}, {"1%spread", spread(pages, 1)},
		{"10%run", clustered(pages, 10)}, {"10%spread", spread(pages, 10)}, {"all", nil},
	} {
		b.Run(c.name, func(b *testing.B) { v.bench(b, c.lost) })
	}
}

// processorTime is that of the replicas and the repair together.
func processorTime() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func (v *vault) bench(b *testing.B, lost []int64) {
	info, err := os.Stat(v.whole)
	if err != nil {
		b.Fatal(err)
	}
	copying, repairing, used := time.Hour, time.Hour, time.Hour
	var sent int64
	for b.Loop() {
		start := time.Now()
		copyFile(b, v.whole, v.store.TreePath())
		copying = min(copying, time.Since(start))
		if lost != nil {
			zero(b, v.store.TreePath(), lost)
		} else {
			removeAll(b, v.store.TreePath())
		}
		start, before := time.Now(), processorTime()
		sent = v.repair(b)
		repairing, used = min(repairing, time.Since(start)), min(used, processorTime()-before)
	}
	gone := int64(len(lost) * filePage)
	if lost == nil {
		gone = info.Size()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(repairing.Seconds(), "s")
	b.ReportMetric(used.Seconds(), "s-cpu")
	b.ReportMetric(repairing.Seconds()/copying.Seconds(), "x-copy")
	b.ReportMetric(float64(gone)/1e6, "MB-lost")
	b.ReportMetric(float64(sent)/1e6, "MB-fetched")
	b.ReportMetric(float64(sent)/(1.2*float64(gone)+0.05*float64(info.Size())), "x-bound")
}
