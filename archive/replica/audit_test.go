package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// story collects what an audit tells.
type story struct {
	mu     sync.Mutex
	events []Event
}

func (s *story) emit(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// count returns how many events of a type were told of a part.
func (s *story) count(kind, part string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.Kind == kind && e.Part == part {
			n++
		}
	}
	return n
}

func (s *story) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b bytes.Buffer
	for _, e := range s.events {
		fmt.Fprintf(&b, "%s %s: %s\n", e.Kind, e.Subject(), e.Detail)
	}
	return b.String()
}

// Entries come page by page, each once, also where a range ends with a page.
func TestEachEntry(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, names("a", 2*entryPage+1))
	tree, err := openStore(t, a, a.Replicas[0]).OpenTree(true)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	var all []archive.Name
	take := func(within span) (got []archive.Name) {
		t.Helper()
		err := eachEntry(t.Context(), tree, within, func(n archive.Name, _ archive.Entry) error {
			got = append(got, n)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if all = take(span{}); len(all) != 2*entryPage+1 || !slices.IsSorted(all) {
		t.Fatalf("got %d entries", len(all))
	}
	for _, n := range []int{0, 1, entryPage - 1, entryPage, entryPage + 1, 2 * entryPage} {
		if got := take(span{to: []byte(all[n])}); !slices.Equal(got, all[:n]) {
			t.Errorf("%d entries: got %d", n, len(got))
		}
		if got := take(span{from: []byte(all[n])}); !slices.Equal(got, all[n:]) {
			t.Errorf("all but %d entries: got %d", n, len(got))
		}
	}
}

// audit audits a replica that is not served.
func audit(t testing.TB, a *archivetest.Archive, r *archivetest.Replica, repair bool) (Report, *story) {
	t.Helper()
	st := new(story)
	report, err := Audit(t.Context(), serviceConfig(t, a, r), AuditOptions{Repair: repair}, st.emit)
	if err != nil {
		t.Fatalf("audit: %v\n%s", err, st)
	}
	return report, st
}

// startLiar serves a replica that flips a bit of every body it sends.
func startLiar(t testing.TB, a *archivetest.Archive, r *archivetest.Replica) {
	t.Helper()
	store := openStore(t, a, r)
	tr, err := store.OpenTree(true)
	if err != nil {
		t.Fatal(err)
	}
	trees := new(shelf)
	trees.put(tr, a.Record, a.Certificate)
	startPeer(t, r, flipping{PeerHandler(store, trees, serviceConfig(t, a, r).Log)})
	t.Cleanup(func() { trees.withdraw(nil) })
}

// startPeer serves h as a replica.
func startPeer(t testing.TB, r *archivetest.Replica, h http.Handler) {
	t.Helper()
	config, err := wire.ServiceTLS(r.ServiceKey)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", r.Address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
	go srv.ServeTLS(l, "", "")
	t.Cleanup(func() { srv.Close() })
}

type flipping struct{ http.Handler }

func (h flipping) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.Handler.ServeHTTP(flippingWriter{w}, r)
}

type flippingWriter struct{ http.ResponseWriter }

func (w flippingWriter) Write(b []byte) (int, error) {
	b = bytes.Clone(b)
	if len(b) > 0 {
		b[len(b)/2] ^= 1
	}
	return w.ResponseWriter.Write(b)
}

func flipByte(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

func removeAll(t testing.TB, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// flipInFile flips a bit where text stands in a file.
func flipInFile(t testing.TB, path, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(b, []byte(text))
	if at < 0 {
		t.Fatalf("no %q in %s", text, path)
	}
	flipByte(t, path, int64(at))
}

// Each kind of damage is found and named, and repaired from peers of which one
// lies and one is down.
func TestAuditRepair(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	content := func(r *archivetest.Replica, n string) string {
		return archivetest.ContentPath(r.Dir, archivetest.ContentOf([]byte("content of "+n)).Digest)
	}
	pack := func(r *archivetest.Replica) string { // with all contents
		if _, err := os.Stat(archivetest.PackPath(r.Dir)); err != nil {
			a.Pack(t, r)
		}
		return archivetest.PackPath(r.Dir)
	}
	store := func(r *archivetest.Replica, parts ...string) string {
		return filepath.Join(append([]string{r.Dir, "store"}, parts...)...)
	}
	epoch := func(r *archivetest.Replica, e int, suffix string) string {
		return store(r, "history", fmt.Sprintf("%020d%s", e, suffix))
	}
	tests := []struct {
		name    string
		damage  func(*archivetest.Replica)
		part    string
		damaged int // at least
	}{
		{"content flipped", func(r *archivetest.Replica) { flipByte(t, content(r, "a/0003"), 2) }, PartContent, 1},
		{"content missing", func(r *archivetest.Replica) { removeAll(t, content(r, "a/0003")) }, PartContent, 1},
		{"content cut", func(r *archivetest.Replica) { os.Truncate(content(r, "b/0005"), 3) }, PartContent, 1},
		{"content a directory", func(r *archivetest.Replica) {
			removeAll(t, content(r, "b/0005"))
			os.Mkdir(content(r, "b/0005"), 0o700)
		}, PartContent, 1},
		{"content below a file", func(r *archivetest.Replica) {
			removeAll(t, store(r, "content", content(r, "b/0005")[len(store(r, "content"))+1:][:2]))
			os.WriteFile(store(r, "content", content(r, "b/0005")[len(store(r, "content"))+1:][:2]), nil, 0o600)
		}, PartContent, 1},
		{"all contents", func(r *archivetest.Replica) { removeAll(t, store(r, "content")) }, PartContent, 60},
		{"packed content flipped", func(r *archivetest.Replica) { flipInFile(t, pack(r), "content of a/0003") }, PartContent, 1},
		{"packed content's header", func(r *archivetest.Replica) {
			flipInFile(t, pack(r), archivetest.ContentOf([]byte("content of a/0003")).Digest.String())
		}, PartContent, 1},
		{"pack cut", func(r *archivetest.Replica) { os.Truncate(pack(r), 2000) }, PartContent, 59},
		{"pack missing", func(r *archivetest.Replica) { removeAll(t, pack(r)) }, PartContent, 60},
		{"pack a directory", func(r *archivetest.Replica) {
			removeAll(t, pack(r))
			os.Mkdir(archivetest.PackPath(r.Dir), 0o700)
		}, PartContent, 60},
		{"tree row", func(r *archivetest.Replica) { flipRow(t, store(r, "tree.db"), "b/0007") }, PartTree, 1},
		{"tree cut", func(r *archivetest.Replica) { os.Truncate(store(r, "tree.db"), 8192) }, PartTree, 1},
		{"tree missing", func(r *archivetest.Replica) { removeAll(t, store(r, "tree.db")) }, PartTree, 1},
		{"tree garbage", func(r *archivetest.Replica) {
			os.WriteFile(store(r, "tree.db"), bytes.Repeat([]byte("garbage "), 4096), 0o600)
		}, PartTree, 1},
		{"tree a directory", func(r *archivetest.Replica) {
			removeAll(t, store(r, "tree.db"))
			os.Mkdir(store(r, "tree.db"), 0o700)
		}, PartTree, 1},
		{"head record", func(r *archivetest.Replica) { flipByte(t, epoch(r, 2, ".record"), 40) }, PartHistory, 1},
		{"old record", func(r *archivetest.Replica) { removeAll(t, epoch(r, 1, ".record")) }, PartHistory, 1},
		{"certificate", func(r *archivetest.Replica) { flipByte(t, epoch(r, 1, ".certificate"), 300) }, PartHistory, 1},
		{"the whole history", func(r *archivetest.Replica) { removeAll(t, store(r, "history")) }, PartHistory, 1},
		{"the whole store", func(r *archivetest.Replica) { removeAll(t, store(r)) }, PartTree, 1},
	}
	a.Certify(t, files("a", 20))
	a.Certify(t, files("b", 40))
	r := a.Replicas[0]
	startLiar(t, a, a.Replicas[1])
	startService(t, a, a.Replicas[2])
	if report, st := audit(t, a, r, false); report.Damaged > 0 || report.Names != 60 || report.Records != 2 || report.Contents != 60 {
		t.Fatalf("before any damage: %+v\n%s", report, st)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			removeAll(t, store(r))
			a.Fill(t, r)
			tt.damage(r)
			if report, st := audit(t, a, r, false); report.Damaged == 0 || report.Sound() || st.count(EventDamage, tt.part) < tt.damaged {
				t.Errorf("found: %+v\n%s", report, st)
			}
			if report, st := audit(t, a, r, true); report.Damaged == 0 || !report.Sound() || st.count(EventRepaired, tt.part) < tt.damaged {
				t.Errorf("repaired: %+v\n%s", report, st)
			}
			report, st := audit(t, a, r, false)
			if report.Damaged > 0 || report.Contents != 60 || report.Root != archive.Digest(a.Record.Root) || report.Behind > 0 {
				t.Errorf("afterwards: %+v\n%s", report, st)
			}
		})
	}
}

// Where the tree is damaged, the contents of its sound ranges are still checked.
func TestAuditBesideDamage(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	all := names("a", 500)
	all["zzz"] = []byte("last")
	a.Certify(t, all)
	r := a.Replicas[0]
	flipRow(t, filepath.Join(r.Dir, storeDir, treeFile), "a/0003")
	removeAll(t, archivetest.ContentPath(r.Dir, archivetest.ContentOf([]byte("last")).Digest))
	report, st := audit(t, a, r, false)
	if report.Damaged != 2 || st.count(EventDamage, PartTree) != 1 || st.count(EventDamage, PartContent) != 1 {
		t.Errorf("got %+v\n%s", report, st)
	}
}

// What no peer has right stays damaged, is said to be, and is kept: a damaged
// copy may be the best there is.
func TestAuditUnrepaired(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 5))
	startLiar(t, a, a.Replicas[1])
	path := archivetest.ContentPath(a.Replicas[0].Dir, archivetest.ContentOf([]byte("content of a/0002")).Digest)
	flipByte(t, path, 0)
	before, _ := os.ReadFile(path)
	report, st := audit(t, a, a.Replicas[0], true)
	if report.Damaged != 1 || report.Repaired != 0 || st.count(EventUnrepaired, PartContent) != 1 {
		t.Errorf("got %+v\n%s", report, st)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the damaged copy was changed")
	}
}

