package replica

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

// device lets a test step in before each operation of a device.
type device struct {
	trust.MAS
	before func(op string, s trust.Slots) error
}

func (d *device) Store(ctx context.Context, s trust.Slots) error {
	if err := d.before("store", s); err != nil {
		return err
	}
	return d.MAS.Store(ctx, s)
}

func (d *device) Advance(ctx context.Context) error {
	if err := d.before("advance", trust.Slots{}); err != nil {
		return err
	}
	return d.MAS.Advance(ctx)
}

var errCut = errors.New("cut off by the test")

// cutAtCommit runs a phase that is cut off when replicas commit: those in commit
// have stored their vote, the others have not, and nobody gets any further.
func (c *cluster) cutAtCommit(commit []uint32, ids ...uint32) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	var stored, tried atomic.Int32
	for _, id := range ids {
		mas := c.Replicas[id-1].MAS
		c.devices[id] = &device{mas, func(op string, s trust.Slots) error {
			if op != "store" || s.Committed.Epoch <= s.Epoch || s.Committed.Tick != s.Tick {
				return nil
			}
			if tried.Add(1); !slices.Contains(commit, id) {
				cancelWhen(cancel, tried.Load() == int32(len(ids)))
				return errCut
			}
			err := mas.Store(c.t.Context(), s)
			stored.Add(1)
			cancelWhen(cancel, tried.Load() == int32(len(ids)))
			return errors.Join(err, errCut)
		}}
	}
	c.phase(ctx, ids...)
	for _, id := range ids {
		delete(c.devices, id)
		if err := c.last[id].err; err == nil {
			c.t.Fatalf("replica %d: the phase was not cut off", id)
		}
	}
	if int(stored.Load()) != len(commit) {
		c.t.Fatalf("%d replicas committed, want %d", stored.Load(), len(commit))
	}
}

func cancelWhen(cancel context.CancelFunc, yes bool) {
	if yes {
		cancel()
	}
}

// committed returns what a replica's device shows as committed.
func (c *cluster) committed(id uint32) trust.Vote {
	return c.Replicas[id-1].Statement(c.t).Slots.Committed
}

func TestMissedDeadlineBeforeCommit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.add(c.files(3, "early"), c.all()...)
	c.cutAtCommit(nil, c.all()...)
	c.add(c.files(3, "later"), c.all()...)
	c.phase(t.Context(), c.all()...)
	rec := c.agreed(1, c.all()...)
	if rec.Tick != 2 || rec.Names != 6 {
		t.Errorf("record of tick %d with %d names, want tick 2 and all 6", rec.Tick, rec.Names)
	}
}

func TestMissedDeadlineAfterCommit(t *testing.T) {
	t.Parallel()
	for _, commit := range archivetest.Thinned([][]uint32{{2, 4}, {1}, {1, 2, 3}, {1, 2, 3, 4}}) {
		t.Run(fmt.Sprint(len(commit)), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 4)
			c.add(c.files(3, "early"), c.all()...)
			c.cutAtCommit(commit, c.all()...)
			want := c.committed(commit[0])
			c.add(c.files(3, "later"), c.all()...)
			c.phase(t.Context(), c.all()...)
			rec := c.agreed(1, c.all()...)
			if rec.Head() != archive.Digest(want.Record) || rec.Tick != 1 || rec.Names != 3 {
				t.Fatalf("certified %s, committed before: %x", rec.Bytes(), want.Record)
			}
			if _, cert := c.certificate(1, 1); cert.Tick != 2 {
				t.Errorf("certified at tick %d, want 2", cert.Tick)
			}
			c.phase(t.Context(), c.all()...)
			if next := c.agreed(2, c.all()...); next.Names != 6 {
				t.Errorf("the epoch after has %d names, want 6", next.Names)
			}
		})
	}
}

func (c *cluster) certificate(id uint32, e archive.Epoch) (rec archive.EpochRecord, cert archive.Certificate) {
	c.withStore(id, func(s *Store) (err error) {
		rec, cert, err = s.Record(e)
		return err
	})
	return rec, cert
}

