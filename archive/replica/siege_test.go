package replica

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/soft"
)

var (
	runs        = flag.Int("runs", 0, "how many runs of ten phases TestSiege makes; 0: one of two phases")
	siegePhases = flag.Int("siegephases", 10, "how many phases a run of TestSiege has")
)

// An archive of 4 or 7 replicas goes through phases in which up to f of them are
// traitors with random switches, others are late, absent, killed or cut off from
// one another, and before which an attacker with root on all replicas has been at
// their stores. Then all that ends. No two replicas ever hold two heads of one
// epoch, and no name is rebound or lost; the first phase without faults is ended
// by all at one epoch, and all that 2f+1 acknowledged is bound by the first epoch
// frozen after that.
//
// The replicas are goroutines of this process, with software devices and real
// TCP, so that 600 phases take about half an hour on two cores. A kill ends the
// goroutines of one at a point of the phase where something durable changes: what
// kill -9 of processes does TestCrashTable shows. Run i has the seed seed+i, and
// 4 replicas where that is odd, otherwise 7; as many run at once as -parallel
// says. The script siege makes many.
func TestSiege(t *testing.T) {
	t.Parallel()
	n, phases := *runs, *siegePhases
	if n == 0 {
		n, phases = 1, 2
	}
	var mu sync.Mutex
	sum := make(map[string]int)
	t.Cleanup(func() {
		for _, what := range slices.Sorted(maps.Keys(sum)) {
			t.Logf("%6d %s", sum[what], what)
		}
	})
	for i := range n {
		at := *seed + uint64(i)
		t.Run(fmt.Sprintf("seed %d", at), func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			s := newSiege(t, at)
			for range phases {
				s.besieged()
			}
			s.relieved()
			if t.Failed() {
				t.Fatalf("failed: -args -runs 1 -seed %d", at)
			}
			said := fmt.Sprintf("seed %d: %d replicas, %d epochs of %d phases, %s", at, s.Roster.N(), s.newest, s.number, time.Since(began).Round(time.Second))
			t.Log(said)
			if *runs > 0 {
				fmt.Println(said)
			}
			mu.Lock()
			defer mu.Unlock()
			for what, n := range s.count {
				sum[what] += n
			}
		})
	}
}

// siege is an archive under siege.
type siege struct {
	*cluster
	rnd      *rand.Rand
	began    time.Time
	number   int                 // of the phase under way, from 1
	faulty   map[uint32]*traitor // up to f
	known    map[uint32]*traitor // all that ever were
	copies   map[uint32][]string // of stores in earlier phases
	heads    map[archive.Epoch]archive.EpochRecord
	newest   archive.Epoch // that any correct replica has held
	bound    map[archive.Name]archive.Entry
	acked    []ackedAdd
	everMade []archive.Submission
	count    map[string]int
	log      *logBuffer // of this phase
	before   *logBuffer // of the one before

	mu sync.Mutex // guards count and last while replicas run
}

// ackedAdd is a name that 2f+1 replicas have acknowledged before a phase.
type ackedAdd struct {
	name    archive.Name
	content archive.Content // zero: either of two
	at      time.Time
}

func newSiege(t *testing.T, seed uint64) *siege {
	n := 7
	if seed%2 == 1 {
		n = 4
	}
	c := newCluster(t, n)
	hasten(c)
	c.Roster.Limits.Join = archive.Duration(4 * time.Second)
	c.Record = archive.Genesis(c.Roster)
	s := &siege{
		cluster: c, rnd: rand.New(rand.NewPCG(seed, 30)), began: c.Roster.Created.Truncate(time.Hour).Add(time.Hour),
		faulty: make(map[uint32]*traitor), known: make(map[uint32]*traitor), heads: make(map[archive.Epoch]archive.EpochRecord),
		copies: make(map[uint32][]string), bound: make(map[archive.Name]archive.Entry), count: make(map[string]int), log: new(logBuffer), before: new(logBuffer),
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the phase before the last:\n%s\nthe last phase:\n%s", s.before, s.log)
		}
	})
	s.betrayal()
	return s
}

// now is the time of a phase: an hour after the one before, so that a record's
// time tells when it was frozen.
func (s *siege) now() time.Time { return s.began.Add(time.Duration(s.number) * time.Hour) }

func (s *siege) counted(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count[what]++
}