// A replica that missed an epoch is behind, not damaged; its older tree can be
// repaired from peers that are ahead.
func TestAuditBehind(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 10))
	want := a.Record
	a.Certify(t, files("b", 10), 1)
	r := a.Replicas[0]
	startService(t, a, a.Replicas[1])
	startService(t, a, a.Replicas[2])
	report, st := audit(t, a, r, false)
	if report.Behind != 1 || report.Damaged != 0 || report.Epoch != 1 || st.count(EventBehind, "") != 1 {
		t.Errorf("got %+v\n%s", report, st)
	}
	removeAll(t, filepath.Join(r.Dir, "store"))
	if report, st := audit(t, a, r, true); !report.Sound() || report.Root != archive.Digest(want.Root) {
		t.Errorf("repair: %+v\n%s", report, st)
	}
	s := startService(t, a, r)
	if _, ok, err := get(t, a, s, "a/0003"); !ok || err != nil {
		t.Errorf("got %t, %v", ok, err)
	}
}

// A served replica whose store is lost, or damaged under its hands, answers
// nothing wrong, and comes back by itself from peers, of which one lies.
func TestServeRepairsItself(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 100))
	r := a.Replicas[0]
	startLiar(t, a, a.Replicas[1])
	startService(t, a, a.Replicas[2])
	removeAll(t, filepath.Join(r.Dir, "store"))
	s := startService(t, a, r)
	found := func(n archive.Name) bool {
		e, ok, err := get(t, a, s, n)
		if err == nil && (!ok || e.Content != archivetest.ContentOf([]byte("content of "+string(n)))) {
			t.Fatalf("%s: got %v, %t", n, e, ok)
		}
		return err == nil
	}
	waitFor(t, "the tree", func() bool { return found("a/0023") })
	waitFor(t, "the contents", func() bool { return allHeld(s, a) })

	flipRow(t, filepath.Join(r.Dir, "store", "tree.db"), "a/0080")
	waitFor(t, "damage to show and to be repaired", func() bool { return found("a/0080") && found("a/0081") })
	flipInFile(t, archivetest.PackPath(r.Dir), "content of a/0002")
	st := new(story)
	report, err := AuditServed(t.Context(), r.Dir, AuditOptions{Repair: true}, st.emit)
	if err != nil || report.Damaged != 1 || report.Repaired != 1 || st.count(EventReport, "") != 1 {
		t.Errorf("got %+v, %v\n%s", report, err, st)
	}
	if status, err := StatusServed(t.Context(), r.Dir); err != nil || status.Damaged || status.Epoch != 1 {
		t.Errorf("status: %+v, %v", status, err)
	}
}