// A committed slot whose prepare certificate is gone is left out.
func TestCommittedWithoutCertificate(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.cutAtCommit([]uint32{3}, c.all()...)
	if err := os.RemoveAll(filepath.Join(c.Replicas[2].Dir, "store", "phase")); err != nil {
		t.Fatal(err)
	}
	c.phase(t.Context(), c.all()...)
	rec := c.agreed(1, c.all()...)
	if rec.Tick != 2 || !slices.Equal(rec.Joined, []uint32{1, 2, 4}) {
		t.Errorf("record: %s", rec.Bytes())
	}
}

// Two attempts cut off one after the other, the second carrying the first's
// record: the third certifies the same bytes still.
func TestCarriedTwice(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.add(c.files(3, "early"), c.all()...)
	c.cutAtCommit([]uint32{1}, c.all()...)
	want := c.committed(1)
	c.cutAtCommit([]uint32{2, 3}, c.all()...)
	if got := c.committed(2); got.Record != want.Record || got.Tick != 2 {
		t.Fatalf("second attempt committed %+v, want record %x at tick 2", got, want.Record)
	}
	c.phase(t.Context(), 2, 3, 4)
	if rec := c.agreed(1, 2, 3, 4); rec.Head() != archive.Digest(want.Record) {
		t.Errorf("third attempt certified %s", rec.Bytes())
	}
}

// Each replica is absent once: one of them would have led. It catches up in the
// phase after.
func TestAbsent(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	rounds := uint32(4)
	if archivetest.RaceDetector {
		rounds = 2 // each is dear
	}
	for absent := uint32(1); absent <= rounds; absent++ {
		here := c.all(absent)
		c.add(c.files(3, fmt.Sprint("without ", absent)), here...)
		c.phase(t.Context(), here...)
		rec := c.agreed(archive.Epoch(absent), here...)
		if !slices.Equal(rec.Joined, here) || rec.Names != uint64(3*absent) {
			t.Errorf("record: %s", rec.Bytes())
		}
	}
	c.phase(t.Context(), c.all()...)
	c.agreed(archive.Epoch(rounds+1), c.all()...)
}

func TestTooFew(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.Roster.Limits.Join = archive.Duration(time.Second)
	c.phase(t.Context(), 2, 3)
	for _, id := range []uint32{2, 3} {
		err := c.last[id].err
		if !errors.Is(err, ErrTooFew) || !strings.Contains(err.Error(), "2 of 3 needed replicas joined") {
			t.Errorf("replica %d: %v", id, err)
		}
	}
	c.run(t.Context(), 2)
	if err := c.last[2].err; !errors.Is(err, ErrLocked) {
		t.Errorf("locked device: %v", err)
	}
}

// A replica that starts when the others are ready still joins within the grace.
func TestLateWithinGrace(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.Roster.Limits.Grace = archive.Duration(3 * time.Second)
	c.reset(c.all()...)
	var opened sync.WaitGroup
	opened.Add(3)
	for _, id := range c.all(4) {
		var once sync.Once
		mas := c.Replicas[id-1].MAS
		c.devices[id] = &looking{mas, func() { once.Do(opened.Done) }}
	}
	var all sync.WaitGroup
	all.Go(func() { c.run(t.Context(), c.all(4)...) })
	opened.Wait()
	late, err := Update(t.Context(), c.config(4))
	all.Wait()
	c.last[4] = result{late, err}
	if rec := c.agreed(1, c.all()...); !rec.HasJoined(4) {
		t.Errorf("joined %v", rec.Joined)
	}
}

// looking tells of each lookup.
type looking struct {
	trust.MAS
	looked func()
}

func (d *looking) Lookup(ctx context.Context, n trust.Nonce) (trust.Attestation, error) {
	d.looked()
	return d.MAS.Lookup(ctx, n)
}

// A replica that comes when the others have left the update phase catches up
// from their service processes.
func TestLateAfterTheEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.add(c.files(5, "new"), c.all(4)...)
	c.reset(4)
	c.phase(t.Context(), c.all(4)...)
	stop := c.serve(c.all(4)...)
	defer stop()
	c.run(t.Context(), 4)
	c.agreed(1, c.all()...)
	if late := c.last[4].Outcome; !late.CaughtUp || late.Advanced || late.Epoch != 1 {
		t.Errorf("outcome %+v", late)
	}
}

