package replica

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
)

// A replica that has nothing of its tree takes a peer's file, and nothing else.
func TestRepairTreeFile(t *testing.T) {
	v := newVault(t, 3, entryPairs(0, 9000, 1), 1, withFiles)
	info, err := os.Stat(v.whole)
	must(t, err)
	if sent := v.repair(t); sent != info.Size() {
		t.Errorf("%d bytes were sent, want the %d of the file", sent, info.Size())
	}
	checkTree(t, v.store, v.rec)
}

func fileLies(t *testing.T, v *vault) map[string]lie {
	other := newVault(t, 0, entryPairs(0, 9001, 1), 1)
	foreign, err := os.ReadFile(other.whole)
	must(t, err)
	twice := func(w http.ResponseWriter, _ *http.Request, h []byte) { w.Write(append(h, h...)) }
	lies := map[string]lie{
		"nothing":      says(nil),
		"noise":        says(bytes.Repeat([]byte{1}, 1<<20)),
		"zeros":        says(make([]byte, 1<<20)),
		"another tree": says(foreign),
		"twice":        twice,
		"endless":      endless,
		"stall":        stall,
		"half":         func(w http.ResponseWriter, _ *http.Request, h []byte) { w.Write(h[:len(h)/2]) },
		"meta pages":   func(w http.ResponseWriter, _ *http.Request, h []byte) { clear(h[:2*filePage]); w.Write(h) },
		"huge": func(w http.ResponseWriter, _ *http.Request, h []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(int64(1)<<50))
			w.Write(h)
		},
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, off := range rowPages(t, v.whole)[:12] {
		at := int(off) + rnd.IntN(filePage)
		lies[fmt.Sprint("bit at ", at)] = flipAt(func(int) int { return at })
	}
	return lies
}

// Whatever file one source sends, the tree is right in the end, by the next
// source; or else there is none, as before.
func TestRepairTreeFileHostile(t *testing.T) {
	v := newVault(t, 0, entryPairs(0, 9000, 1), 1)
	for name, l := range fileLies(t, v) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newVault(t, 0, cloned(v.pairs), 1, withFiles)
			w.timeout = slow(name)
			w.serveLies(t, w.Replicas[1], wire.PathTree, func(x http.ResponseWriter, r *http.Request, h []byte) { l(x, r, bytes.Clone(h)) })
			w.sources[0] = noPages{w.sources[0].(*wire.Client)}
			if err := w.try(t); err != nil {
				if _, gone := os.Stat(w.store.TreePath()); gone == nil {
					t.Errorf("%v, and there is a file", err)
				}
			} else if name[:3] != "bit" { // it may be of no meaning
				t.Error("repaired from a liar")
			}
			w.serve(t, w.Replicas[2])
			if err := w.try(t); err != nil {
				t.Errorf("with an honest source: %v", err)
			}
			checkTree(t, w.store, w.rec)
		})
	}
}

// noPages is a source that gives its file and nothing else.
type noPages struct{ *wire.Client }

func (noPages) ProofRange(context.Context, archive.Digest, []byte, []byte, int) (tree.Proof, error) {
	return nil, errNoSource
}