// The status follows the last audit, also one for the operator.
func TestServeAuditedStatus(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 3))
	r := a.Replicas[0]
	path := archivetest.ContentPath(r.Dir, archivetest.ContentOf([]byte("content of a/0001")).Digest)
	flipByte(t, path, 0)
	startService(t, a, r, func(c *Config) { c.Retry = time.Hour }) // no peer is up
	damaged := func() bool {
		st, err := StatusServed(t.Context(), r.Dir)
		return err == nil && st.Damaged
	}
	waitFor(t, "the damage to show", damaged)
	flipByte(t, path, 0)
	for range 2 {
		report, err := AuditServed(t.Context(), r.Dir, AuditOptions{}, nil)
		if err != nil || damaged() == report.Sound() {
			t.Errorf("got %+v, %v; status damaged: %t", report, err, damaged())
		}
		flipByte(t, path, 0)
	}
}

func allHeld(s *served, a *archivetest.Archive) bool {
	store, err := OpenStore(filepath.Join(s.Dir, storeDir), a.Roster)
	if err != nil {
		return false
	}
	for _, p := range a.Pairs() {
		e, err := archive.ParseEntry(p.Val)
		if err == nil {
			_, err = store.contentSize(e.Digest)
		}
		if err != nil {
			return false
		}
	}
	return true
}