// serve runs service processes until stop is called.
func (c *cluster) serve(ids ...uint32) (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var all sync.WaitGroup
	for _, id := range ids {
		all.Go(func() {
			if err := Serve(ctx, c.config(id)); err != nil && ctx.Err() == nil {
				c.t.Errorf("serve replica %d: %v", id, err)
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

// A replica that comes while the others store the head takes part as far as it
// can, and holds the common head in the end.
func TestLateAtTheEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.add(c.files(5, "new"), c.all(4)...)
	c.reset(c.all()...)
	stored, over := make(chan struct{}), make(chan struct{})
	var once sync.Once
	for _, id := range c.all(4) {
		c.devices[id] = &device{c.Replicas[id-1].MAS, func(op string, s trust.Slots) error {
			if op == "advance" {
				once.Do(func() { close(stored) })
			}
			return nil
		}}
	}
	var stop func()
	go func() { defer close(over); c.run(t.Context(), c.all(4)...); stop = c.serve(c.all(4)...) }()
	<-stored
	late, err := Update(t.Context(), c.config(4))
	<-over
	stop()
	c.last[4] = result{late, err}
	c.agreed(1, c.all()...)
	if !late.CaughtUp || late.Advanced {
		t.Errorf("outcome %+v", late)
	}
}

// Two values for one name, added in opposite orders: one wins everywhere.
func TestRaceForOneName(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	for round := range 3 {
		name := archive.Name(fmt.Sprint("race/", round))
		left := c.Submission(time.Now(), map[archive.Name][]byte{name: []byte("left")})
		right := c.Submission(time.Now(), map[archive.Name][]byte{name: []byte("right")})
		for _, id := range c.all() {
			if id%2 == 0 {
				left, right = right, left
			}
			c.add(left, id)
			c.add(right, id)
		}
		c.phase(t.Context(), c.all()...)
		c.agreed(archive.Epoch(round+1), c.all()...)
		won, ok := c.entry(1, name)
		if !ok {
			t.Fatalf("%s is not bound", name)
		}
		for _, id := range c.all() {
			if e, _ := c.entry(id, name); e != won {
				t.Errorf("replica %d: %s bound to %v, replica 1: %v", id, name, e, won)
			}
			if n := c.pending(id); n != 0 {
				t.Errorf("replica %d: %d names pending", id, n)
			}
		}
	}
}

// Seven replicas, and with -every ten, make an epoch without f of them, then with all.
func TestMoreReplicas(t *testing.T) {
	t.Parallel()
	for n, absent := range map[int][]uint32{7: {2, 6}, 10: {2, 6, 9}} {
		if n > 7 && !*every {
			continue
		}
		c := newCluster(t, n)
		here := c.all(absent...)
		c.add(c.files(10, "more"), here...)
		c.phase(t.Context(), here...)
		rec := c.agreed(1, here...)
		if rec.Names != 10 || len(rec.Joined) != len(here) {
			t.Errorf("record: %s", rec.Bytes())
		}
		c.phase(t.Context(), c.all()...)
		c.agreed(2, c.all()...)
	}
}

// What an attacker, or a crash, may have left on one replica's disk or in its
// slots before a phase.
func TestDamageBeforePhase(t *testing.T) {
	t.Parallel()
	row := func(e archive.Epoch) tree.Pair {
		return tree.Pair{Name: []byte("planted"), Val: archive.Entry{Epoch: e}.Bytes()}
	}
	plant := func(e archive.Epoch) func(*testing.T, *cluster, string) {
		return func(t *testing.T, c *cluster, store string) {
			c.withStore(2, func(s *Store) error {
				tr, err := s.OpenTree(false)
				if err != nil {
					return err
				}
				defer tr.Close()
				_, _, err = tr.Apply(t.Context(), []tree.Pair{row(e)})
				return err
			})
		}
	}
	rebind := func(t *testing.T, _ *cluster, store string) { rebind(t, store, "old/0007") }
	slots := func(change func(*trust.Slots)) func(*testing.T, *cluster, string) {
		return func(t *testing.T, c *cluster, _ string) {
			s := c.Replicas[1].Statement(t).Slots
			change(&s)
			if err := c.Replicas[1].MAS.Store(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	type damage struct {
		name   string
		damage func(*testing.T, *cluster, string)
		joins  bool // the damaged replica stands in the next join set
	}
	for _, tt := range archivetest.Thinned([]damage{
		{"rows of an epoch never stored", plant(2), true},
		{"a name planted in the past", plant(1), true},
		{"a name bound to something else", rebind, true},
		{"tree gone", func(t *testing.T, _ *cluster, store string) { wipe(t, filepath.Join(store, "tree.db")) }, true},
		{"tree is garbage", func(t *testing.T, _ *cluster, store string) { garbage(t, filepath.Join(store, "tree.db")) }, true},
		{"history gone", func(t *testing.T, _ *cluster, store string) { wipe(t, filepath.Join(store, "history")) }, true},
		{"store gone", func(t *testing.T, _ *cluster, store string) { wipe(t, store) }, true},
		{"phase data planted", func(t *testing.T, _ *cluster, store string) {
			d := phaseDir(filepath.Join(store, "phase")).tick(2, 1)
			must(t, os.MkdirAll(d.engine(), 0o700))
			for _, f := range []string{fileBoot, fileJoin, fileBlock, fileRecord, filePrepare, fileChallenges, "vouched-1", "engine/x"} {
				garbage(t, filepath.Join(string(d), f))
			}
		}, true},
		{"head is garbage", slots(func(s *trust.Slots) { rand.Read(s.Head[:]) }), true},
		{"head of no epoch", slots(func(s *trust.Slots) { s.Epoch = 1 << 60 }), true},
		{"slots of another archive", slots(func(s *trust.Slots) { rand.Read(s.Archive[:]) }), true},
		{"tick used up", slots(func(s *trust.Slots) { s.Tick = 1<<64 - 1 }), false},
		{"committed garbage", slots(func(s *trust.Slots) { s.Committed = trust.Vote{Epoch: 2, Tick: 7, Record: [32]byte{1}} }), false},
	}) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newClusterOf(t, 4, func(r *archive.Roster) {
				if tt.joins { // after it has repaired itself, on however busy a machine
					r.Limits.Grace = archive.Duration(15 * time.Second)
				}
			})
			c.add(c.files(30, "old"), c.all()...)
			c.phase(t.Context(), c.all()...)
			c.agreed(1, c.all()...)
			c.add(c.files(3, "new"), c.all(2)...)
			c.reset(c.all()...)
			tt.damage(t, c, filepath.Join(c.Replicas[1].Dir, "store"))
			c.run(t.Context(), c.all()...)
			rec := c.agreed(2, c.all()...)
			if rec.Names != 33 || rec.HasJoined(2) != tt.joins {
				t.Errorf("record: %s", rec.Bytes())
			}
		})
	}
}

// rebind binds a name to something else, and leaves the digests above its row
// alone.
func rebind(t *testing.T, store string, n archive.Name) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(store, treeFile), 0o600, nil)
	must(t, err)
	defer db.Close()
	must(t, db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("leaves")).Put([]byte(n), archive.Entry{Epoch: 1}.Bytes())
	}))
}

