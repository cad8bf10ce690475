package boltstore

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/bonafide-archive/bonafide/tree"
)

// mined are n pairs of which none begins a chunk, chosen as an attacker would.
func mined(n int) (ps []tree.Pair) {
	for i := 0; len(ps) < n; i++ {
		p := tree.Pair{Name: fmt.Appendf(nil, "dir/m%08d", i), Val: []byte("mined")}
		if tree.Height(tree.LeafHash(p.Name, p.Val)) == 0 {
			ps = append(ps, p)
		}
	}
	return ps
}

// TestMined: proofs about a chunk of many names are those of the reference,
// with an outline and without, and after names were added to it.
func TestMined(t *testing.T) {
	ps := append(pairsOf(0, 3000), mined(3000)...)
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	for _, part := range [][]tree.Pair{ps[:5500], ps[5500:]} {
		apply1(t, s, part)
		m := reference(t, ps[:5500])
		if len(part) != 5500 {
			m = reference(t, ps)
		}
		for i := 0; i < len(ps); i += 97 {
			sameProofs(t, s, m, ps[i].Name, 1)
			sameProofs(t, s, m, append(bytes.Clone(ps[i].Name), 'x'), 200)
		}
		if len(s.outlines.of) == 0 {
			t.Error("no chunk had an outline")
		}
	}
}

func sameProofs(t *testing.T, s *Store, m *tree.Memory, name []byte, limit int) {
	t.Helper()
	got, err := s.Prove(name)
	if err != nil || !bytes.Equal(got, m.Prove(name)) {
		t.Fatalf("Prove(%q): %v", name, err)
	}
	got, err = s.ProveRange(name, nil, limit)
	if err != nil || !bytes.Equal(got, m.ProveRange(name, nil, limit)) {
		t.Fatalf("ProveRange(%q): %v", name, err)
	}
}

// TestMinedTop: the top chunk itself is large.
func TestMinedTop(t *testing.T) {
	ps := mined(9000) // two tiers
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	apply1(t, s, ps)
	m := reference(t, ps)
	for i := 0; i < len(ps); i += 97 {
		sameProofs(t, s, m, ps[i].Name, 100)
	}
}

// TestMinedDamage: an outline does not hide that a pair has changed.
func TestMinedDamage(t *testing.T) {
	ps := mined(3000)
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	apply1(t, s, ps)
	if _, err := s.Prove(ps[1000].Name); err != nil {
		t.Fatal(err)
	}
	rewrite(t, s, leavesBucket, ps[1000].Name, []byte("other"))
	if _, err := s.Prove(ps[1000].Name); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want %v", err, ErrDamaged)
	}
}

// TestOutlinesAreBounded: too many outlines are forgotten.
func TestOutlinesAreBounded(t *testing.T) {
	var os outlines
	for i := range 10 * maxOutlineBlocks / 1000 {
		os.put(chunkID{i, tree.Hash{}}, outline{{starts: make([]item, 1000)}})
		if os.blocks > maxOutlineBlocks || len(os.of)*1000 != os.blocks {
			t.Fatalf("%d blocks of %d chunks", os.blocks, len(os.of))
		}
	}
}
