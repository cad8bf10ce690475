package boltstore

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/bonafide-archive/bonafide/tree"
)

var seeds = flag.Uint64("seeds", 8, "damage trials of each kind")

// damages are ways to change the bytes of a file.
var damages = map[string]func(r *rand.Rand, b []byte) []byte{
	"one bit": func(r *rand.Rand, b []byte) []byte { b[r.IntN(len(b))] ^= 1 << r.IntN(8); return b },
	"page header": func(r *rand.Rand, b []byte) []byte {
		b[r.IntN(len(b)/4096)*4096+r.IntN(16)] ^= 1 << r.IntN(8)
		return b
	},
	"element": func(r *rand.Rand, b []byte) []byte {
		b[r.IntN(len(b)/4096)*4096+16+r.IntN(200)] ^= 1 << r.IntN(8)
		return b
	},
	"zeroed page": func(r *rand.Rand, b []byte) []byte { clear(b[r.IntN(len(b)/4096)*4096:][:4096]); return b },
	"page twice": func(r *rand.Rand, b []byte) []byte {
		copy(b[r.IntN(len(b)/4096)*4096:][:4096], b[r.IntN(len(b)/4096)*4096:][:4096])
		return b
	},
	"page moved": func(r *rand.Rand, b []byte) []byte {
		from, to := r.IntN(len(b)/4096)*4096, r.IntN(len(b)/4096)*4096
		copy(b[to+8:to+4096], b[from+8:from+4096])
		return b
	},
	"cut off": func(r *rand.Rand, b []byte) []byte { return b[:r.IntN(len(b))] },
}

// TestDamage damages files and expects from every question an error or the
// right answer, and from the audit that it finds whatever makes an answer wrong.
func TestDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	m := reference(t, pairsOf(0, 5000))
	root, _, err := Build(t.Context(), path, seq(m.Pairs()), nil)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	for i := 5000; i < 5400; i += 100 { // free pages, and rows out of sequence
		root = apply1(t, s, pairsOf(i, i+100))
	}
	s.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for kind, damage := range damages {
		t.Run(kind, func(t *testing.T) {
			found := 0
			for seed := range *seeds {
				bad := damage(rand.New(rand.NewPCG(seed, 7)), bytes.Clone(whole))
				if err := os.WriteFile(path, bad, 0o600); err != nil {
					t.Fatal(err)
				}
				if trial(t, fmt.Sprintf("%s, seed %d", kind, seed), path, root) {
					found++
				}
			}
			if t.Logf("found %d of %d", found, *seeds); found == 0 {
				t.Error("no damage found at all")
			}
		})
	}
}

// trial asks a damaged file everything. It says whether the damage was found.
func trial(t *testing.T, what, path string, root tree.Hash) bool {
	t.Helper()
	s, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: open: %v", what, err)
		}
		return true
	}
	defer s.Close()
	found, err := s.Audit(t.Context(), root)
	if err != nil {
		t.Fatalf("%s: audit: %v", what, err)
	}
	for i := 0; i < 5600; i += 173 {
		ask(t, what, s, root, i, found)
	}
	askPage(t, what, s, root)
	if got, _, err := s.Rehash(t.Context(), nil); err == nil && got != root && len(found) == 0 {
		t.Errorf("%s: other pairs, not found by the audit", what)
	}
	if len(found) > 0 {
		rebuild(t, what, s, root, found)
	}
	return len(found) > 0
}

// ask compares Get and Prove of one name with the truth.
func ask(t *testing.T, what string, s *Store, root tree.Hash, i int, found []Damage) {
	t.Helper()
	want, there := pair(i), i < 5400
	val, ok, err := s.Get(want.Name)
	right := err == nil && ok == there && (!ok || bytes.Equal(val, want.Val))
	if !right && len(found) == 0 {
		t.Errorf("%s: get %d: wrong, not found by the audit: %q, %v, %v", what, i, val, ok, err)
	}
	p, err := s.Prove(want.Name)
	if err != nil {
		if !errors.Is(err, ErrDamaged) || len(found) == 0 {
			t.Errorf("%s: prove %d: %v, audit found %v", what, i, err, found)
		}
		return
	}
	v, err := tree.Verify(root, p)
	if err != nil {
		return // refused, as it must be
	}
	if val, ok, err := v.Lookup(want.Name); err == nil && (ok != there || ok && !bytes.Equal(val, want.Val)) {
		t.Errorf("%s: proof of %d is wrong", what, i)
	}
}

func askPage(t *testing.T, what string, s *Store, root tree.Hash) {
	t.Helper()
	from, to := []byte("dir4/"), tree.PrefixEnd([]byte("dir4/"))
	p, err := s.ProveRange(from, to, 5000)
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: page: %v", what, err)
		}
		return
	}
	v, err := tree.Verify(root, p)
	if err != nil {
		return
	}
	if pairs, next, err := v.Page(from, to); err == nil && (next != nil || len(pairs) != 771) {
		t.Errorf("%s: page of %d names, want 771", what, len(pairs))
	}
}

// rebuild takes all pairs outside the damage from the damaged file and those
// within from the truth: that must be the tree again.
func rebuild(t *testing.T, what string, s *Store, root tree.Hash, found []Damage) {
	t.Helper()
	within := func(name []byte) bool {
		return slices.ContainsFunc(found, func(d Damage) bool {
			return d.Level == 0 && bytes.Compare(name, d.From) >= 0 && span{d.From, d.To}.before(name)
		})
	}
	m := &tree.Memory{}
	for _, p := range pairsOf(0, 5400) {
		if within(p.Name) {
			_ = m.Put(p.Name, p.Val)
		}
	}
	from := []byte{}
	for _, d := range append(slices.Clone(found), Damage{From: nil, To: nil}) {
		err := s.Walk(t.Context(), from, func(name, val []byte) error {
			if within(name) {
				return errEnough
			}
			return m.Put(name, val)
		})
		if err != nil && !errors.Is(err, ErrDamaged) && err != errEnough {
			t.Fatalf("%s: walk: %v", what, err)
		}
		if d.To == nil {
			break
		}
		from = d.To
	}
	if m.Root() != root {
		t.Errorf("%s: what lies outside %v is wrong too", what, found)
	}
}

var errEnough = errors.New("enough")

// TestApplyOnDamage: a batch on a damaged file fails or yields the right root;
// a wrong pair is never hashed into a new one.
func TestApplyOnDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	m := reference(t, pairsOf(0, 4000))
	if _, _, err := Build(t.Context(), path, seq(m.Pairs()), nil); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := reference(t, pairsOf(0, 4600)).Root()
	for kind, damage := range damages {
		refused := 0
		for seed := range *seeds {
			bad := damage(rand.New(rand.NewPCG(seed, 9)), bytes.Clone(whole))
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if applyTo(t, fmt.Sprintf("%s, seed %d", kind, seed), path, want) {
				refused++
			}
		}
		t.Logf("%s: %d of %d refused", kind, refused, *seeds)
	}
}

func applyTo(t *testing.T, what, path string, want tree.Hash) (refused bool) {
	t.Helper()
	s, err := Open(path, Options{})
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: open: %v", what, err)
		}
		return true
	}
	defer s.Close()
	root, _, err := s.Apply(t.Context(), pairsOf(4000, 4600))
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: apply: %v", what, err)
		}
		return true
	}
	if root != want {
		t.Errorf("%s: root %x, want %x", what, root, want)
	}
	return false
}