// No digest that the old tree's file holds is believed: it is hashed from its
// rows, and repaired where they do not give its root.
func TestOldTreeIsRehashed(t *testing.T) {
	f := newForge(t)
	rec := f.Certify(t, files("n", 20))
	p := f.newTestPhase()
	store := filepath.Join(f.Replicas[0].Dir, storeDir)
	ensure := func() error {
		s, err := OpenStore(store, f.Roster)
		must(t, err)
		defer s.Close()
		p.store, p.trees = s, &lender{store: s}
		return p.ensureTree(t.Context(), rec)
	}
	must(t, ensure())
	rebind(t, store, "n/0007")
	if err := ensure(); !errors.Is(err, errTree) { // nobody is there to repair it from
		t.Errorf("a name bound to something else: %v, want %v", err, errTree)
	}
}

// A crash between Store of the head and Advance is mended when the next phase
// opens.
func TestMendCounter(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.devices[3] = &device{c.Replicas[2].MAS, func(op string, _ trust.Slots) error {
		if op == "advance" {
			return errCut
		}
		return nil
	}}
	c.phase(t.Context(), c.all()...)
	c.agreed(1, 1, 2, 4)
	if st := c.Replicas[2].Statement(t); st.Slots.Epoch != 1 || st.Counter != 0 {
		t.Fatalf("device of 3: epoch %d, counter %d", st.Slots.Epoch, st.Counter)
	}
	delete(c.devices, 3)
	c.phase(t.Context(), c.all()...)
	if rec := c.agreed(2, c.all()...); !rec.HasJoined(3) {
		t.Errorf("joined %v", rec.Joined)
	}
}