// betrayal draws who is faulty from here on.
func (s *siege) betrayal() {
	clear(s.faulty)
	n := s.Roster.F
	if s.chance(5) {
		n = s.rnd.IntN(n + 1)
	}
	for _, i := range s.rnd.Perm(s.Roster.N())[:n] {
		id := uint32(i + 1)
		if s.known[id] == nil {
			s.known[id] = newTraitor(s.cluster, id, rand.New(rand.NewPCG(s.rnd.Uint64(), uint64(id))))
		}
		s.faulty[id] = s.known[id]
	}
}

// chance is true once in n times.
func (s *siege) chance(n int) bool { return s.rnd.IntN(n) == 0 }

// loyal returns the replicas that are correct.
func (s *siege) loyal() []uint32 {
	return slices.DeleteFunc(s.all(), func(id uint32) bool { return s.faulty[id] != nil })
}

// besieged is what comes between two phases, and a phase with faults.
func (s *siege) besieged() {
	s.next()
	if s.number > 1 && s.chance(2) {
		s.attack()
	}
	s.adds()
	if s.number > 1 && s.chance(3) {
		s.attack()
	}
	p := s.plan()
	s.t.Logf("phase %d: %s", s.number, p)
	s.run(p, 8*time.Second)
	s.observe()
	if s.settled() {
		s.counted("changes of the faulty")
		s.betrayal()
	}
}

func (s *siege) next() {
	s.number++
	s.before, s.log = s.log, new(logBuffer)
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// plan says what is to go wrong in a phase.
type plan struct {
	faults map[uint32][]*fault
	absent []uint32
	late   map[uint32]time.Duration
	kills  map[uint32]kill
	cuts   []cut
}

// kill ends the process of a replica when it has come by n points, or comes by
// a certain one.
type kill struct {
	n     int64
	point string
	again bool // it is started again, in the same boot
}

// lastPoints are points at which a record may be certified and nobody, or few, know.
var lastPoints = []string{"before commit", "after commit", "before record", "after record", "before head", "after head"}

func (p plan) String() string {
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(p.faults)) {
		fmt.Fprintf(&b, "traitor %d:", id)
		for _, f := range p.faults[id] {
			fmt.Fprintf(&b, " %q", f.name)
		}
		b.WriteString("; ")
	}
	fmt.Fprintf(&b, "absent %v, late %v, kills %v, cuts %v", p.absent, p.late, p.kills, p.cuts)
	return b.String()
}

// plan draws what goes wrong.
func (s *siege) plan() plan {
	p := plan{faults: make(map[uint32][]*fault), late: make(map[uint32]time.Duration), kills: make(map[uint32]kill)}
	for _, id := range slices.Sorted(maps.Keys(s.faulty)) {
		for range s.rnd.IntN(4) {
			f := s.anyFault()
			if s.chance(2) && f.deaf() {
				f = s.anyFault()
			}
			if !slices.Contains(p.faults[id], f) {
				p.faults[id] = append(p.faults[id], f)
			}
		}
	}
	loyal := s.loyal()
	if s.chance(8) {
		p.absent = append(p.absent, loyal[s.rnd.IntN(len(loyal))])
	}
	if ahead := s.ahead(); len(ahead) > 0 && len(ahead) < s.Roster.Quorum() && s.chance(2) {
		p.absent = ahead // the others must get there without those who are there
	}
	if s.chance(4) {
		p.late[loyal[s.rnd.IntN(len(loyal))]] = time.Duration(s.rnd.IntN(1500)) * time.Millisecond
	}
	if s.chance(2) {
		some := 1 + s.rnd.IntN(s.Roster.F+1)
		if s.chance(4) {
			some = len(loyal)
		}
		for _, i := range s.rnd.Perm(len(loyal))[:some] {
			p.kills[loyal[i]] = kill{n: 1 + s.rnd.Int64N(40), again: s.rnd.IntN(3) > 0}
		}
	}
	if s.chance(5) { // all but one or so, when they commit
		for _, id := range loyal[s.rnd.IntN(2):] {
			p.kills[id] = kill{point: lastPoints[s.rnd.IntN(len(lastPoints))]}
		}
	}
	if s.chance(3) {
		p.cuts = s.drawCuts()
	}
	return p
}

