package replica

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
)

// Whatever lies in the way of what a phase writes is removed, and nothing else.
func TestPhaseDirMadeAnew(t *testing.T) {
	piece := []byte("a piece")
	for i, put := range misfits {
		d := phaseDir(filepath.Join(t.TempDir(), "store", "phase"))
		for _, path := range []string{string(d), d.pieces(), d.piecePath(archive.DigestOf(piece)), d.epoch(7), string(d.tick(7, 2))} {
			must(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.RemoveAll(path), put(path)))
			other := d.tick(7, 1)
			for range 2 { // the second time there is nothing in the way
				if err := errors.Join(d.putPiece(piece), d.tick(7, 2).begin("1.1")); err != nil {
					t.Errorf("misfit %d at %s: %v", i, path, err)
				}
				must(t, other.begin("1.1"))
			}
			if _, err := d.piece(consensus.Piece{Digest: archive.DigestOf(piece), Size: uint32(len(piece))}); err != nil {
				t.Errorf("misfit %d at %s: %v", i, path, err)
			}
			if b, err := other.read(fileBoot); err != nil || string(b) != "1.1" {
				t.Errorf("misfit %d at %s: another attempt's: %q, %v", i, path, b, err)
			}
		}
	}
}

// A replica takes epochs over from the others: one that certifies without it while it
// takes part, and one when it comes back from a phase that was cut off. It keeps
// nothing of its attempts at them.
func TestPhaseDataDroppedWhenTakenOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	hasten(c)
	config := c.config(4)
	dir := phaseDir(filepath.Join(config.StoreDir(), "phase"))
	c.add(c.files(3, "one"), 4)
	c.withFour(t.Context(), func(point string) {
		if point == "before prepared record" { // it has said something else
			garbage(t, filepath.Join(string(dir.tick(1, 1)), fileRecord))
		}
	})
	c.agreed(1, c.all()...)
	if left := leftIn(t, dir); !c.last[4].CaughtUp || len(left) > 0 {
		t.Errorf("overtaken: %+v, left %v", c.last[4], left)
	}

	c.add(c.files(3, "two"), 4)
	ctx, cancel := context.WithCancel(t.Context())
	c.withFour(ctx, func(point string) {
		if point == "after join" {
			cancel()
		}
	})
	c.agreed(2, 1, 2, 3)
	if left := leftIn(t, dir); len(left) != 2 {
		t.Fatalf("cut off: %+v, left %v", c.last[4], left)
	}
	stop := c.serve(1, 2, 3)
	c.phase(t.Context(), 4)
	stop()
	c.agreed(2, c.all()...)
	if left := leftIn(t, dir); !c.last[4].CaughtUp || len(left) > 0 {
		t.Errorf("back: %+v, left %v", c.last[4], left)
	}
}

// withFour runs a phase of four replicas, the fourth of which tells at of its points.
func (c *cluster) withFour(ctx context.Context, at func(string)) {
	c.t.Helper()
	c.reset(c.all()...)
	config := c.config(4)
	config.at = at
	var four sync.WaitGroup
	var last result
	four.Go(func() { last.Outcome, last.err = Update(ctx, config) })
	c.run(c.t.Context(), c.all(4)...)
	stop := c.serve(c.all(4)...)
	four.Wait()
	stop()
	c.last[4] = last
}

// leftIn returns what a phase directory holds.
func leftIn(t *testing.T, dir phaseDir) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(string(dir))
	must(t, err)
	for _, x := range entries {
		all = append(all, x.Name())
	}
	return all
}