// A counter that a faulty replica has burnt keeps it out until the archive gets
// there.
func TestBurntCounter(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.phase(t.Context(), c.all()...)
	c.reset(c.all()...)
	for range 2 {
		must(t, c.Replicas[0].MAS.Advance(t.Context()))
	}
	c.run(t.Context(), c.all()...)
	c.agreed(2, 2, 3, 4)
	if st := c.Replicas[0].Statement(t); st.Slots.Epoch != 1 || st.Slots.Tick != 0 {
		t.Errorf("device of 1, whose counter is at %d, was given epoch %d, tick %d", st.Counter, st.Slots.Epoch, st.Slots.Tick)
	}
	if err := c.last[1].err; !errors.Is(err, errBurnt) {
		t.Errorf("replica 1: %v", err)
	}
	c.phase(t.Context(), c.all()...)
	rec := c.agreed(3, c.all()...)
	if rec.HasJoined(1) {
		t.Errorf("joined %v", rec.Joined)
	}
	c.phase(t.Context(), c.all()...)
	if rec := c.agreed(4, c.all()...); !rec.HasJoined(1) {
		t.Errorf("joined %v", rec.Joined)
	}
}

func wipe(t testing.TB, path string) {
	t.Helper()
	must(t, os.RemoveAll(path))
}

func garbage(t *testing.T, path string) {
	t.Helper()
	b := make([]byte, 70000)
	rand.Read(b)
	must(t, os.WriteFile(path, b, 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is certified, a replica stores no head whose tree changed or removed
// a name that its own head vouches for.
func TestNothingChanged(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.Certify(t, map[archive.Name][]byte{"kept": []byte("one"), "changed": []byte("one")})
	forged := c.Certify(t, map[archive.Name][]byte{"changed": []byte("two"), "more": []byte("x")}, 4)
	stop := c.serve(1, 2, 3)
	defer stop()
	c.phase(t.Context(), 4)
	if err := c.last[4].err; err == nil || !strings.Contains(err.Error(), "names of epoch 1 were changed or removed") {
		t.Errorf("catching up with epoch %d: %v", forged.Epoch, err)
	}
	if st := c.Replicas[3].Statement(t); st.Slots.Epoch != 1 || st.Counter != 1 {
		t.Errorf("device stands at epoch %d, counter %d", st.Slots.Epoch, st.Counter)
	}
}

// A replica votes for no record of a tree in which an old name has changed while
// it added new ones. It takes the epoch over from the others.
func TestChangedWhileAdding(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.Certify(t, map[archive.Name][]byte{"kept": []byte("one")})
	c.add(c.Submission(time.Now(), map[archive.Name][]byte{"more": []byte("two")}), c.all()...)
	c.reset(4)
	var log logBuffer
	config := loggingTo(c.config(4), &log)
	old := archive.DigestOf([]byte("one"))
	config.at = func(point string) {
		if point == "after tree" {
			flipEverywhere(t, filepath.Join(config.StoreDir(), treeFile), string(old[:]))
		}
	}
	var four sync.WaitGroup
	four.Go(func() {
		if _, err := Update(t.Context(), config); err != nil {
			t.Errorf("replica 4: %v", err)
		}
	})
	c.phase(t.Context(), 1, 2, 3)
	four.Wait()
	if c.agreed(2, 1, 2, 3).Head() != c.holds(4, 2).Head() {
		t.Error("replica 4 is elsewhere")
	}
	if want := "names of epoch 1 were changed or removed"; !strings.Contains(log.String(), want) {
		t.Errorf("no word of %q:\n%s", want, log.String())
	}
}

// flipEverywhere flips a byte of every occurrence of text in a file.
func flipEverywhere(t *testing.T, path, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	for from := 0; ; {
		at := bytes.Index(b[from:], []byte(text))
		if at < 0 {
			return
		}
		flipByte(t, path, int64(from+at))
		from += at + 1
	}
}

// A replica absent for some epochs takes them all over from service processes.
func TestCatchUpSeveral(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	epochs := 70 // more than one page of history
	if archivetest.RaceDetector {
		epochs = 7
	}
	for e := range epochs {
		c.Certify(t, map[archive.Name][]byte{archive.Name(fmt.Sprint("n/", e)): []byte("x")}, 2)
	}
	stop := c.serve(1, 3, 4)
	defer stop()
	c.phase(t.Context(), 2)
	c.agreed(archive.Epoch(epochs), 2)
	if out := c.last[2].Outcome; !out.CaughtUp || out.Epoch != archive.Epoch(epochs) {
		t.Errorf("outcome %+v", out)
	}
}

// A peer that answers whatever it likes costs the others nothing but its vote.
func TestLyingPeer(t *testing.T) {
	t.Parallel()
	answer := func(path string, f http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(headerRun, strings.Repeat("0", runLength))
			if strings.HasPrefix(r.URL.Path, path) {
				f(w, r)
			}
		}
	}
	honest := func(m *archivetest.Replica, r *archive.Roster, f http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path != pathHello {
				f(w, req)
				return
			}
			var challenge [32]byte
			io.ReadFull(req.Body, challenge[:])
			from, _ := wire.PeerID(req.TLS, r)
			att, _ := m.MAS.Lookup(req.Context(), archive.HelloNonce(r.ID(), m.ID, from, challenge))
			w.Header().Set(headerRun, strings.Repeat("0", runLength))
			w.Write(att)
		}
	}
	endless := func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}
	garbage := func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("garbage, and more of it")) }
	items := func(items ...item) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.Write(encodeBatch(items)) }
	}
	type peer struct {
		name   string
		honest bool // in its hello
		lie    http.HandlerFunc
	}
	for _, tt := range archivetest.Thinned([]peer{
		{"garbage for a hello", false, answer(pathHello, garbage)},
		{"endless hello", false, answer(pathHello, endless)},
		{"no answer", false, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{"garbage on the board", true, answer(pathBoard, garbage)},
		{"endless board", true, answer(pathBoard, endless)},
		{"the same forever", true, answer(pathBoard, items(item{itemBase, make([]byte, 40)}))},
		{"items of no kind", true, answer(pathBoard, items(item{0, nil}, item{'?', make([]byte, 1000)}))},
		{"empty items", true, answer(pathBoard, items(item{itemJoin, nil}))},
		{"garbage certificate", true, answer(pathBoard, items(item{itemCertificate, make([]byte, 100)}))},
	}) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 4)
			m := c.Replicas[3]
			lie := tt.lie
			if tt.honest {
				lie = honest(m, c.Roster, lie)
			}
			c.reset(4)
			stop := liar(t, m, c.Roster, lie)
			defer stop()
			c.add(c.files(3, "n"), 1, 2, 3)
			c.phase(t.Context(), 1, 2, 3)
			if rec := c.agreed(1, 1, 2, 3); rec.Names != 3 {
				t.Errorf("record: %s", rec.Bytes())
			}
		})
	}
}

