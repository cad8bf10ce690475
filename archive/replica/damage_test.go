package replica

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

// What cannot be opened as a file at all is damage like any other: the audit
// goes on, and repairs it.
func TestAuditOddFiles(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 20))
	startService(t, a, a.Replicas[1])
	r := a.Replicas[0]
	path := filepath.Join(r.Dir, storeDir, treeFile)
	for name, damage := range map[string]func() error{
		"a link to itself": func() error { return errors.Join(os.Remove(path), os.Symlink(path, path)) },
		"empty":            func() error { return os.Truncate(path, 0) },
	} {
		must(t, damage())
		if report, st := audit(t, a, r, false); report.Damaged == 0 || st.count(EventDamage, PartTree) == 0 {
			t.Errorf("%s: found %+v\n%s", name, report, st)
		}
		if report, st := audit(t, a, r, true); !report.Sound() {
			t.Errorf("%s: repaired %+v\n%s", name, report, st)
		}
		if report, st := audit(t, a, r, false); report.Damaged > 0 {
			t.Errorf("%s: afterwards %+v\n%s", name, report, st)
		}
	}
}

// Damage that appears while the audit runs is found by it if it lies ahead, and
// where it may have led the audit astray; all else by the next. What is told as
// sound was so when it was looked at.
func TestAuditMeanwhile(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	all := names("a", 3000)
	last := bytes.Repeat([]byte("last"), 20_000) // a file of its own
	all["zzz"] = last
	maps.Copy(all, files("z", 600)) // more than are checked between two tellings
	a.Certify(t, all)
	startService(t, a, a.Replicas[1])
	r := a.Replicas[0]
	treePath := filepath.Join(r.Dir, storeDir, treeFile)
	lastPath := archivetest.ContentPath(r.Dir, archivetest.ContentOf(last).Digest)
	ahead := farthest(r.Dir, all)
	record := filepath.Join(r.Dir, storeDir, historyDir, "00000000000000000001"+recordSuffix)
	tests := []struct {
		name   string
		after  string // the part whose progress is followed by the damage
		damage func()
		part   string
		found  bool // by this audit already
	}{
		{"content after the tree", PartTree, func() { flipByte(t, lastPath, 1) }, PartContent, true},
		{"content ahead among contents", PartContent, func() { removeAll(t, ahead[0]) }, PartContent, true},
		{"tree and content among contents", PartContent, func() { removeAll(t, ahead[1]); removeAll(t, treePath) }, PartTree, true},
		{"content after the contents", PartContent, func() { removeAll(t, lastPath) }, PartContent, false},
		{"tree row after the tree", PartTree, func() { flipRow(t, treePath, "a/2000") }, PartTree, true},
		{"tree gone after the tree", PartTree, func() { removeAll(t, treePath) }, PartTree, true},
		{"tree cut after the contents", PartContent, func() { must(t, os.Truncate(treePath, 8192)) }, PartTree, false},
		{"tree row after the contents", PartContent, func() { flipRow(t, treePath, "a/2900") }, PartTree, false},
		{"record after the history", PartTree, func() { removeAll(t, record) }, PartHistory, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := new(story)
			damage := sync.OnceFunc(tt.damage)
			report, err := Audit(t.Context(), serviceConfig(t, a, r), AuditOptions{Repair: true}, func(e Event) {
				if st.emit(e); e.Kind == EventProgress && e.Part == tt.after && (tt.found || e.Done == e.Total) {
					damage()
				}
			})
			if err != nil || tt.found != (st.count(EventDamage, tt.part) > 0) || !report.Sound() {
				t.Errorf("got %+v, %v\n%s", report, err, st)
			}
			if report, st := audit(t, a, r, true); !report.Sound() || tt.found == (report.Damaged > 0) {
				t.Errorf("the next: %+v\n%s", report, st)
			}
			if report, st := audit(t, a, r, false); report.Damaged > 0 {
				t.Errorf("in the end: %+v\n%s", report, st)
			}
		})
	}
}

