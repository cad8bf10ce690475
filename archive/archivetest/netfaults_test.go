package archivetest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

// netFault is a fault of the network between replicas.
type netFault struct {
	name  string
	drops []drop
	rate  string // of each link to a replica, in tc's words; "": as it comes
	// amid is the step of an update phase, as replica 1 logs it, after which the
	// fault strikes; "": before the phase.
	amid  string
	well  []uint32 // who ends an update phase meanwhile
	stuck bool     // nobody does, since nobody has 2f others to talk with
	lone  uint32   // whoever is at this replica's host reaches no other; 0: none
	plain bool     // without -every too
}

// netFaults are the rows of TestNetworkFaults. Where one strikes amid a phase,
// nobody knows whether that phase still makes an epoch.
var netFaults = []netFault{
	{name: "two and two", drops: apart([]uint32{1, 2}, []uint32{3, 4}), stuck: true},
	{name: "one cut off", drops: apart([]uint32{4}, []uint32{1, 2, 3}), well: []uint32{1, 2, 3}, lone: 4},
	{name: "two pairs apart", drops: append(apart([]uint32{1}, []uint32{2}), apart([]uint32{3}, []uint32{4})...), well: []uint32{1, 2, 3, 4}},
	{name: "one does not hear another", drops: between([]uint32{1}, []uint32{2}), well: []uint32{1, 2, 3, 4}},
	{name: "one hears nobody", drops: between([]uint32{1, 2, 3}, []uint32{4}), well: []uint32{1, 2, 3}, lone: 4, plain: true},
	{name: "nobody hears one", drops: between([]uint32{4}, []uint32{1, 2, 3}), well: []uint32{1, 2, 3}, lone: 4},
	{name: "one cannot call", drops: callsOf(4, []uint32{1, 2, 3}), well: []uint32{1, 2, 3}, lone: 4},
	{name: "nobody can call one", drops: callsTo(4, []uint32{1, 2, 3}), well: []uint32{1, 2, 3}},
	{name: "a line", drops: append(apart([]uint32{1, 2}, []uint32{4}), apart([]uint32{1}, []uint32{3})...)},
	{name: "loss", drops: []drop{{match: "numgen random mod 100 < 10"}}, well: []uint32{1, 2, 3, 4}},
	{name: "slow links", rate: "1mbit", well: []uint32{1, 2, 3, 4}},
	{name: "loss on slow links", drops: []drop{{match: "numgen random mod 100 < 5"}}, rate: "2mbit", well: []uint32{1, 2, 3, 4}, plain: true},
	{name: "two and two once joined", amid: "joined", drops: apart([]uint32{1, 2}, []uint32{3, 4})},
	{name: "two and two once decided", amid: `"block decided"`, drops: apart([]uint32{1, 2}, []uint32{3, 4})},
	{name: "two and two once applied", amid: "applied", drops: apart([]uint32{1, 2}, []uint32{3, 4})},
	{name: "two and two once prepared", amid: "prepared", drops: apart([]uint32{1, 2}, []uint32{3, 4})},
	{name: "two and two once committed", amid: "committed", drops: apart([]uint32{1, 2}, []uint32{3, 4})},
	{name: "one cut off once prepared", amid: "prepared", drops: apart([]uint32{1}, []uint32{2, 3, 4})},
}

