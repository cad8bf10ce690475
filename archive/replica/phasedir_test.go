package replica

import (
	"errors"
	"os"
	"path/filepath"
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