// Damage that appears in a pack, and in a file of its own, while the audit runs
// is told by the names that are bound to what it hit, and by no others.
func TestAuditMeanwhileNames(t *testing.T) {
	const whole = 100 << 10
	for _, tt := range []struct {
		name   string
		after  string // the part whose end is followed by the damage
		damage func(t *testing.T, pack, plain string)
		hit    func(end, size int64) bool // a member that ends there, of a pack of that size
		plain  bool                       // the other content too
	}{
		{"a byte of a pack", PartTree, func(t *testing.T, pack, _ string) { flipInFile(t, pack, "content of p/0030") },
			nil, false},
		{"a pack cut", PartTree, func(t *testing.T, pack, _ string) { must(t, os.Truncate(pack, sizeOf(pack)/2)) },
			func(end, size int64) bool { return end > size/2 }, false},
		{"a pack emptied, a file gone", PartTree, func(t *testing.T, pack, plain string) { must(t, os.Truncate(pack, 0)); removeAll(t, plain) },
			func(int64, int64) bool { return true }, true},
		{"a pack gone", PartTree, func(t *testing.T, pack, _ string) { removeAll(t, pack) },
			func(int64, int64) bool { return true }, false},
		{"a byte of each", PartTree, func(t *testing.T, pack, plain string) {
			flipInFile(t, pack, "content of p/0030")
			flipByte(t, plain, whole-1)
		}, nil, true},
		{"too late", PartContent, func(t *testing.T, pack, plain string) { removeAll(t, pack); removeAll(t, plain) },
			func(int64, int64) bool { return true }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := archivetest.NewRoster(t, 4)
			all := files("p", 60)
			all["whole"] = bytes.Repeat([]byte("w"), whole)
			a.Certify(t, all)
			r := a.Replicas[0]
			a.Pack(t, r)
			startService(t, a, a.Replicas[1])
			pack, plain := archivetest.PackPath(r.Dir), archivetest.ContentPath(r.Dir, archivetest.ContentOf(all["whole"]).Digest)
			want := membersHit(t, pack, all, tt.hit)
			if tt.plain {
				want = append(want, "whole")
			}
			st := new(story)
			damage := sync.OnceFunc(func() { tt.damage(t, pack, plain) })
			report, err := Audit(t.Context(), serviceConfig(t, a, r), AuditOptions{Repair: true}, func(e Event) {
				if st.emit(e); e.Kind == EventProgress && e.Part == tt.after && e.Done == e.Total {
					damage()
				}
			})
			if tt.after == PartContent {
				if err != nil || report.Damaged > 0 {
					t.Fatalf("what came later: %+v, %v\n%s", report, err, st)
				}
				report, st = audit(t, a, r, true)
			}
			if got := st.named(EventDamage); err != nil || !report.Sound() || !slices.Equal(got, want) {
				t.Errorf("told %q, want %q: %+v, %v\n%s", got, want, report, err, st)
			}
			if report, st := audit(t, a, r, false); report.Damaged > 0 {
				t.Errorf("in the end: %+v\n%s", report, st)
			}
		})
	}
}

// named returns the names of the contents that events of a type tell of, in
// order.
func (s *story) named(kind string) (all []archive.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.Kind == kind && e.Part == PartContent {
			all = append(all, e.Name)
		}
	}
	slices.Sort(all)
	return all
}

