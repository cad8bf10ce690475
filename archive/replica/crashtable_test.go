package replica

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
)

var every = flag.Bool("every", false, "have TestCrashTable kill at every point of an update phase, not at some")

// crash is a row of the crash table: kill -9 at a point of the update phase.
type crash struct {
	point string
	// bring, if set, brings a replica to where its next phase comes by the point.
	bring func(c *crashed, id uint32)
	fresh bool // the phase is the first of an archive
	few   bool // not all replicas can come by the point: some must be whole
	fatal bool // started again in the same boot, the process finds its phase over
}

// inEngine is the point at which no change is made, but one within a change: of
// the engine's own files.
const inEngine = "vote in the engine"

// crashes is the crash table. The rows are in the order in which a phase comes
// by. Other replicas always make progress without those that are killed, if
// these are f at most; and all do when they are started again.
var crashes = []crash{
	{point: "before store"}, {point: "after store"},
	{point: "before empty tree", fresh: true}, {point: "after empty tree", fresh: true},
	{point: "before tree repaired", bring: (*crashed).loseTree, few: true}, {point: "after tree repaired", bring: (*crashed).loseTree, few: true},
	{point: "before tree without later rows", bring: (*crashed).aheadTree}, {point: "after tree without later rows", bring: (*crashed).aheadTree},
	{point: "before attempt"}, {point: "after attempt"},
	{point: "before challenges"}, {point: "after challenges"},
	{point: "before tick"}, {point: "after tick"},
	{point: "before pending opened"}, {point: "after pending opened"},
	{point: "before piece"}, {point: "after piece"},
	{point: "before join"}, {point: "after join"},
	{point: "before piece fetched"}, {point: "after piece fetched"},
	{point: "before voucher"}, {point: "after voucher"},
	{point: "before decision"}, {point: "before " + inEngine}, {point: "after decision"},
	{point: "before block"}, {point: "after block"},
	{point: "before tree opened"}, {point: "after tree opened"},
	{point: "before tree"}, {point: "after tree"},
	{point: "before prepared record"}, {point: "after prepared record"},
	{point: "before prepare certificate"}, {point: "after prepare certificate"},
	{point: "before commit"}, {point: "after commit"},
	{point: "before record"}, {point: "after record"},
	{point: "before head"}, {point: "after head"},
	{point: "before counter"}, {point: "after counter"},
	{point: "before pending dropped"}, {point: "after pending dropped"},
	{point: "before lock"}, {point: "after lock", fatal: true},
	{point: "before phase data dropped", fatal: true}, {point: "after phase data dropped", fatal: true},
}

// One, f or all replicas are killed at a point of the update phase, and started
// again in the same boot or after a reset of their devices. The others make their
// epoch meanwhile; in the end all hold one history, what was pending is bound,
// and an audit finds no damage.
func TestCrashTable(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(*seed, 0))
	for i, kind := range []string{"one", "f", "all"} {
		some := rnd.IntN(len(crashes))
		t.Run(kind, func(over *testing.T) {
			over.Parallel()
			var c *crashed
			for j, row := range crashes {
				rebooted := (i+j+int(*seed))%2 == 0
				dear := kind == "f" || kind == "all" && archivetest.RaceDetector
				if !*every && (j != some || dear) || row.few && kind == "all" {
					continue
				}
				name := row.point
				if rebooted {
					name += " and reset"
				}
				over.Run(name, func(t *testing.T) {
					began := time.Now()
					made := c == nil || row.fresh
					if made {
						c = newCrashed(over, kind)
					}
					c.t = t
					if made && !row.fresh {
						c.whole()
					}
					c.crash(row, kind, rebooted)
					t.Logf("%s of %d replicas: epoch %d after %s", kind, c.Roster.N(), c.at, time.Since(began).Round(time.Second/10))
				})
				if over.Failed() {
					over.FailNow()
				}
			}
		})
	}
}

