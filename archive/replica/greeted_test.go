package replica

import (
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
)

// A replica that catches up is greeted by another when its device has the new head and
// not yet the new counter, so that it cannot vote. Once it can, the other notices.
func TestGreetedAmidCatchUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.Roster.Limits.Join = archive.Duration(10 * time.Second)
	c.Record = archive.Genesis(c.Roster)
	c.phase(t.Context(), c.all()...)
	c.phase(t.Context(), 1, 2, 3)
	c.agreed(2, 1, 2, 3)
	c.reset(2, 3, 4)
	amid := make(chan struct{})
	var once sync.Once
	c.devices[4] = &device{c.Replicas[3].MAS, func(op string, _ trust.Slots) error {
		if op == "advance" {
			once.Do(func() {
				close(amid)
				pause(t.Context(), 2*time.Second) // in which the other greets it
			})
		}
		return nil
	}}
	var early sync.WaitGroup
	early.Go(func() { c.run(t.Context(), 2, 4) })
	<-amid
	late := &cluster{Archive: c.Archive, t: t, devices: c.devices, last: make(map[uint32]result)}
	late.run(t.Context(), 3)
	early.Wait()
	c.last[3] = late.last[3]
	c.agreed(3, 2, 3, 4)
}