// membersHit returns the names, in order, of the contents in a pack of which hit
// says so; without hit, of the one whose text is flipped.
func membersHit(t *testing.T, pack string, all map[archive.Name][]byte, hit func(end, size int64) bool) (names []archive.Name) {
	t.Helper()
	b, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	for n, body := range all {
		at := bytes.Index(b, body)
		switch {
		case at < 0: // a file of its own
		case hit == nil && n == "p/0030", hit != nil && hit(int64(at+512)/512*512, int64(len(b))):
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// farthest returns where contents lie that are files of their own, those first
// that an audit comes to last.
func farthest(dir string, all map[archive.Name][]byte) (paths []string) {
	for _, b := range all {
		paths = append(paths, archivetest.ContentPath(dir, archivetest.ContentOf(b).Digest))
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	slices.Reverse(paths)
	return paths
}

// flipRow changes the value of a name in a tree file: its row, and not the key of
// a chunk or a branch.
func flipRow(t testing.TB, path, name string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for end := len(b); ; {
		at := bytes.LastIndex(b[:end], []byte(name))
		if at < 0 {
			t.Fatalf("no row of %q in %s", name, path)
		}
		val := at + len(name)
		if _, err := archive.ParseEntry(b[val:min(val+archive.EntrySize, len(b))]); err == nil {
			flipByte(t, path, int64(val))
			return
		}
		end = at
	}
}

// What is damaged in every copy is lost: each name that is bound to it is told,
// and no other.
func TestAuditLostNames(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	all := files("a", 10)
	all["x/1"], all["x/2"], all["x/3"] = []byte("lost"), []byte("lost"), []byte("lost")
	a.Certify(t, all)
	for i, r := range a.Replicas {
		removeAll(t, archivetest.ContentPath(r.Dir, archivetest.ContentOf([]byte("lost")).Digest))
		if i > 0 {
			startService(t, a, r)
		}
	}
	flipByte(t, archivetest.ContentPath(a.Replicas[0].Dir, archivetest.ContentOf([]byte("content of a/0004")).Digest), 0)
	for _, kind := range []string{EventDamage, EventUnrepaired} {
		report, st := audit(t, a, a.Replicas[0], kind == EventUnrepaired)
		var lost []archive.Name
		for _, e := range st.events {
			if e.Kind == kind && e.Part == PartContent && e.Name != "a/0004" {
				lost = append(lost, e.Name)
			}
		}
		if !slices.Equal(lost, []archive.Name{"x/1", "x/2", "x/3"}) || report.Damaged != 2 || report.Sound() {
			t.Errorf("%s: %q: %+v\n%s", kind, lost, report, st)
		}
	}
}

// A pending buffer that is damaged while it is served takes no more Adds, shows
// in an audit, and ends the process; the next one keeps what can be read of it.
func TestServePendingDamaged(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	r := a.Replicas[0]
	s := startService(t, a, r)
	held := map[archive.Name][]byte{"x": []byte("content of a/0000")}
	sub := a.Submission(time.Now(), held)
	if _, err := s.client.Add(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	s.stop()

	ended := make(chan error, 1)
	var log logBuffer
	c := loggingTo(serviceConfig(t, a, r), &log)
	go func() { ended <- Serve(t.Context(), c) }()
	waitFor(t, "service", func() bool { st, err := StatusServed(t.Context(), r.Dir); return err == nil && st.Note == "" })
	path := filepath.Join(r.Dir, storeDir, pendingFile)
	whole, err := os.ReadFile(path)
	must(t, err)
	must(t, overwrite(path, make([]byte, len(whole))))
	// The service's own audit may be first to find it, and end the process.
	if report, err := AuditServed(t.Context(), r.Dir, AuditOptions{}, nil); err == nil && report.Damaged != 1 {
		t.Errorf("audit: %+v", report)
	}
	client := wire.NewClient(r.Replica, a.Roster, wire.Options{Timeout: 5 * time.Second})
	defer client.Close()
	if ack, err := client.Add(t.Context(), sub); err == nil {
		t.Errorf("acknowledged again, and gone: %+v", ack)
	}
	for _, n := range []archive.Name{"y", "z"} {
		held := map[archive.Name][]byte{n: []byte("content of a/0000")}
		if ack, err := client.Add(t.Context(), a.Submission(time.Now(), held)); err == nil {
			t.Errorf("acknowledged: %+v", ack)
		}
	}
	if err := <-ended; !errors.Is(err, ErrDamaged) {
		t.Errorf("served: %v", err)
	}

	must(t, overwrite(path, whole))
	flipInFile(t, path, "submissions") // the rows are out of reach
	s = startService(t, a, r, func(c *Config) { *c = loggingTo(*c, &log) })
	if !strings.Contains(log.String(), "the pending buffer was damaged") {
		t.Errorf("not told: %s", log.String())
	}
	if st, err := s.client.Status(t.Context()); err != nil || st.Pending != 1 {
		t.Errorf("%d names were saved, %v, want 1\n%s", st.Pending, err, log.String())
	}
	if _, err := s.client.Add(t.Context(), a.Submission(time.Now(), held)); err != nil {
		t.Errorf("add: %v", err)
	}
}

// The trees of all replicas are damaged, each in other places, and in one place
// all of a page: they bring each other back, since every row is good somewhere.
func TestAllTreesDamaged(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, names("a", 3000))
	for i, r := range a.Replicas {
		path := filepath.Join(r.Dir, storeDir, treeFile)
		for j := range 4 {
			flipInFile(t, path, fmt.Sprintf("a/%04d", 103+197*(4*j+i)%2800))
		}
	}
	var all []*served
	for _, r := range a.Replicas {
		all = append(all, startService(t, a, r))
	}
	for _, s := range all {
		waitFor(t, fmt.Sprintf("the tree of replica %d", s.ID), func() bool {
			st, err := s.client.Status(t.Context())
			return err == nil && !st.Damaged && st.Note == ""
		})
		s.stop()
		if report, st := audit(t, a, s.Replica, false); report.Damaged > 0 {
			t.Errorf("replica %d: %+v\n%s", s.ID, report, st)
		}
	}
}

// An update phase is cut off at all replicas between the Store of the head and the
// advance of the counter, and all trees are damaged, each in another place. No
// replica answers from its tree, but they bring each other back, since the next
// update phase needs whole trees.
func TestAllTreesDamagedBeforeAdvance(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	hasten(c)
	c.addAll([]archive.Submission{c.Submission(time.Now(), names("a", 900)), c.Submission(time.Now(), names("b", 900))}, c.all()...)
	for _, r := range c.Replicas {
		path := archivetest.ContentPath(r.Dir, archive.DigestOf([]byte("shared")))
		must(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("shared"), 0o600)))
		c.devices[r.ID] = &device{r.MAS, func(op string, _ trust.Slots) error {
			if op == "advance" {
				return errCut
			}
			return nil
		}}
	}
	c.phase(t.Context(), c.all()...)
	clear(c.devices)
	rec, _ := c.certificate(1, 1)
	for i, r := range c.Replicas {
		if st := r.Statement(t); !holdsHead(st.Slots, rec) || st.Counter != 0 {
			t.Fatalf("device of %d: %+v", r.ID, st)
		}
		flipRow(t, filepath.Join(r.Dir, storeDir, treeFile), []string{"a/0200", "a/0700", "b/0200", "b/0700"}[i])
		if c.rightTree(r.ID, rec) {
			t.Fatalf("the tree of replica %d is not damaged", r.ID)
		}
	}
	wipe(t, filepath.Join(c.Replicas[2].Dir, storeDir, historyDir))
	c.restored(rec)
	c.phase(t.Context(), c.all()...)
	c.agreed(2, c.all()...)
}

// restored serves all replicas until each has the tree of rec. They answer nothing
// from it at any time.
func (c *cluster) restored(rec archive.EpochRecord) {
	c.t.Helper()
	var all []*served
	for _, r := range c.Replicas {
		all = append(all, startService(c.t, c.Archive, r))
	}
	for _, s := range all {
		waitFor(c.t, fmt.Sprintf("the tree of replica %d", s.ID), func() bool {
			c.shut(s)
			_, err := s.client.ProofRange(c.t.Context(), rec.Head(), nil, nil, 1)
			return err == nil && c.rightTree(s.ID, rec)
		})
	}
	for _, s := range all {
		if report, err := AuditServed(c.t.Context(), s.Dir, AuditOptions{Repair: true}, nil); err != nil || report.Damaged > 0 || report.Epoch != rec.Epoch {
			c.t.Errorf("audit of replica %d: %+v, %v", s.ID, report, err)
		}
		c.shut(s)
	}
	for _, s := range all {
		s.stop()
	}
}

// shut wants a replica to say that its counter must be mended.
func (c *cluster) shut(s *served) {
	c.t.Helper()
	const want = "an update phase must mend that"
	_, _, err := get(c.t, c.Archive, s, "a/0001")
	st, failed := s.client.Status(c.t.Context())
	if !errors.Is(err, &wire.Error{Code: wire.CodeUnavailable}) || !strings.Contains(err.Error(), want) || !strings.Contains(st.Note, want) {
		c.t.Fatalf("replica %d: %v; status %+v, %v", s.ID, err, st, failed)
	}
}

// rightTree reports whether the tree on a replica's disk is that of rec.
func (c *cluster) rightTree(id uint32, rec archive.EpochRecord) (right bool) {
	c.withStore(id, func(s *Store) error {
		tr, err := s.OpenTree(true)
		if err != nil {
			return err
		}
		defer tr.Close()
		root, n, err := tr.Rehash(c.t.Context(), nil)
		right = err == nil && root == rec.Root && n == rec.Names
		return nil
	})
	return right
}