// crashed is an archive whose update processes are killed.
type crashed struct {
	*cluster
	at    archive.Epoch
	added int
	names map[archive.Name]archive.Digest // pending or bound
	heads map[archive.Epoch]archive.Digest
}

func newCrashed(t *testing.T, kind string) *crashed {
	n := 4
	if kind == "f" {
		n = 7
	}
	c := &crashed{cluster: newCluster(t, n), names: make(map[archive.Name]archive.Digest), heads: make(map[archive.Epoch]archive.Digest)}
	l := &c.Roster.Limits
	l.Phase, l.Join, l.Grace = archive.Duration(3*time.Minute), archive.Duration(time.Minute), archive.Duration(2*time.Second)
	if kind == "all" {
		l.Grace = l.Join // all wait for all
	}
	return c
}

// crash is one row.
func (c *crashed) crash(row crash, kind string, rebooted bool) {
	c.pend(c.all()...)
	c.reset(c.all()...)
	before := c.at
	if kind == "all" {
		c.broken(row, c.all())
		c.killAll(row.point)
		c.again(row, rebooted)
	} else {
		victims := c.all()[c.added%c.Roster.N():][:1]
		if kind == "f" {
			victims = []uint32{uint32(c.added%c.Roster.N()) + 1, uint32((c.added+3)%c.Roster.N()) + 1}
		}
		c.broken(row, victims)
		c.without(row, rebooted, victims)
	}
	c.whole()
	if c.at > before+3 {
		c.t.Errorf("%d epochs of two phases", c.at-before)
	}
}

func (c *crashed) broken(row crash, ids []uint32) {
	for _, id := range ids {
		if row.bring != nil {
			row.bring(c, id)
		}
	}
}

// again starts all replicas again, each of which has been killed.
func (c *crashed) again(row crash, rebooted bool) {
	c.t.Helper()
	if rebooted {
		c.reset(c.all()...)
	}
	c.children(row.fatal && !rebooted, c.all()...)
	c.settled(c.all()...)
}

// without has victims die while the others make an epoch, in which the victims
// take part again, or which they miss.
func (c *crashed) without(row crash, rebooted bool, victims []uint32) {
	c.t.Helper()
	var dying, living sync.WaitGroup
	for _, id := range victims {
		cmd := c.childProcess(id, row.point)
		must(c.t, cmd.Start())
		dead := make(chan struct{})
		dying.Go(func() {
			killed, err := wait(cmd)
			close(dead)
			if !killed || err != nil {
				c.t.Errorf("replica %d, %s: killed: %v, %v\n%s", id, row.point, killed, err, cmd.Stdout)
			} else if !rebooted {
				c.childEnds(id, row.fatal)
			}
		})
		c.listensOrIs(dead, id)
	}
	others := c.all(victims...)
	living.Go(func() { c.children(false, others...) })
	living.Wait()
	stop := c.serve(others...)
	dying.Wait()
	stop()
	c.settled(others...)
}

// listensOrIs waits until a replica's process listens, or is dead.
func (c *crashed) listensOrIs(dead chan struct{}, id uint32) {
	c.t.Helper()
	archivetest.Eventually(c.t, time.Minute, "the process listens", func() bool {
		select {
		case <-dead:
			return true
		default:
			return c.listens(id)
		}
	})
}

// children runs the update processes of replicas to their ends. fatal: each finds
// its phase over.
func (c *crashed) children(fatal bool, ids ...uint32) {
	var all sync.WaitGroup
	for _, id := range ids {
		all.Go(func() { c.childEnds(id, fatal) })
	}
	all.Wait()
	if c.t.Failed() {
		c.t.FailNow()
	}
}

func (c *crashed) childEnds(id uint32, fatal bool) {
	killed, err := c.child(id, "")
	switch {
	case fatal && (err == nil || !strings.Contains(err.Error(), ErrLocked.Error())):
		c.t.Errorf("replica %d: %v, want %v", id, err, ErrLocked)
	case !fatal && (killed || err != nil):
		c.t.Errorf("replica %d: killed: %v, %v", id, killed, err)
	}
}