// Four replicas in a network of their own, that breaks in many ways before an
// update phase and amid one. No two replicas ever hold two heads of one epoch;
// while 2f+1 can talk with each other they make epochs, however slowly, and else
// none is made; once the network is whole all replicas end a phase at one epoch
// with nothing left undone; and each name that 2f+1 acknowledged, also during the
// fault, is bound by the first epoch frozen after that.
func TestNetworkFaults(t *testing.T) {
	t.Parallel()
	if !archivetest.Apart(t) {
		return
	}
	w := newNetwork(t, 4)
	w.whole()
	l := archive.TrialLimits(time.Minute)
	l.Phase, l.Join = archive.Duration(10*time.Second), archive.Duration(4*time.Second)
	l.Grace, l.Linger = archive.Duration(time.Second), archive.Duration(2*time.Second)
	c := &broken{cluster: newOn(t, w, w.addresses(), "software", leapDays, l), heads: make(map[archive.Epoch]archive.Digest)}
	c.phase(1, c.ids()...)
	for _, f := range netFaults {
		if f.plain || *every {
			c.endure(f)
		}
	}
	if c.waiting() > 0 {
		c.makeEpoch(archive.Epoch(len(c.times))+1, c.ids()...)
		c.observe()
	}
	c.kept()
	for _, id := range c.ids() {
		c.ok("audit", "--history", "--replica", fmt.Sprint(id), "--roster", filepath.Join(c.dir, "roster.json"))
	}
}

// Each rule of each fault matters: with one left out, the check that the network
// is broken as it should be says so.
func TestNetworkRules(t *testing.T) {
	t.Parallel()
	if !archivetest.Apart(t) {
		return
	}
	w := newNetwork(t, 4)
	for _, f := range netFaults {
		if (f.plain || *every) && f.amid == "" {
			w.needsEachRule(f.drops, f.rate)
		}
	}
	w.whole()
}

// callsOf returns the rules by which a host can open no connection to others.
func callsOf(id uint32, others []uint32) []drop {
	all := between([]uint32{id}, others)
	for i := range all {
		all[i].match = calls
	}
	return all
}

// callsTo returns the rules by which no other host can open a connection to one.
func callsTo(id uint32, others []uint32) []drop {
	all := between(others, []uint32{id})
	for i := range all {
		all[i].match = calls
	}
	return all
}

// broken is a cluster whose network breaks.
type broken struct {
	*cluster
	heads map[archive.Epoch]archive.Digest // that any replica has held
	times []time.Time                      // of the epochs, from 1
	acked []ackedName
	adds  int
}

// ackedName is a name that 2f+1 replicas have acknowledged by a certain time.
type ackedName struct {
	name    archive.Name
	content archive.Content
	at      time.Time
}

// endure has the archive go through a fault, and wants what it promises.
func (c *broken) endure(f netFault) {
	t := c.t
	t.Helper()
	began := time.Now()
	before := c.awaitEpoch(1, c.ids()...)
	c.add(f.name)
	if f.amid == "" {
		c.strike(f)
		c.add(f.name)
		c.refuses(f)
		c.tryPhases(f, before)
	} else {
		done := c.updates(c.ids()...)
		c.awaitStep(1, f.amid)
		c.strike(f)
		done.Wait()
		c.awaitService(c.ids()...)
	}
	c.observe()
	c.add(f.name)
	lost := c.net.dropped()
	c.net.allow()
	c.net.whole()
	newest := archive.Epoch(len(c.times))
	n := c.makeEpoch(newest+1, c.ids()...)
	c.observe()
	c.settled()
	t.Logf("%s: %s, epochs %d to %d, packets dropped %v, whole again after %d phases", f.name, time.Since(began).Round(100*time.Millisecond), before, len(c.times), lost, n)
	if t.Failed() {
		t.Fatalf("under this fault: %s", f.name)
	}
}

// strike breaks the network, and checks that it is broken.
func (c *broken) strike(f netFault) {
	c.t.Helper()
	c.net.forbid(f.drops, f.rate)
	if err := c.net.bites(f.drops, f.rate); err != nil {
		c.t.Fatalf("%s: the network is not broken so: %v", f.name, err)
	}
}

// tryPhases has all replicas run update phases while the fault lasts: until those
// that can have made an epoch, or one that makes none.
func (c *broken) tryPhases(f netFault, before archive.Epoch) {
	c.t.Helper()
	if len(f.well) > 0 {
		n := c.makeEpoch(before+1, f.well...)
		c.t.Logf("%s: replicas %v made an epoch within %d phases", f.name, f.well, n)
		return
	}
	c.nextSecond()
	c.updates(c.ids()...).Wait()
	c.awaitService(c.ids()...)
	for _, id := range c.ids() {
		if e := c.epoch(id); e != before && f.stuck {
			c.t.Errorf("%s: replica %d is at epoch %d, was at %d", f.name, id, e, before)
		}
	}
}

