package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/soft"
)

// cluster is an archive whose update processes run as goroutines.
type cluster struct {
	*archivetest.Archive
	t testing.TB
	// devices replaces the device of a replica in its next phase.
	devices map[uint32]trust.MAS
	last    map[uint32]result // of each replica's last phase
}

type result struct {
	Outcome
	err error
}

func newCluster(t testing.TB, n int) *cluster { return newClusterOf(t, n) }

// newClusterOf makes a cluster whose roster has been edited.
func newClusterOf(t testing.TB, n int, edit ...func(*archive.Roster)) *cluster {
	t.Helper()
	a := archivetest.NewRoster(t, n, append([]func(*archive.Roster){func(r *archive.Roster) {
		r.Limits = archive.TrialLimits(15 * time.Second)
		r.Limits.Phase = archive.Duration(time.Minute) // test machines are busy
		r.Limits.Join = archive.Duration(30 * time.Second)
		r.Limits.Grace = archive.Duration(time.Second)
		r.Limits.Linger = archive.Duration(2 * time.Second)
	}}, edit...)...)
	return &cluster{Archive: a, t: t, devices: make(map[uint32]trust.MAS), last: make(map[uint32]result)}
}

func (c *cluster) config(id uint32) Config {
	m := c.Replicas[id-1]
	mas := trust.MAS(m.MAS)
	if d, ok := c.devices[id]; ok {
		mas = d
	}
	level := slog.LevelInfo
	if os.Getenv("BONAFIDE_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(&testWriter{t: c.t}, &slog.HandlerOptions{Level: level}))
	return Config{Dir: m.Dir, ID: id, Roster: c.Roster, MAS: mas, ServiceKey: m.ServiceKey, Timeout: 2 * time.Second, Log: log}
}

// testWriter logs to the test, as long as it runs.
type testWriter struct{ t testing.TB }

func (w *testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// all returns the IDs but those of the absent.
func (c *cluster) all(absent ...uint32) (ids []uint32) {
	for _, r := range c.Replicas {
		if !slices.Contains(absent, r.ID) {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// reset is the watchdog's part before a phase.
func (c *cluster) reset(ids ...uint32) {
	c.t.Helper()
	for _, id := range ids {
		if err := soft.Reset(filepath.Join(c.Replicas[id-1].Dir, "mas")); err != nil {
			c.t.Fatal(err)
		}
	}
}

// phase resets the devices and runs the update phase of each replica.
func (c *cluster) phase(ctx context.Context, ids ...uint32) {
	c.t.Helper()
	c.reset(ids...)
	c.run(ctx, ids...)
}

// run runs update processes, and after each its service process until all are
// done.
func (c *cluster) run(ctx context.Context, ids ...uint32) {
	var mu sync.Mutex
	var all, serving sync.WaitGroup
	over, cancel := context.WithCancel(ctx)
	for _, id := range ids {
		all.Go(func() {
			out, err := Update(ctx, c.config(id))
			mu.Lock()
			defer mu.Unlock()
			c.last[id] = result{out, err}
			serving.Go(func() { Serve(over, c.config(id)) })
		})
	}
	all.Wait()
	cancel()
	serving.Wait()
	for _, id := range ids {
		c.t.Logf("replica %d: %+v, %v", id, c.last[id].Outcome, c.last[id].err)
		if st := c.Replicas[id-1].Statement(c.t); st.Mode != trust.ModeService {
			c.t.Errorf("replica %d: device left in %v mode", id, st.Mode)
		}
	}
}

// agreed checks that each replica stands at epoch e with one head: device,
// record, certificate and tree. It returns the record.
func (c *cluster) agreed(e archive.Epoch, ids ...uint32) (rec archive.EpochRecord) {
	c.t.Helper()
	for i, id := range ids {
		if err := c.last[id].err; err != nil {
			c.t.Errorf("replica %d: %v", id, err)
		}
		r := c.holds(id, e)
		if i > 0 && r.Head() != rec.Head() {
			c.t.Fatalf("replica %d: head %s, replica %d: %s", id, r.Head(), ids[0], rec.Head())
		}
		rec = r
	}
	return rec
}

// holds checks one replica against its own device and disk.
func (c *cluster) holds(id uint32, e archive.Epoch) archive.EpochRecord {
	c.t.Helper()
	m := c.Replicas[id-1]
	s, err := OpenStore(filepath.Join(m.Dir, "store"), c.Roster)
	if err != nil {
		c.t.Fatal(err)
	}
	defer s.Close()
	rec, cert, err := s.Record(e)
	if err != nil {
		c.t.Fatalf("replica %d: record of epoch %d: %v", id, e, err)
	}
	if e > 0 {
		if err := cert.Verify(c.Roster, rec); err != nil {
			c.t.Fatalf("replica %d: %v", id, err)
		}
	}
	st := m.Statement(c.t)
	if !holdsHead(st.Slots, rec) || st.Counter != uint64(e) || st.Slots.Tick != 0 || st.Slots.Committed != (trust.Vote{}) {
		c.t.Fatalf("replica %d: device holds %+v, counter %d; want epoch %d", id, st.Slots, st.Counter, e)
	}
	tr, err := s.OpenTree(true)
	if err != nil {
		c.t.Fatal(err)
	}
	defer tr.Close()
	root, n, err := tr.Rehash(c.t.Context(), nil)
	if err != nil || root != rec.Root || n != rec.Names {
		c.t.Fatalf("replica %d: tree %x of %d names, %v; record says %x of %d", id, root[:4], n, err, rec.Root[:4], rec.Names)
	}
	return rec
}

// add puts a submission into the pending buffers of the given replicas.
func (c *cluster) add(s archive.Submission, ids ...uint32) {
	c.t.Helper()
	c.addAll([]archive.Submission{s}, ids...)
}

func (c *cluster) addAll(all []archive.Submission, ids ...uint32) {
	c.t.Helper()
	for _, id := range ids {
		c.withStore(id, func(st *Store) error {
			p, err := st.Pending()
			for _, s := range all {
				if err == nil {
					err = p.Put(s)
				}
			}
			return err
		})
	}
}

func (c *cluster) withStore(id uint32, f func(*Store) error) {
	c.t.Helper()
	s, err := OpenStore(filepath.Join(c.Replicas[id-1].Dir, "store"), c.Roster)
	if err == nil {
		err = errors.Join(f(s), s.Close())
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) files(n int, what string) archive.Submission {
	files := make(map[archive.Name][]byte)
	for i := range n {
		files[archive.Name(fmt.Sprintf("%s/%04d", what, i))] = []byte(fmt.Sprint(what, i))
	}
	return c.Submission(time.Now(), files)
}

// pending returns how many names wait at a replica.
func (c *cluster) pending(id uint32) (n uint64) {
	c.withStore(id, func(s *Store) error {
		p, err := s.Pending()
		if err == nil {
			n = p.Total().Names
		}
		return err
	})
	return n
}

// entry returns what a replica's tree binds a name to.
func (c *cluster) entry(id uint32, n archive.Name) (e archive.Entry, ok bool) {
	c.withStore(id, func(s *Store) error {
		t, err := s.OpenTree(true)
		if err != nil {
			return err
		}
		defer t.Close()
		val, found, err := t.Get([]byte(n))
		if ok = found; !ok || err != nil {
			return err
		}
		e, err = archive.ParseEntry(val)
		return err
	})
	return e, ok
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	before := time.Now().Add(-2 * time.Second)
	c.add(c.files(10, "all"), c.all()...)
	c.add(c.files(5, "three"), 1, 2, 3)
	c.add(c.files(5, "one"), 4)
	c.phase(t.Context(), c.all()...)
	rec := c.agreed(1, c.all()...)
	if rec.Names != 20 || rec.Tick != 1 || rec.Previous != archive.Genesis(c.Roster).Head() {
		t.Errorf("record: %s", rec.Bytes())
	}
	if !slices.Equal(rec.Joined, c.all()) {
		t.Errorf("joined %v, want all", rec.Joined)
	}
	if rec.Time.Before(before) || rec.Time.After(time.Now()) {
		t.Errorf("time %v", rec.Time)
	}
	for _, id := range c.all() {
		if counts, _ := rec.CountsOf(id); counts != c.Replicas[id-1].Statement(t).Counts {
			t.Errorf("replica %d: counts %v", id, counts)
		}
		if out := c.last[id].Outcome; !out.Advanced || out.CaughtUp || out.Tick != 1 || out.Epoch != 1 || out.Head != rec.Head() {
			t.Errorf("replica %d: outcome %+v", id, out)
		}
		if n := c.pending(id); n != 0 {
			t.Errorf("replica %d: %d names still pending", id, n)
		}
		if left, _ := os.ReadDir(filepath.Join(c.Replicas[id-1].Dir, "store", "phase")); len(left) != 0 {
			t.Errorf("replica %d: phase data left: %v", id, left)
		}
	}
	c.phase(t.Context(), c.all()...) // with nothing to add
	again := c.agreed(2, c.all()...)
	if again.Root != rec.Root || again.Previous != rec.Head() {
		t.Errorf("empty phase: record %s", again.Bytes())
	}
}