// A replica whose tree cannot be repaired yet says so and answers nothing from
// it, but still takes Adds; it comes back when a peer does.
func TestServeDamaged(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 10))
	r := a.Replicas[0]
	removeAll(t, filepath.Join(r.Dir, "store", "tree.db"))
	s := startService(t, a, r)
	if _, _, err := get(t, a, s, "a/0001"); !errors.Is(err, &wire.Error{Code: wire.CodeDamaged}) {
		t.Errorf("get: got %v, want %s", err, wire.CodeDamaged)
	}
	if _, err := s.client.Proofs(t.Context(), a.Record.Head(), []archive.Name{"a/0001"}); !errors.Is(err, &wire.Error{Code: wire.CodeDamaged}) {
		t.Errorf("proof: got %v, want %s", err, wire.CodeDamaged)
	}
	if st, err := s.client.Status(t.Context()); err != nil || !st.Damaged || st.Epoch != 1 {
		t.Errorf("status: %+v, %v", st, err)
	}
	all := files("new", 2)
	if ack, err := upAndAdd(t, a, s, a.Submission(time.Now(), all), all); err != nil || ack.Status != wire.AckPending {
		t.Errorf("add: got %+v, %v", ack, err)
	}
	startService(t, a, a.Replicas[1])
	waitFor(t, "repair", func() bool { _, ok, err := get(t, a, s, "a/0001"); return ok && err == nil })
}

func TestAuditServedErrors(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	if _, err := AuditServed(t.Context(), a.Replicas[0].Dir, AuditOptions{}, nil); !errors.Is(err, ErrNotServed) {
		t.Errorf("got %v, want %v", err, ErrNotServed)
	}
	if _, err := StatusServed(t.Context(), a.Replicas[0].Dir); !errors.Is(err, ErrNotServed) {
		t.Errorf("got %v, want %v", err, ErrNotServed)
	}
}

// pages is a source that serves pages of pairs, its own way.
type pages func(ctx context.Context, head archive.Digest, from, to []byte, limit int) (tree.Proof, error)

func (p pages) ProofRange(ctx context.Context, head archive.Digest, from, to []byte, limit int) (tree.Proof, error) {
	return p(ctx, head, from, to, limit)
}