// ahead returns the correct replicas that hold the newest epoch, if not all do.
func (s *siege) ahead() (ids []uint32) {
	for _, id := range s.loyal() {
		if archive.Epoch(s.Replicas[id-1].Statement(s.t).Slots.Epoch) == s.newest {
			ids = append(ids, id)
		}
	}
	if len(ids) == len(s.loyal()) {
		return nil
	}
	return ids
}

func (s *siege) anyFault() *fault { return faults[s.rnd.IntN(len(faults))] }

// deaf says whether peers stop listening to a replica with this fault, so that
// others that it has do little.
func (f *fault) deaf() bool {
	return strings.Contains(f.name, "malformed") || f.name == "silent" || f.name == "a forged hello" || f.name == "endless board" ||
		f.name == "a new run in each answer"
}

// run is one update phase of all replicas, that the watchdogs end after limit.
func (s *siege) run(p plan, limit time.Duration) {
	clear(s.last)
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	over, end := context.WithCancel(s.t.Context())
	w := newWall(p.cuts)
	defer func() { cancel(); end(); w.close() }()
	here := s.all(p.absent...)
	s.reset(here...)
	w.begin(ctx)
	var loyal, traitors, serving sync.WaitGroup
	betraying, disband := context.WithCancel(ctx)
	defer disband()
	for _, id := range here {
		if x := s.faulty[id]; x != nil {
			x.on = p.faults[id]
			traitors.Go(func() { s.ended(id, s.betray(betraying, x, w)) })
			continue
		}
		loyal.Go(func() {
			pause(ctx, p.late[id])
			r := s.process(ctx, id, w, p.kills[id])
			s.ended(id, r)
			if r.err != errKilled {
				serving.Go(func() { Serve(over, s.config(id)) })
			}
		})
	}
	loyal.Wait()
	disband()
	traitors.Wait()
	end()
	serving.Wait()
	for _, id := range s.all() {
		must(s.t, s.Replicas[id-1].MAS.Lock(s.t.Context()))
	}
	s.tally(p)
}

func (s *siege) ended(id uint32, r result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[id] = r
}

// tally counts what has gone wrong.
func (s *siege) tally(p plan) {
	for id := range p.faults {
		x := s.faulty[id]
		x.mu.Lock()
		for what, n := range x.fired {
			s.count["fault: "+what] += n
		}
		clear(x.fired)
		x.mu.Unlock()
	}
	for _, r := range s.last {
		if r.err == errKilled {
			s.count["killed, and not started again"]++
		}
	}
	s.count["absent"] += len(p.absent)
	s.count["late"] += len(p.late)
	s.count["cuts"] += len(p.cuts)
}

func (s *siege) config(id uint32) Config {
	c := loggingTo(s.cluster.config(id), s.log)
	c.Now, c.Timeout = s.now, time.Second
	return c
}

// betray is the phase of a traitor.
func (s *siege) betray(ctx context.Context, x *traitor, w *wall) (r result) {
	r.Outcome, r.err = x.update(ctx, s.config(x.id), w.around(x.id))
	return r
}

// errKilled is the result of a process that was killed and not started again.
var errKilled = fmt.Errorf("killed by the test")

// process is the phase of a correct replica: its process, which may be killed,
// and then perhaps another in the same boot.
func (s *siege) process(ctx context.Context, id uint32, w *wall, k kill) result {
	r := result{err: errKilled}
	life, die := context.WithCancel(ctx)
	defer die()
	c := s.config(id)
	c.at = (&doom{kill: k, die: die}).at
	ended := make(chan struct{})
	go func() { // of its own, since a kill ends it
		defer close(ended)
		out, err := played(life, c, w.around(id), func(ctx context.Context, p *phase) (Outcome, error) { return p.run(ctx) })
		r = result{out, err}
	}()
	<-ended
	if r.err != errKilled {
		return r
	}
	s.counted("kills")
	if !k.again {
		return r
	}
	return s.process(ctx, id, w, kill{})
}

// doom kills a process at a point that it comes by.
type doom struct {
	kill
	came atomic.Int64
	dead atomic.Bool
	die  context.CancelFunc
}

// at ends whatever goroutine comes by a point after the process's death. The
// engine's own would not be missed by it, and runs on for the moment.
func (d *doom) at(point string) {
	came := d.came.Add(1)
	if d.n > 0 && came >= d.n || d.point == point {
		d.dead.Store(true)
	}
	if !d.dead.Load() {
		return
	}
	d.die()
	if point != "before "+inEngine {
		runtime.Goexit()
	}
}

