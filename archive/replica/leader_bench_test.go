package replica

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// BenchmarkLeader runs update phases of four replicas on loopback with the
// engine's default timeouts, in which the replica that leads the first round of
// the agreement does its part or not, and reports the agreement's time, the mean
// over the correct replicas, and what it is more than with all replicas correct.
// Each epoch is checked afterwards.
//
//	go test ./archive/replica -run xxx -bench Leader -benchtime 3x
func BenchmarkLeader(b *testing.B) {
	with := time.Duration(0) // all correct
	for _, leader := range []struct {
		name   string
		fault  *fault
		absent bool // it does not come at all
	}{
		{"correct", nil, false},
		{"absent", nil, true},
		{"silent in the engine", &fault{name: "silent in the engine", engine: noEngine}, false},
		{"equivocating", faultNamed("two proposals in the engine"), false},
		{"votes for two values", faultNamed("equal votes for two values"), false},
	} {
		b.Run(leader.name, func(b *testing.B) {
			agreed := newLed(b).lead(b, leader.fault, leader.absent)
			if leader.fault == nil && !leader.absent {
				with = agreed
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(agreed.Seconds(), "s-agree")
			b.ReportMetric((agreed - with).Seconds(), "s-added")
		})
	}
}

func faultNamed(name string) *fault {
	return faults[slices.IndexFunc(faults, func(f *fault) bool { return f.name == name })]
}

// newLed makes an empty archive that waits for the absent as briefly as can be.
func newLed(b *testing.B) *timed {
	c := newClusterOf(b, 4, func(r *archive.Roster) {
		r.Limits = archive.DefaultLimits()
		r.Limits.Grace = archive.Duration(time.Second)
		r.Limits.Linger = archive.Duration(time.Second)
	})
	return &timed{cluster: c, parts: newParts()}
}

// lead returns how long a correct replica took to agree, in the mean.
func (c *timed) lead(b *testing.B, f *fault, absent bool) time.Duration {
	c.Record = archive.Genesis(c.Roster)
	deciders := 0
	for b.Loop() {
		b.StopTimer()
		id := firstLeader(c.Roster, instanceOn(c.Record, 1))
		loyal := c.all()
		if f != nil || absent {
			loyal = c.all(id)
		}
		c.add(c.files(10, fmt.Sprint("epoch ", c.Record.Epoch)), loyal...)
		c.reset(c.all()...)
		b.StartTimer()
		c.led(b, id, f, loyal)
		b.StopTimer()
		deciders += len(loyal)
		c.Record = c.agreed(c.Record.Epoch+1, loyal...)
		if c.Record.Tick != 1 {
			b.Fatalf("the epoch took %d attempts", c.Record.Tick)
		}
		b.StartTimer()
	}
	return c.parts.took["agree"] / time.Duration(deciders)
}

// led is a phase of the loyal and, if f is not nil, of a leader with that fault.
func (c *timed) led(b *testing.B, leader uint32, f *fault, loyal []uint32) {
	ctx, cancel := context.WithCancel(b.Context())
	var playing sync.WaitGroup
	defer func() { cancel(); playing.Wait() }()
	if f != nil {
		x := newTraitor(c.cluster, leader, rand.New(rand.NewPCG(1, 1)), f)
		config := c.config(leader)
		config.Log = slog.New(slog.DiscardHandler)
		playing.Go(func() { x.update(ctx, config, nil) })
		defer func() {
			if f.engine != nil && f.name != "silent in the engine" && x.has(f.name) == 0 {
				b.Errorf("%s did nothing", f.name)
			}
		}()
	}
	c.update(ctx, loyal...)
}
