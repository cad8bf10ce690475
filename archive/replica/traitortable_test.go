package replica

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
)

// One replica of four is faulty in one way. The others make one and the same
// epoch in each phase, and bind all that three replicas, one of them the faulty
// one, have acknowledged. Then it is correct again, and all four make an epoch. A
// row whose fault does nothing fails.
func TestTraitorTable(t *testing.T) {
	t.Parallel()
	one := rand.New(rand.NewPCG(*seed, 20)).IntN(len(faults))
	for i, f := range faults {
		if !*every && i != one {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			newBetrayed(t, f).row()
		})
	}
}

// betrayed is an archive with one traitor.
type betrayed struct {
	*cluster
	*traitor
	f  *fault
	at archive.Epoch
}

func newBetrayed(t *testing.T, f *fault) *betrayed {
	c := newCluster(t, 4)
	hasten(c)
	id := uint32(4) // who dials the others first
	if f.leads {
		id = firstLeader(c.Roster, instanceOn(archive.Genesis(c.Roster), 1))
	}
	return &betrayed{cluster: c, traitor: newTraitor(c, id, rand.New(rand.NewPCG(*seed, 21)), f), f: f}
}

// hasten makes what a cluster waits for short.
func hasten(c *cluster) {
	l := &c.Roster.Limits
	l.Phase, l.Join = archive.Duration(30*time.Second), archive.Duration(6*time.Second)
	l.Grace, l.Linger = archive.Duration(400*time.Millisecond), archive.Duration(800*time.Millisecond)
	l.Propose, l.ProposeDelta = archive.Duration(800*time.Millisecond), archive.Duration(400*time.Millisecond)
	l.Vote, l.VoteDelta = archive.Duration(300*time.Millisecond), archive.Duration(150*time.Millisecond)
	c.Record = archive.Genesis(c.Roster)
}

// firstLeader returns who leads the engine's first round in an instance: members
// in the order of their keys' addresses take turns.
func firstLeader(r *archive.Roster, inst archive.Digest) uint32 {
	all := slices.Clone(r.Replicas)
	slices.SortFunc(all, func(a, b archive.Replica) int {
		x, y := sha256.Sum256(a.Key), sha256.Sum256(b.Key)
		return bytes.Compare(x[:20], y[:20])
	})
	turns := binary.BigEndian.Uint32(inst[:]) % uint32(len(all))
	return all[(int(turns)+1)%len(all)].ID
}

// row is one row of the table.
func (b *betrayed) row() {
	t := b.cluster.t
	if b.f.cut {
		b.cutOff()
	}
	for phase := 1; phase <= max(b.f.phases, 1) || b.has(b.f.name) == 0 && phase <= 15; phase++ {
		if b.f.behind {
			b.leaveBehind()
		}
		b.betray()
	}
	if b.has(b.f.name) == 0 {
		t.Errorf("the fault did nothing")
	}
	t.Logf("fired %v, epoch %d", b.fired, b.at)
	b.on = nil
	b.phase(t.Context(), b.all()...)
	b.at++
	b.agreed(b.at, b.all()...)
}

func (b *betrayed) all(absent ...uint32) []uint32 { return b.cluster.all(absent...) }

// betray is one phase with the traitor.
func (b *betrayed) betray() {
	c := b.cluster
	loyal := b.all(b.id)
	acked := c.files(2, fmt.Sprintf("acknowledged %d", b.at))
	c.add(acked, b.id, loyal[0], loyal[1])
	for _, id := range b.all() {
		c.add(c.files(1, fmt.Sprintf("only %d %d", id, b.at)), id)
	}
	c.reset(b.all()...)
	stop := b.play()
	c.run(c.t.Context(), loyal...)
	stop()
	b.at++
	rec := c.agreed(b.at, loyal...)
	if len(rec.Joined) < c.Roster.Quorum() {
		c.t.Errorf("epoch %d was made of the proposals of %v", b.at, rec.Joined)
	}
	for _, id := range loyal {
		for _, x := range acked.Bindings {
			if e, ok := c.entry(id, x.Name); !ok || e.Content != x.Content || e.Epoch != b.at {
				c.t.Errorf("replica %d: %q, acknowledged before epoch %d was frozen: %v, %v", id, x.Name, b.at, e, ok)
			}
		}
	}
	c.t.Logf("tick %d, joined %v, traitor %d", rec.Tick, rec.Joined, b.id)
}

// play runs the traitor's phase until stop is called.
func (b *betrayed) play() (stop func()) {
	ctx, cancel := context.WithCancel(b.cluster.t.Context())
	var playing sync.WaitGroup
	playing.Go(func() {
		out, err := b.update(ctx, b.config(b.id), nil)
		b.cluster.t.Logf("traitor: %+v, %v", out, err)
	})
	return func() { cancel(); playing.Wait() }
}

// leaveBehind has a correct replica miss a phase and lose its tree.
func (b *betrayed) leaveBehind() {
	c := b.cluster
	victim := b.all(b.id)[2]
	here := b.all(victim)
	c.add(c.files(20, fmt.Sprintf("missed %d", b.at)), here...)
	c.phase(c.t.Context(), here...)
	b.at++
	c.agreed(b.at, here...)
	wipe(c.t, filepath.Join(c.Replicas[victim-1].Dir, storeDir, treeFile))
}

// cutOff has an attempt cut off when the correct replicas would commit.
func (b *betrayed) cutOff() {
	c := b.cluster
	loyal := b.all(b.id)
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	var tried atomic.Int32
	for _, id := range loyal {
		c.devices[id] = &device{c.Replicas[id-1].MAS, func(op string, s trust.Slots) error {
			if op != "store" || s.Committed.Epoch <= s.Epoch {
				return nil
			}
			cancelWhen(cancel, int(tried.Add(1)) == len(loyal))
			return errCut
		}}
	}
	c.reset(b.all()...)
	stop := b.play()
	c.run(ctx, loyal...)
	stop()
	clear(c.devices)
}