// adds has writers add names before a phase: at all replicas, at 2f+1, at few,
// and two values of one name.
func (s *siege) adds() {
	at := make(map[uint32][]archive.Submission)
	submit := func(what string, content string, ids []uint32) {
		name := archive.Name(fmt.Sprintf("%s/%d", what, s.number))
		sub := s.Submission(s.now(), map[archive.Name][]byte{name: []byte(content), name + "/more": []byte(content + "more")})
		s.everMade = append(s.everMade, sub)
		for _, id := range ids {
			at[id] = append(at[id], sub)
		}
		if len(ids) < s.Roster.Quorum() {
			return
		}
		for _, b := range sub.Bindings {
			a := ackedAdd{b.Name, b.Content, s.now()}
			if what == "contested" {
				a.content = archive.Content{}
			}
			s.acked = append(s.acked, a)
		}
	}
	some := func(n int) (ids []uint32) {
		for _, i := range s.rnd.Perm(s.Roster.N())[:n] {
			ids = append(ids, uint32(i+1))
		}
		return ids
	}
	n, q := s.Roster.N(), s.Roster.Quorum()
	submit("all", "a", some(n))
	submit("quorum", "q", some(q))
	submit("few", "f", some(1+s.rnd.IntN(q-1)))
	two := some(n)
	first := 1 + s.rnd.IntN(n-1)
	submit("contested", "left", two[:first])
	submit("contested", "right", two[first:])
	for id, all := range at {
		a := &attacker{cluster: s.cluster}
		if err := a.putAll(id, all); err != nil && s.faulty[id] == nil { // what is faulty may lie
			s.t.Fatalf("phase %d, replica %d: add: %v", s.number, id, err)
		}
	}
}

// observe looks at all correct replicas after a phase: one head for each epoch,
// and no name that was bound is rebound or gone.
func (s *siege) observe() {
	s.t.Helper()
	before := s.newest
	for _, id := range s.loyal() {
		st := s.Replicas[id-1].Statement(s.t)
		if (st.Slots == trust.Slots{}) {
			continue
		}
		s.withStore(id, func(store *Store) error {
			s.newest = max(s.newest, archive.Epoch(st.Slots.Epoch))
			for e := archive.Epoch(1); e <= archive.Epoch(st.Slots.Epoch); e++ {
				if rec, _, err := store.Record(e); err == nil {
					s.oneHead(id, rec, "record")
				}
			}
			rec, _, err := store.Record(archive.Epoch(st.Slots.Epoch))
			if err != nil || !holdsHead(st.Slots, rec) {
				if r, ok := s.last[id]; !ok || r.err != nil { // it has had no occasion to repair it
					return nil
				}
				s.t.Errorf("phase %d, replica %d: the head of epoch %d names no record that it holds: %v", s.number, id, st.Slots.Epoch, err)
				return nil
			}
			s.rows(id, store, rec)
			return nil
		})
	}
	if s.newest == before {
		s.count["phases without an epoch"]++
	}
	if s.newest > before+1 {
		s.count["phases of several epochs"]++
	}
}

func (s *siege) oneHead(id uint32, rec archive.EpochRecord, what string) {
	s.t.Helper()
	if had, ok := s.heads[rec.Epoch]; ok && had.Head() != rec.Head() {
		s.t.Errorf("phase %d, replica %d: FORK: another %s of epoch %d:\n%s\n%s", s.number, id, what, rec.Epoch, had.Bytes(), rec.Bytes())
	}
	s.heads[rec.Epoch] = rec
}

// rows compares the names in a replica's tree, if it is that of its head still,
// with those that were bound before.
func (s *siege) rows(id uint32, store *Store, rec archive.EpochRecord) {
	tr, err := store.OpenTree(true)
	if err != nil {
		return
	}
	defer tr.Close()
	got, later := make(map[archive.Name]archive.Entry), 0
	root, n, err := tr.Rehash(s.t.Context(), func(name, val []byte) bool {
		e, err := archive.ParseEntry(val)
		if err != nil || e.Epoch > rec.Epoch {
			later++
			return false
		}
		got[archive.Name(name)] = e
		return true
	})
	if err != nil || root != rec.Root || n != rec.Names {
		return
	}
	for name, e := range s.bound {
		if now, ok := got[name]; e.Epoch <= rec.Epoch && (!ok || now != e) {
			s.t.Errorf("phase %d, replica %d, epoch %d: %q was bound to %v, and is %v, %v", s.number, id, rec.Epoch, name, e, now, ok)
		}
	}
	maps.Copy(s.bound, got)
}