// whole has all replicas make one more epoch, with nothing broken, and checks
// all of them.
func (c *crashed) whole() {
	c.t.Helper()
	c.pend(c.all()...)
	c.undisturbed()
}

// undisturbed is a phase with nothing new.
func (c *crashed) undisturbed() {
	c.t.Helper()
	c.reset(c.all()...)
	c.children(false, c.all()...)
	c.settled(c.all()...)
	for _, id := range c.all() {
		c.audited(id)
	}
}

// settled wants the replicas to stand at one epoch, above the last, with one
// history, and all that was pending bound.
func (c *crashed) settled(ids ...uint32) {
	c.t.Helper()
	at := archive.Epoch(c.Replicas[ids[0]-1].Statement(c.t).Slots.Epoch)
	if at <= c.at {
		c.t.Fatalf("no progress: at epoch %d still", at)
	}
	for _, id := range ids {
		for e := archive.Epoch(1); e <= at; e++ {
			rec := c.record(id, e)
			if head, ok := c.heads[e]; ok && head != rec.Head() {
				c.t.Fatalf("replica %d: another record of epoch %d", id, e)
			}
			c.heads[e] = rec.Head()
		}
		c.holds(id, at)
		for n, d := range c.names {
			if e, ok := c.entry(id, n); !ok || e.Digest != d {
				c.t.Errorf("replica %d: %q was pending, and is not bound at epoch %d", id, n, at)
			}
		}
	}
	if c.t.Failed() {
		c.t.FailNow()
	}
	c.at = at
	clear(c.names)
}

func (c *crashed) record(id uint32, e archive.Epoch) (rec archive.EpochRecord) {
	c.withStore(id, func(s *Store) (err error) { rec, _, err = s.Record(e); return err })
	return rec
}

// pend leaves names pending at all the given replicas, and others at single ones.
// These count for nothing, but their bodies have to be fetched.
func (c *crashed) pend(ids ...uint32) {
	c.added++
	files := make(map[archive.Name][]byte)
	for i := range 3 {
		files[archive.Name(fmt.Sprintf("all/%d/%d", c.added, i))] = fmt.Appendf(nil, "all %d %d", c.added, i)
	}
	sub := c.Submission(time.Now(), files)
	for _, b := range sub.Bindings {
		c.names[b.Name] = b.Digest
	}
	for _, id := range ids {
		own := map[archive.Name][]byte{archive.Name(fmt.Sprintf("one/%d/%d", c.added, id)): fmt.Appendf(nil, "one %d %d", c.added, id)}
		maps.Copy(files, own)
		c.add(sub, id)
		c.add(c.Submission(time.Now(), own), id)
	}
	for _, r := range c.Replicas { // the contents of all, at all
		for _, b := range files {
			path := archivetest.ContentPath(r.Dir, archive.DigestOf(b))
			must(c.t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)))
		}
	}
}

// loseTree removes a replica's tree.
func (c *crashed) loseTree(id uint32) {
	wipe(c.t, filepath.Join(c.Replicas[id-1].Dir, storeDir, treeFile))
}

// aheadTree puts a row into a replica's tree as an attempt does that is cut off.
func (c *crashed) aheadTree(id uint32) {
	c.withStore(id, func(s *Store) error {
		t, err := s.OpenTree(false)
		if err != nil {
			return err
		}
		defer t.Close()
		_, _, err = t.Apply(c.t.Context(), entryPairs(0, 3, c.at+1))
		return err
	})
}

// audited audits a replica, all of it.
func (c *crashed) audited(id uint32) {
	c.t.Helper()
	rp, err := Audit(c.t.Context(), c.config(id), AuditOptions{}, func(e Event) {
		if e.Kind == EventDamage {
			c.t.Errorf("replica %d: %+v", id, e)
		}
	})
	if err != nil || rp.Damaged != 0 || rp.Epoch != c.at || rp.Contents == 0 {
		c.t.Errorf("audit of replica %d: %+v, %v", id, rp, err)
	}
}
