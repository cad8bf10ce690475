package replica

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// lie answers one request wrongly; honest is what a replica would have said.
type lie func(w http.ResponseWriter, r *http.Request, honest []byte)

// liesAt lies about one path and is honest about the others.
type liesAt struct {
	http.Handler
	path string
	lie  lie
}

func (l liesAt) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != l.path {
		l.Handler.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	l.Handler.ServeHTTP(rec, r)
	l.lie(w, r, rec.Body.Bytes())
}

func flipAt(at func(n int) int) lie {
	return func(w http.ResponseWriter, _ *http.Request, honest []byte) {
		honest[at(len(honest))] ^= 1
		w.Write(honest)
	}
}

func says(b []byte) lie {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.Write(b) }
}

func endless(w http.ResponseWriter, r *http.Request, honest []byte) {
	for r.Context().Err() == nil {
		if _, err := w.Write(append(honest, make([]byte, 1<<16)...)); err != nil {
			return
		}
	}
}

// drip sends a byte now and then.
func drip(w http.ResponseWriter, r *http.Request, honest []byte) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := range honest {
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
		w.Write(honest[i : i+1])
		http.NewResponseController(w).Flush()
	}
}

// slow is the timeout where the lie is to take time; elsewhere nothing runs out.
func slow(lie string) time.Duration {
	if lie == "stall" || lie == "drip" {
		return 4 * time.Second
	}
	return 0
}

func stall(_ http.ResponseWriter, r *http.Request, _ []byte) { <-r.Context().Done() }

// refuses refuses with a newer head that rec and cert are to prove.
func refuses(rec string, cert []byte) lie {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		e := wire.Errorf(wire.CodeStaleHead, "newer")
		e.Record, e.Certificate = rec, cert
		wire.WriteError(w, e)
	}
}

// again sends the page that it sent first.
func again() lie {
	var first []byte
	return func(w http.ResponseWriter, _ *http.Request, honest []byte) {
		if first == nil {
			first = honest
		}
		w.Write(first)
	}
}

// oneName proves pages of one name.
func oneName(w http.ResponseWriter, r *http.Request, m *tree.Memory) {
	from, _ := wire.DecodeBytes(r.URL.Query().Get("from"), archive.MaxName+1)
	w.Write(m.ProveRange(from, nil, 1))
}

// half has a length that its body does not reach.
func half(w http.ResponseWriter, _ *http.Request, honest []byte) {
	w.Header().Set("Content-Length", "100000")
	w.Write(honest[:len(honest)/2])
}

func memory(t testing.TB, ps []tree.Pair) *tree.Memory {
	t.Helper()
	m := new(tree.Memory)
	for _, p := range ps {
		if err := m.Put(p.Name, p.Val); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func proofLies(t testing.TB, v *vault) map[string]lie {
	other := memory(t, entryPairs(5000, 7000, 1))
	newer := v.rec
	newer.Epoch++
	count := bytes.Clone(other.ProveRange(nil, nil, 100))
	binary.BigEndian.PutUint64(count, 1<<63)
	return map[string]lie{
		"count":           flipAt(func(int) int { return 3 }),
		"first item":      flipAt(func(int) int { return 8 }),
		"name":            flipAt(func(n int) int { return n / 2 }),
		"last digest":     flipAt(func(n int) int { return n - 1 }),
		"nothing":         says(nil),
		"noise":           says(bytes.Repeat([]byte{1}, 4096)),
		"deep":            says(append(make([]byte, 8), bytes.Repeat([]byte{1}, 1<<20)...)),
		"another tree":    says(other.ProveRange(nil, nil, 4096)),
		"the empty tree":  says(new(tree.Memory).ProveRange(nil, nil, 1)),
		"huge count":      says(count),
		"the same page":   again(),
		"half":            half,
		"endless":         endless,
		"drip":            drip,
		"stall":           stall,
		"cut":             func(w http.ResponseWriter, _ *http.Request, h []byte) { w.Write(h[:len(h)-1]) },
		"too long":        func(w http.ResponseWriter, _ *http.Request, h []byte) { w.Write(append(h, 0)) },
		"one name a page": func(w http.ResponseWriter, r *http.Request, _ []byte) { oneName(w, r, memory(t, v.pairs)) },
		"elsewhere": func(w http.ResponseWriter, r *http.Request, _ []byte) {
			http.Redirect(w, r, "/v1/status", http.StatusFound)
		},
		"error without end": func(w http.ResponseWriter, r *http.Request, h []byte) { w.WriteHeader(500); endless(w, r, h) },
		"header": func(w http.ResponseWriter, _ *http.Request, h []byte) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
			w.Write(h)
		},
		"record":         refuses("bonafide/epoch/v1\n", nil),
		"old record":     refuses(string(archive.Genesis(v.Roster).Bytes()), nil),
		"certificate":    refuses(string(newer.Bytes()), []byte("bonafide")),
		"no certificate": refuses(string(newer.Bytes()), nil),
	}
}

// Whatever one source says about a damaged tree, the next one repairs it; without
// another, the repair fails and the old file stays as it is.
func TestRepairTreeHostile(t *testing.T) {
	v := newVault(t, 0, entryPairs(0, 9000, 1), 1)
	for name, l := range proofLies(t, v) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newVault(t, 1, cloned(v.pairs), 1)
			w.timeout = slow(name)
			hostile := w.Replicas[2]
			w.serveLies(t, hostile, wire.PathProof, l)
			damaged := w.damage(t)
			honest := w.sources[0]
			w.sources = w.sources[1:]
			if err := w.try(t); err == nil {
				t.Error("repaired from a liar")
			}
			if b, err := os.ReadFile(w.store.TreePath()); err != nil || !bytes.Equal(b, damaged) {
				t.Errorf("the old file has changed: %v", err)
			}
			w.sources = append(w.sources, honest)
			if err := w.try(t); err != nil {
				t.Errorf("with an honest source: %v", err)
			}
			checkTree(t, w.store, w.rec)
		})
	}
}

