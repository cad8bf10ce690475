package replica

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
)

// Of three that committed a record, 1 dies between the Store of its head and the
// advance of its counter, 2 before both, and 4 is faulty: it forgets. The attacker
// keeps the certificate, and takes record and certificate from all. Then 1, whose
// committed slot went with the Store, must not begin anew with 3 and 4: they would
// certify another record of the epoch.
func TestHeadIsNotWoundBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	hasten(c)
	c.add(c.files(3, "early"), c.all()...)
	for id, cut := range map[uint32]string{1: "advance", 2: "store", 4: "store"} {
		c.devices[id] = &device{c.Replicas[id-1].MAS, func(op string, s trust.Slots) error {
			if op == cut && (op == "advance" || s.Epoch == 1) {
				return errCut
			}
			return nil
		}}
	}
	c.phase(t.Context(), 1, 2, 4)
	clear(c.devices)
	var certified archive.EpochRecord
	c.withStore(1, func(st *Store) (err error) { certified, _, err = st.Record(1); return err })
	if st := c.Replicas[0].Statement(t); st.Slots.Head != certified.Head() || st.Counter != 0 {
		t.Fatalf("device of 1: %+v", st)
	}
	for _, r := range c.Replicas {
		wipe(t, filepath.Join(r.Dir, storeDir, historyDir))
	}
	c.add(c.files(3, "late"), 1, 3, 4)
	c.reset(1, 3, 4)
	must(t, c.Replicas[3].MAS.Store(t.Context(), trust.Slots{}))
	for range 2 {
		c.run(t.Context(), 1, 3, 4)
		for _, id := range []uint32{1, 3, 4} {
			if out := c.last[id].Outcome; out.Epoch == 1 && out.Head != certified.Head() {
				t.Errorf("replica %d is at another record of epoch 1 than the certified", id)
			}
		}
		if err := c.last[1].err; !errors.Is(err, errBurnt) {
			t.Errorf("replica 1: %v", err)
		}
		c.reset(1, 3, 4)
	}
	c.phase(t.Context(), c.all()...)
	if rec := c.agreed(1, c.all()...); rec.Head() != certified.Head() {
		t.Errorf("certified %s, then %s", certified.Bytes(), rec.Bytes())
	}
}