// liar serves a replica's address with its agreement key and a handler of the
// test's.
func liar(t testing.TB, m *archivetest.Replica, r *archive.Roster, h http.Handler) (stop func()) {
	t.Helper()
	config, err := wire.MutualTLS(m.AgreementKey, r)
	must(t, err)
	l, err := net.Listen("tcp", m.Address)
	must(t, err)
	s := &http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() { defer close(done); s.ServeTLS(l, "", "") }()
	return func() { s.Close(); <-done }
}

// Nobody without a replica's agreement key gets a word out of an update process.
func TestIntruder(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.reset(1)
	opened := make(chan struct{})
	var once sync.Once
	c.devices[1] = &looking{c.Replicas[0].MAS, func() { once.Do(func() { close(opened) }) }}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { c.run(ctx, 1) })
	defer all.Wait()
	defer cancel()
	<-opened
	x := archivetest.NewRoster(t, 4).Replicas[0] // of another archive
	for name, key := range map[string]ed25519.PrivateKey{"another archive's replica": x.AgreementKey, "a service key": c.Replicas[1].ServiceKey, "no key": nil} {
		client := wire.NewClient(c.Replicas[0].Replica, c.Roster, wire.Options{AgreementKey: key, Timeout: time.Second})
		for _, path := range []string{pathBoard, wire.PathHistory + "?from=1&limit=1"} {
			archivetest.Eventually(t, 5*time.Second, "refusal of "+name, func() bool {
				resp, err := client.HTTP().Get(client.URL(path))
				if err == nil {
					t.Errorf("%s: %s answered %s", name, path, resp.Status)
					resp.Body.Close()
				}
				return !errors.Is(err, syscall.ECONNREFUSED)
			})
		}
		client.Close()
	}
}