// A peer that says of every page, late, that it is damaged is asked once, as long
// as another has the pages: it must not slow each of them.
func TestRepairTreeSlowDamaged(t *testing.T) {
	v := newVault(t, 0, entryPairs(0, 9000, 1), 1)
	var asked, served atomic.Int64
	refusal := newPeerHandler(v.store, new(shelf), quiet())
	v.serveLies(t, v.Replicas[1], wire.PathProof, func(w http.ResponseWriter, r *http.Request, _ []byte) {
		asked.Add(1)
		select {
		case <-time.After(200 * time.Millisecond):
		case <-r.Context().Done():
		}
		refusal.replying(func(http.ResponseWriter, *http.Request) error {
			return wire.Errorf(wire.CodeDamaged, "damaged")
		})(w, r)
	})
	v.serveLies(t, v.Replicas[2], wire.PathProof, func(w http.ResponseWriter, _ *http.Request, honest []byte) {
		served.Add(1)
		w.Write(honest)
	})
	if err := v.try(t); err != nil {
		t.Fatal(err)
	}
	checkTree(t, v.store, v.rec)
	if asked.Load() != 1 || served.Load() < 3 {
		t.Errorf("asked the damaged peer %d times for %d pages", asked.Load(), served.Load())
	}
}

// serveLies makes a source that lies about one path.
func (v *vault) serveLies(t testing.TB, r *archivetest.Replica, path string, l lie) {
	t.Helper()
	v.serveAs(t, r, func(h http.Handler) http.Handler { return liesAt{h, path, l} })
}

