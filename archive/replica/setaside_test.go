package replica

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// All replicas die when they have committed a record; one of them has its certificate
// on disk by then, and loses its tree. When only so many are left that all are needed,
// it does not wait for a tree that nobody has: it helps to certify the record again.
func TestCertifiedWithoutTree(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.Roster.Limits.Join = archive.Duration(8 * time.Second)
	c.Record = archive.Genesis(c.Roster)
	c.add(c.files(20, "old"), c.all()...)
	c.phase(t.Context(), c.all()...)
	c.agreed(1, c.all()...)
	s := c.files(20, "new")
	c.add(s, c.all()...)
	c.dieCertifying(4)
	var certified archive.EpochRecord
	c.withStore(4, func(st *Store) (err error) { certified, _, err = st.Record(2); return err })
	for _, id := range c.all() {
		if v := c.committed(id); v.Epoch != 2 || archive.Digest(v.Record) != certified.Head() {
			t.Fatalf("replica %d has committed %+v, want %s", id, v, certified.Head())
		}
	}
	must(t, os.Remove(filepath.Join(c.Replicas[3].Dir, storeDir, treeFile)))
	c.phase(t.Context(), 2, 3, 4)
	if rec := c.agreed(2, 2, 3, 4); rec.Head() != certified.Head() {
		t.Errorf("epoch 2 has the head %s, was certified with %s", rec.Head(), certified.Head())
	}
	for _, b := range s.Bindings {
		if e, ok := c.entry(4, b.Name); !ok || e.Content != b.Content || e.Epoch != 2 {
			t.Errorf("%s: %+v, %v", b.Name, e, ok)
		}
	}
}

// dieCertifying runs a phase in which all replicas die with a certificate in hand: one
// has put it on its disk, and no other.
func (c *cluster) dieCertifying(one uint32) {
	c.reset(c.all()...)
	put, committed := make(chan struct{}), make(chan struct{}, len(c.Replicas))
	var once sync.Once
	var all sync.WaitGroup
	for _, id := range c.all() {
		life, die := context.WithCancel(c.t.Context())
		config := c.config(id)
		config.at = func(point string) {
			switch {
			case id == one && point == "before record":
				for range len(c.Replicas) - 1 { // else the others could take it for theirs
					<-committed
				}
				return
			case id == one && point == "before head":
				once.Do(func() { close(put) })
			case id != one && point == "before record":
				committed <- struct{}{}
				<-put
			default:
				return
			}
			die()
			runtime.Goexit()
		}
		all.Go(func() {
			defer die()
			played(life, config, nil, func(ctx context.Context, p *phase) (Outcome, error) { return p.run(ctx) })
		})
	}
	all.Wait()
}