// Sources that lie, fail, stall or dawdle are dropped, each after one try, and
// an honest one does the work.
func TestRepairTreeSources(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, names("a", 3000))
	m := new(tree.Memory)
	for _, p := range a.Pairs() {
		if err := m.Put(p.Name, p.Val); err != nil {
			t.Fatal(err)
		}
	}
	calls := make(map[string]int)
	source := func(name string, f pages) TreeSource {
		return pages(func(ctx context.Context, head archive.Digest, from, to []byte, limit int) (tree.Proof, error) {
			calls[name]++
			return f(ctx, head, from, to, limit)
		})
	}
	honest := source("honest", func(_ context.Context, head archive.Digest, from, to []byte, limit int) (tree.Proof, error) {
		if head != a.Record.Head() {
			return nil, errors.New("another head")
		}
		return m.ProveRange(from, to, min(limit, 1000)), nil
	})
	bad := []TreeSource{
		source("liar", func(_ context.Context, _ archive.Digest, from, to []byte, limit int) (tree.Proof, error) {
			p := m.ProveRange(from, to, limit)
			p[len(p)-5] ^= 1
			return p, nil
		}),
		source("stalls", func(ctx context.Context, _ archive.Digest, _, _ []byte, _ int) (tree.Proof, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}),
		source("dawdles", func(_ context.Context, _ archive.Digest, from, to []byte, _ int) (tree.Proof, error) {
			return m.ProveRange(from, to, 1), nil
		}),
		source("skips", func(_ context.Context, _ archive.Digest, _, to []byte, limit int) (tree.Proof, error) {
			return m.ProveRange([]byte("a/1000"), to, limit), nil
		}),
		source("older", func(context.Context, archive.Digest, []byte, []byte, int) (tree.Proof, error) {
			return nil, &wire.Error{Code: wire.CodeStaleHead, Record: string(archive.Genesis(a.Roster).Bytes())}
		}),
		source("empty", func(context.Context, archive.Digest, []byte, []byte, int) (tree.Proof, error) {
			return new(tree.Memory).ProveRange(nil, nil, 1), nil
		}),
	}
	store := openStore(t, a, a.Replicas[0])
	repair := func(sources ...TreeSource) error {
		r := &treeRepair{store: store, rec: a.Record, sources: sources, log: serviceConfig(t, a, a.Replicas[0]).Log, timeout: 50 * time.Millisecond}
		return r.run(t.Context())
	}
	removeAll(t, store.TreePath())
	if err := repair(bad...); !errors.Is(err, errNoSource) {
		t.Errorf("without an honest source: got %v", err)
	}
	if _, err := store.OpenTree(true); !errors.Is(err, ErrMissing) {
		t.Errorf("a tree was left: %v", err)
	}
	clear(calls)
	if err := repair(append(slices.Clone(bad), honest)...); err != nil {
		t.Fatal(err)
	}
	for name, n := range maps.All(calls) {
		if name != "honest" && n != 1 {
			t.Errorf("%s was asked %d times", name, n)
		}
	}
	checkTree(t, store, a.Record)
}

func checkTree(t testing.TB, store *Store, rec archive.EpochRecord) {
	t.Helper()
	tr, err := store.OpenTree(true)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	damages, err := tr.Audit(t.Context(), rec.Root)
	if err != nil || len(damages) > 0 {
		t.Errorf("repaired tree: %v, %v", damages, err)
	}
}

// The cost of a repair follows the damage, not the archive.
func TestRepairTreeCost(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, names("a", 9000))
	store, other := openStore(t, a, a.Replicas[0]), openStore(t, a, a.Replicas[1])
	tr, err := other.OpenTree(true)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	flipRow(t, store.TreePath(), "a/4000")
	var bytes int
	src := pages(func(_ context.Context, _ archive.Digest, from, to []byte, limit int) (tree.Proof, error) {
		p, err := tr.ProveRange(from, to, limit)
		bytes += len(p)
		return p, err
	})
	if err := RepairTree(t.Context(), store, a.Record, []TreeSource{src}, serviceConfig(t, a, a.Replicas[0]).Log); err != nil {
		t.Fatal(err)
	}
	checkTree(t, store, a.Record)
	all, err := tr.ProveRange(nil, nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if bytes == 0 || bytes > len(all)/4 {
		t.Errorf("fetched %d bytes to mend one name of 9000; the first page alone has %d", bytes, len(all))
	}
}

// A tree on the shelf stays open for those who have it, and no longer.
func TestShelf(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 3))
	open := func() *boltstore.Store {
		tr, err := openStore(t, a, a.Replicas[0]).OpenTree(true)
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	var s shelf
	first := open()
	s.put(first, a.Record, a.Certificate)
	l, release, err := s.Lend()
	if err != nil {
		t.Fatal(err)
	}
	s.put(open(), a.Record, a.Certificate)
	if s.withdrawIf(l, errTreeDamaged) {
		t.Error("withdrew a tree that had been replaced")
	}
	if _, err := l.lookUpOne("a/0001"); err != nil {
		t.Errorf("lent tree: %v", err)
	}
	release()
	if _, err := first.Prove([]byte("a/0001")); err == nil {
		t.Error("a tree that nobody needs is still open")
	}
	l, release, _ = s.Lend()
	if !s.withdrawIf(l, errTreeDamaged) || s.withdrawIf(l, errTreeDamaged) {
		t.Error("withdraw")
	}
	if _, _, err := s.Lend(); !errors.Is(err, &wire.Error{Code: wire.CodeDamaged}) {
		t.Errorf("got %v", err)
	}
	release()
}