// damage puts a file in place that lacks some pages, and returns its bytes.
func (v *vault) damage(t testing.TB) []byte {
	t.Helper()
	copyFile(t, v.whole, v.store.TreePath())
	zero(t, v.store.TreePath(), clustered(rowPages(t, v.whole), 60))
	b, err := os.ReadFile(v.store.TreePath())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (v *vault) try(t testing.TB) error {
	t.Helper()
	record := func(e archive.Epoch) (archive.EpochRecord, error) {
		if e != v.base.Epoch {
			return v.base, ErrMissing
		}
		return v.base, nil
	}
	r := &treeRepair{store: v.store, rec: v.rec, record: record, sources: v.sources, log: quiet(), timeout: cmp.Or(v.timeout, time.Minute)}
	return r.run(t.Context())
}

// older puts the tree of epoch 1 in place, and its record in history.
func (v *vault) older(t testing.TB, ps []tree.Pair) {
	t.Helper()
	root, n, err := boltstore.Build(t.Context(), v.store.TreePath(), inOrder(ps), nil)
	if err != nil {
		t.Fatal(err)
	}
	v.base = archive.Genesis(v.Roster)
	v.base.Epoch, v.base.Root, v.base.Names = 1, root, n
}

// changed edits an honest page of changes.
func changed(t testing.TB, edit func(*wire.Changes)) lie {
	return func(w http.ResponseWriter, r *http.Request, honest []byte) {
		from, _ := wire.DecodeBytes(r.URL.Query().Get("from"), archive.MaxName+1)
		c, err := wire.ParseChanges(honest, from)
		if err != nil {
			t.Error(err)
		}
		edit(&c)
		w.Write(c.Bytes())
	}
}

func changesLies(t testing.TB) map[string]lie {
	return map[string]lie{
		"nothing":     says(nil),
		"none":        says(wire.Changes{}.Bytes()),
		"noise":       says(bytes.Repeat([]byte{1}, 4096)),
		"endless":     endless,
		"drip":        drip,
		"stall":       stall,
		"half":        half,
		"next creeps": func(w http.ResponseWriter, r *http.Request, _ []byte) { creep(w, r) },
		"one fewer":   changed(t, func(c *wire.Changes) { c.Pairs = c.Pairs[1:] }),
		"one more": changed(t, func(c *wire.Changes) {
			c.Pairs = append(c.Pairs, tree.Pair{Name: []byte("z"), Val: entryPair(1, 2).Val})
		}),
		"value":     changed(t, func(c *wire.Changes) { c.Pairs[0].Val = entryPair(99, 2).Val }),
		"no entry":  changed(t, func(c *wire.Changes) { c.Pairs[0].Val = []byte("x") }),
		"old epoch": changed(t, func(c *wire.Changes) { c.Pairs[0] = entryPair(1, 1) }),
		"order":     changed(t, func(c *wire.Changes) { c.Pairs[0], c.Pairs[1] = c.Pairs[1], c.Pairs[0] }),
		"record":    refuses("bonafide/epoch/v1\n", nil),
	}
}

// creep always has one more page, a little further on, and nothing in it.
func creep(w http.ResponseWriter, r *http.Request) {
	from, _ := wire.DecodeBytes(r.URL.Query().Get("from"), archive.MaxName+1)
	if len(from) > 1000 {
		from = []byte{from[0] + 1}
	}
	w.Write(wire.Changes{Next: append(from, 1)}.Bytes())
}

// A tree of an older epoch gets what is new at the cost of that, and whatever a
// source says of it, the right tree comes out.
func TestRepairTreeOlder(t *testing.T) {
	before, after := entryPairs(0, 6000, 1), entryPairs(6000, 6100, 2)
	lies := changesLies(t)
	lies["the truth"] = func(w http.ResponseWriter, _ *http.Request, honest []byte) { w.Write(honest) }
	for name, l := range lies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVault(t, 0, append(cloned(before), after...), 2)
			v.older(t, cloned(before))
			v.timeout = slow(name)
			v.serveLies(t, v.Replicas[2], wire.PathChanges, l)
			if err := v.try(t); err != nil {
				t.Fatal(err)
			}
			checkTree(t, v.store, v.rec)
			if most := int64(100 * 300); name == "the truth" && v.sent.Load() > most {
				t.Errorf("%d bytes for 100 new names, want at most %d", v.sent.Load(), most)
			}
		})
	}
}

// Changes come in pages, in order, complete, and only those since the
// epoch.
func TestChanges(t *testing.T) {
	before, after := entryPairs(0, 500, 1), entryPairs(500, 9700, 2)
	v := newVault(t, 1, append(cloned(before), after...), 2)
	c := v.sources[0].(*wire.Client)
	var got []tree.Pair
	var from []byte
	pages := 0
	for more := true; more; pages++ {
		page, err := c.Changes(t.Context(), v.rec.Head(), 1, from)
		if err != nil {
			t.Fatal(err)
		}
		got, from, more = append(got, page.Pairs...), page.Next, len(page.Next) > 0
	}
	want := memory(t, after).Pairs()
	same := func(a, b tree.Pair) bool { return bytes.Equal(a.Name, b.Name) && bytes.Equal(a.Val, b.Val) }
	if pages != 3 || !slices.EqualFunc(got, want, same) {
		t.Errorf("%d names in %d pages, want %d in 3", len(got), pages, len(want))
	}
	if _, err := c.Changes(t.Context(), archive.Digest{}, 1, nil); !errors.Is(err, &wire.Error{Code: wire.CodeStaleHead}) {
		t.Errorf("another head: %v", err)
	}
	for _, q := range []string{"", "?head=x", "?head=" + v.rec.Head().String() + "&since=-1&from=", "?head=" + v.rec.Head().String() + "&since=1&from=%21"} {
		resp, err := c.HTTP().Get(c.URL(wire.PathChanges + q))
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: status %d", q, resp.StatusCode)
		}
	}
	v.older(t, before)
	if err := v.try(t); err != nil {
		t.Fatal(err)
	}
	checkTree(t, v.store, v.rec)
}