// settled says whether the past is over: all replicas hold one head, and all that
// was acknowledged is bound. The faulty are counted anew from there.
func (s *siege) settled() bool {
	for _, id := range s.all() {
		st := s.Replicas[id-1].Statement(s.t)
		if st.Slots.Epoch != uint64(s.newest) || st.Counter != uint64(s.newest) || st.Slots.Tick != 0 || st.Slots.Committed != (trust.Vote{}) {
			return false
		}
	}
	for _, a := range s.acked {
		if _, ok := s.bound[a.name]; !ok {
			return false
		}
	}
	return true
}

// relieved ends all faults: each phase from here on is ended by all replicas.
func (s *siege) relieved() {
	s.t.Helper()
	clear(s.faulty)
	for range 2 {
		s.next()
		s.adds()
		before := s.newest
		s.run(plan{}, s.Roster.Limits.Phase.Std())
		s.observe()
		for _, id := range s.all() {
			if err := s.last[id].err; err != nil {
				s.t.Errorf("phase %d without faults, replica %d: %v", s.number, id, err)
			}
			if st := s.Replicas[id-1].Statement(s.t); st.Slots.Epoch != uint64(s.newest) || st.Counter != uint64(s.newest) {
				s.t.Errorf("phase %d without faults, replica %d: epoch %d, counter %d; want %d", s.number, id, st.Slots.Epoch, st.Counter, s.newest)
			}
		}
		if s.newest <= before {
			s.t.Errorf("phase %d without faults: no epoch after %d", s.number, before)
		}
		if s.t.Failed() {
			return
		}
	}
	for _, id := range s.all() { // also what the faulty had left in their slots is gone
		s.holds(id, s.newest)
	}
	s.whole()
	s.kept()
}

// whole waits until the service processes have repaired all histories, and
// compares them.
func (s *siege) whole() {
	s.t.Helper()
	ctx, stop := context.WithCancel(s.t.Context())
	var serving sync.WaitGroup
	for _, id := range s.all() {
		serving.Go(func() { Serve(ctx, s.config(id)) })
	}
	defer serving.Wait()
	defer stop()
	archivetest.Eventually(s.t, time.Minute, "all histories are whole", func() bool {
		for _, id := range s.all() {
			if !s.hasHistory(id) {
				return false
			}
		}
		return true
	})
	for _, id := range s.all() {
		for e := archive.Epoch(1); e <= s.newest; e++ {
			s.withStore(id, func(store *Store) error {
				rec, cert, err := store.Record(e)
				if err != nil || cert.Verify(s.Roster, rec) != nil {
					s.t.Errorf("replica %d: epoch %d: %v", id, e, err)
				}
				s.oneHead(id, rec, "record")
				return nil
			})
		}
	}
}

func (s *siege) hasHistory(id uint32) bool {
	store := newStore(s.config(id).StoreDir(), s.Roster)
	for e := archive.Epoch(1); e <= s.newest; e++ {
		if _, _, err := store.Record(e); err != nil {
			return false
		}
	}
	return store.Close() == nil
}

// kept wants all that 2f+1 acknowledged to be bound by the first epoch that was
// frozen after it.
func (s *siege) kept() {
	s.t.Helper()
	for _, a := range s.acked {
		first := archive.Epoch(1)
		for first < s.newest && s.heads[first].Time.Before(a.at) {
			first++
		}
		e, ok := s.bound[a.name]
		switch {
		case !ok:
			s.t.Errorf("%q, acknowledged at %v, is not bound", a.name, a.at)
		case e.Epoch > first:
			s.t.Errorf("%q, acknowledged at %v, is bound in epoch %d; the first frozen after it is %d of %v", a.name, a.at, e.Epoch, first, s.heads[first].Time)
		case a.content != archive.Content{} && e.Content != a.content:
			s.t.Errorf("%q is bound to other content", a.name)
		}
	}
	s.count["acknowledged names"] += len(s.acked)
}

// reset is the watchdogs' part.
func (s *siege) reset(ids ...uint32) {
	s.t.Helper()
	for _, id := range ids {
		must(s.t, soft.Reset(s.Replicas[id-1].Dir+"/mas"))
	}
}