// makeEpoch has all replicas run update phases until some are at an epoch, and
// returns how many that took.
func (c *broken) makeEpoch(e archive.Epoch, well ...uint32) (n int) {
	c.t.Helper()
	for n = 1; n <= 5; n++ {
		c.nextSecond()
		c.updates(c.ids()...).Wait()
		c.awaitService(c.ids()...)
		if comes(2*time.Second, func() bool { _, ok := c.common(e, well...); return ok }) {
			return n
		}
		for _, id := range well {
			st, err := c.status(id)
			c.t.Logf("replica %d after %d phases: %+v, %v", id, n, st, err)
		}
	}
	c.t.Fatalf("replicas %v are not at epoch %d after %d phases", well, e, n-1)
	return 0
}

// nextSecond waits until the second is over in which a name may have been
// acknowledged: records tell the time in whole ones.
func (c *broken) nextSecond() {
	pause(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
}

// updates starts an update phase of some replicas.
func (c *broken) updates(ids ...uint32) *sync.WaitGroup {
	all := new(sync.WaitGroup)
	for _, id := range ids {
		all.Go(func() { c.run("update", "--dir", c.replicaDir(id), "--timeout", "30s") })
	}
	return all
}

// awaitStep waits until a replica has logged a step of the update phase that has
// been asked for.
func (c *broken) awaitStep(id uint32, step string) {
	c.t.Helper()
	logged := filepath.Join(c.replicaDir(id), "run", "update.log")
	from := 0
	if info, err := os.Stat(logged); err == nil {
		from = int(info.Size())
	}
	if !comes(30*time.Second, func() bool { return strings.Contains(tail(logged, from), "msg="+step+" ") }) {
		c.t.Fatalf("replica %d does not log %s", id, step)
	}
}

// add has 2f+1 replicas acknowledge a few names.
func (c *broken) add(what string) {
	c.t.Helper()
	c.adds++
	cl := c.client(0)
	defer cl.Close()
	var items []client.Item
	for i := range 3 {
		body := fmt.Sprintf("content %d of %d in %s", i, c.adds, what)
		items = append(items, client.Item{Name: archive.Name(fmt.Sprintf("%s/%d/%d", strings.ReplaceAll(what, " ", "-"), c.adds, i)),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }})
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	res, err := cl.Add(ctx, items)
	if err != nil || len(res.Bindings) != len(items) {
		c.t.Fatalf("%s: add: %d of %d names acknowledged: %v, %v", what, len(res.Bindings), len(items), err, res.Failed)
	}
	for _, b := range res.Bindings {
		c.acked = append(c.acked, ackedName{b.Name, b.Content, time.Now()})
	}
}

// refuses wants who is at a host that is cut off to be told that nothing is added.
func (c *broken) refuses(f netFault) {
	c.t.Helper()
	if f.lone == 0 {
		return
	}
	c.net.at(f.lone, func() {
		out, errs, status := c.run("add", "lone/"+strings.ReplaceAll(f.name, " ", "-"), c.write("lone", []byte("by one")), "--timeout", "1s")
		if status != 6 || len(out) > 0 {
			c.t.Errorf("%s: add at the host of replica %d: status %d, want 6: %s%s", f.name, f.lone, status, out, errs)
		}
	})
}

// observe reads the histories of all replicas, and wants one head for each epoch.
func (c *broken) observe() {
	c.t.Helper()
	for _, m := range c.roster.Replicas {
		for _, r := range c.history(m) {
			if had, ok := c.heads[r.Epoch]; ok && had != r.Head() {
				c.t.Errorf("replica %d: FORK: epoch %d has the heads %s and %s", m.ID, r.Epoch, had, r.Head())
			}
			c.heads[r.Epoch] = r.Head()
			if int(r.Epoch) == len(c.times)+1 {
				c.times = append(c.times, r.Time)
			}
		}
	}
}

// history returns all records that a replica has, verified.
func (c *broken) history(m archive.Replica) (all []archive.EpochRecord) {
	c.t.Helper()
	w := wire.NewClient(m, c.roster, wire.Options{Timeout: 10 * time.Second})
	defer w.Close()
	for {
		some, err := w.History(c.t.Context(), archive.Epoch(len(all)+1), 100)
		var none *wire.Error
		if err != nil && !errors.As(err, &none) {
			c.t.Fatalf("history of replica %d: %v", m.ID, err)
		}
		if len(some) == 0 {
			return all
		}
		for _, r := range some {
			rec, _, err := archive.VerifyRecord(c.roster, []byte(r.Record), r.Certificate)
			if err != nil {
				c.t.Fatalf("history of replica %d: %v", m.ID, err)
			}
			all = append(all, rec)
		}
	}
}

// settled wants all replicas to hold the newest epoch, whole and with nothing
// undone: not in the device, not among the Adds.
func (c *broken) settled() {
	c.t.Helper()
	newest := archive.Epoch(len(c.times))
	for _, m := range c.roster.Replicas {
		st, err := c.status(m.ID)
		if err != nil || st.Epoch != newest || st.Head != c.heads[newest] || st.Pending != c.waiting() || st.Damaged || st.Note != "" {
			c.t.Errorf("replica %d, newest epoch %d: %+v, %v", m.ID, newest, st, err)
		}
		if got := len(c.history(m)); got != int(newest) {
			c.t.Errorf("replica %d: %d records, want %d", m.ID, got, newest)
		}
		s := c.attests(m)
		if s.Slots.Epoch != uint64(newest) || s.Counter != uint64(newest) || s.Slots.Tick != 0 || s.Slots.Committed != (trust.Vote{}) {
			c.t.Errorf("replica %d, newest epoch %d: device holds %+v, counter %d", m.ID, newest, s.Slots, s.Counter)
		}
	}
}

// waiting returns how many names were acknowledged after the newest epoch was
// frozen: that may have been in an attempt before, which the last one carried over.
func (c *broken) waiting() (n uint64) {
	for _, a := range c.acked {
		if c.times[len(c.times)-1].Before(a.at) {
			n++
		}
	}
	return n
}

// attests returns what a replica's device says.
func (c *broken) attests(m archive.Replica) trust.Statement {
	c.t.Helper()
	w := wire.NewClient(m, c.roster, wire.Options{Timeout: 5 * time.Second})
	defer w.Close()
	n := trust.Nonce{byte(m.ID)}
	a, err := w.Answer(c.t.Context(), wire.AnswerRequest{Nonce: n, Name: "any"})
	if err != nil {
		c.t.Fatalf("replica %d: %v", m.ID, err)
	}
	v, err := a.Verify(c.roster, m.ID, n)
	if err != nil {
		c.t.Fatalf("replica %d: %v", m.ID, err)
	}
	return v.Statement
}

// kept wants all that was acknowledged to be bound by the first epoch that was
// frozen after it.
func (c *broken) kept() {
	c.t.Helper()
	cl := c.client(0)
	for _, a := range c.acked {
		first := archive.Epoch(1)
		for int(first) < len(c.times) && c.times[first-1].Before(a.at) {
			first++
		}
		res, err := cl.Get(c.t.Context(), a.name)
		switch {
		case err != nil || res[0].Err != nil:
			c.t.Errorf("%q, acknowledged at %s: %v, %v", a.name, a.at, err, res)
		case res[0].Entry.Epoch > first || res[0].Entry.Content != a.content:
			c.t.Errorf("%q, acknowledged at %s, is bound in epoch %d; the first frozen after it is %d of %s", a.name, a.at, res[0].Entry.Epoch, first, c.times[first-1])
		}
	}
	c.t.Logf("%d names acknowledged, %d epochs", len(c.acked), len(c.times))
}