// What an update phase added that made no epoch is dropped again, though no peer is
// there: all of them may have ended in the same way.
func TestRepairTreeWithoutLater(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 3000))
	m := a.Replicas[0]
	store, err := OpenStore(filepath.Join(m.Dir, storeDir), a.Roster)
	must(t, err)
	defer store.Close()
	tr, err := store.OpenTree(false)
	must(t, err)
	later := archive.Entry{Epoch: a.Record.Epoch + 1, Content: archivetest.ContentOf([]byte("x"))}
	var more []tree.Pair
	for i := range 500 {
		more = append(more, tree.Pair{Name: fmt.Appendf(nil, "b/%d", i), Val: later.Bytes()})
	}
	_, _, err = tr.Apply(t.Context(), more)
	must(t, err)
	must(t, tr.Close())
	must(t, RepairTree(t.Context(), store, a.Record, nil, quiet()))
	tr, err = store.OpenTree(true)
	must(t, err)
	defer tr.Close()
	if root, n, err := tr.Rehash(t.Context(), nil); root != a.Record.Root || n != a.Record.Names || err != nil {
		t.Errorf("root %x of %d names, %v; want %x of %d", root, n, err, a.Record.Root, a.Record.Names)
	}
}

// A tree that is both older and damaged is mended and brought up at once.
func TestRepairTreeOlderDamaged(t *testing.T) {
	before, after := entryPairs(0, 30000, 1), entryPairs(30000, 30100, 2)
	v := newVault(t, 2, append(cloned(before), after...), 2)
	v.older(t, before)
	zero(t, v.store.TreePath(), spread(rowPages(t, v.store.TreePath()), 1))
	if err := v.try(t); err != nil {
		t.Fatal(err)
	}
	checkTree(t, v.store, v.rec)
	if all := int64(30000 * 160); v.sent.Load() > all/5 {
		t.Errorf("fetched %d bytes of %d", v.sent.Load(), all)
	}
}

// Rows that were garbled without a page being lost are fetched as well, and
// those that cannot be told from good ones, once the root says so.
func TestRepairTreeGarbled(t *testing.T) {
	v := newVault(t, 2, entryPairs(0, 20000, 1), 1)
	copyFile(t, v.whole, v.store.TreePath())
	pages := rowPages(t, v.whole)
	zero(t, v.store.TreePath(), pages[20:24])
	f, err := os.OpenFile(v.store.TreePath(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []int64{pages[19], pages[24], pages[100]} { // beside the lost ones, too
		_, err = f.WriteAt([]byte("garbled"), p+filePage-20)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if sent := v.repair(t); sent > 20000*160/4 {
		t.Errorf("fetched %d bytes", sent)
	}
	checkTree(t, v.store, v.rec)
}

// cloned copies the list: it is sorted in place.
func cloned(ps []tree.Pair) []tree.Pair { return append([]tree.Pair(nil), ps...) }

// Whatever bytes a source sends as a page, what comes of it is part of the tree.
func FuzzRepairPage(f *testing.F) {
	a := archivetest.NewRoster(f, 4)
	m := memory(f, entryPairs(0, 300, 1))
	rec := archive.Genesis(a.Roster)
	rec.Epoch, rec.Root, rec.Names = 1, m.Root(), m.Count()
	store := openStore(f, a, a.Replicas[0])
	from := m.Pairs()[50].Name
	f.Add([]byte(m.ProveRange(from, nil, 200)))
	f.Add([]byte(m.ProveRange(from, nil, 1000)))
	f.Add([]byte(m.Prove(from)))
	f.Fuzz(func(t *testing.T, proof []byte) {
		src := pages(func(context.Context, archive.Digest, []byte, []byte, int) (tree.Proof, error) { return proof, nil })
		r := &treeRepair{store: store, rec: rec, log: quiet(), timeout: time.Minute}
		got, next, err := r.pageOf(t.Context(), src, from, nil, pageLimit)
		if err != nil {
			return
		}
		want := m.Pairs()[50:]
		if next == nil && len(got) != len(want) || len(got) > len(want) {
			t.Fatalf("%d names, then %q", len(got), next)
		}
		for i, p := range got {
			if !bytes.Equal(p.Name, want[i].Name) || !bytes.Equal(p.Val, want[i].Val) {
				t.Fatalf("%q is not next", p.Name)
			}
		}
	})
}