// A replica says one thing at a tick, and commits nothing over another record.
func TestSaysOneThing(t *testing.T) {
	f := newForge(t)
	p := f.newTestPhase()
	p.board = newBoard(rand.Reader)
	p.dir = phaseDir(t.TempDir())
	f.store(1, f.slots(1, 3))
	must(t, p.lookAgain(t.Context()))
	a := p.newAttempt(3)
	must(t, a.dir.begin("1.0"))
	first := f.block(3, nil, 1, 2, 3)
	rec, other := f.record(3, first), f.record(3, first)
	other.Names = 77
	must(t, a.prepare(t.Context(), rec))
	if err := a.prepare(t.Context(), other); err == nil {
		t.Error("prepared two records at one tick")
	}
	must(t, a.prepare(t.Context(), rec))
	must(t, a.commit(t.Context(), rec))
	if err := a.commit(t.Context(), other); err == nil {
		t.Error("committed two records at one tick")
	}
	must(t, a.commit(t.Context(), rec))
	if got := f.Replicas[0].Statement(t).Slots.Committed; got != f.vote(3, rec) {
		t.Errorf("committed %+v", got)
	}
	b := p.newAttempt(2)
	must(t, b.dir.begin("1.0"))
	if err := b.commit(t.Context(), rec); err == nil {
		t.Error("committed at a lower tick")
	}
}

// One replica alone has stored the head of an epoch, the others have committed it,
// and the attacker takes the record and its certificate from all. The others
// certify it again; the one ends its phase with them, at the epoch it had.
func TestHeadWithoutRecord(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	hasten(c)
	c.add(c.files(3, "early"), c.all()...)
	for _, id := range c.all(4) {
		c.devices[id] = &device{c.Replicas[id-1].MAS, func(op string, s trust.Slots) error {
			if op == "store" && s.Epoch == 1 {
				return errCut
			}
			return nil
		}}
	}
	c.phase(t.Context(), c.all()...)
	clear(c.devices)
	head := c.Replicas[3].Statement(t).Slots.Head
	for _, r := range c.Replicas {
		wipe(t, filepath.Join(r.Dir, storeDir, historyDir))
	}
	c.phase(t.Context(), c.all()...)
	if rec := c.agreed(1, c.all()...); rec.Head() != archive.Digest(head) {
		t.Errorf("certified %s, the head of replica 4 was %x", rec.Bytes(), head)
	}
	if out := c.last[4].Outcome; !out.CaughtUp {
		t.Errorf("replica 4: %+v", out)
	}
}

// After an epoch only those submissions wait on that still have a name to bind and
// may.
func TestSettle(t *testing.T) {
	f := newForge(t)
	rec := f.Certify(t, files("n", 20))
	p := f.newTestPhase()
	s, err := OpenStore(filepath.Join(f.Replicas[0].Dir, storeDir), f.Roster)
	must(t, err)
	defer s.Close()
	p.store = s
	strange := f.Submission(rec.Time, files("strange", 3))
	strange.Sign(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	forged := f.Submission(rec.Time, files("forged", 3))
	forged.Signature[0] ^= 1
	half := f.Submission(rec.Time, map[archive.Name][]byte{"n/0001": nil, "n/half": nil})
	waits := f.Submission(rec.Time, files("waits", 3))
	b, err := s.Pending()
	must(t, err)
	for _, sub := range []archive.Submission{
		f.Submission(rec.Time, files("n", 20)), f.Submission(rec.Time.Add(-f.Roster.Limits.SubmissionAge.Std()-time.Second), files("old", 3)),
		strange, forged, half, waits,
	} {
		must(t, b.Put(sub))
	}
	must(t, s.closePending())
	must(t, p.settle(rec))
	b, err = s.Pending()
	must(t, err)
	var left, want []archive.Digest
	must(t, b.Each(func(s archive.Submission) error { left = append(left, s.Digest()); return nil }))
	for _, s := range sortedBody([]archive.Submission{half, waits}) {
		want = append(want, s.Digest())
	}
	if !slices.Equal(left, want) {
		t.Errorf("%d wait, want the two with unbound names", len(left))
	}
}
