package replica

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
)

// bodyOf returns a body of n submissions, and the manifest of its small pieces.
func (f *forge) bodyOf(n int) (m consensus.Manifest, pieces [][]byte) {
	var all []archive.Submission
	for i := range n {
		all = append(all, f.Submission(time.Now(), map[archive.Name][]byte{archive.Name(fmt.Sprintf("n/%d", i)): []byte("x")}))
	}
	slices.SortFunc(all, func(a, b archive.Submission) int {
		x, y := a.Digest(), b.Digest()
		return bytes.Compare(x[:], y[:])
	})
	var body bytes.Buffer
	for _, s := range all {
		must(f.t, writeSubmission(&body, s.Bytes()))
	}
	for piece := range slices.Chunk(body.Bytes(), 50) {
		pieces, m.Pieces, m.Size = append(pieces, piece), append(m.Pieces, consensus.NewPiece(piece)), m.Size+uint64(len(piece))
	}
	return m, pieces
}

// A source that fails at a piece of a body costs its time once, not for each piece.
// It is asked again for what nobody else has.
func TestHoldAsksLastWhoFailed(t *testing.T) {
	for name, fail := range map[string]http.HandlerFunc{
		"it hangs":            func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"other bytes":         func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("other bytes")) },
		"it does not have it": http.NotFound,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newForge(t)
			m, pieces := f.bodyOf(8)
			last := len(pieces) - 1
			p := f.newTestPhase()
			p.dir, p.Timeout = phaseDir(filepath.Join(t.TempDir(), storeDir, "phase")), 2*time.Second
			var asked atomic.Int32 // of replica 2
			p.peers = append(p.peers, f.face(p, 2, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) == 1 {
					fail(w, r)
					return
				}
				give(pieces[last:])(w, r)
			}))
			for _, id := range []uint32{3, 4} {
				p.peers = append(p.peers, f.face(p, id, give(pieces[:last])))
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			must(t, p.hold(ctx, m, p.sources(2)))
			if n := asked.Load(); n != 2 || len(pieces) < 20 {
				t.Errorf("asked %d times for a body of %d pieces; want once for the first and once for the last", n, len(pieces))
			}
		})
	}
}

// give serves some pieces.
func give(pieces [][]byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, b := range pieces {
			if strings.HasSuffix(r.URL.Path, archive.DigestOf(b).String()) {
				w.Write(b)
				return
			}
		}
		http.NotFound(w, r)
	}
}
