package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/bonafide-archive/bonafide/tree"
)

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// pair is the i-th pair of the tests: a hashed-looking, repeatable order.
func pair(i int) tree.Pair {
	return tree.Pair{Name: fmt.Appendf(nil, "dir%d/name-%07d", i%7, i), Val: fmt.Appendf(nil, "the value of name number %d, long enough", i)}
}

func pairsOf(lo, hi int) (ps []tree.Pair) {
	for i := lo; i < hi; i++ {
		ps = append(ps, pair(i))
	}
	return ps
}

func reference(t testing.TB, ps []tree.Pair) *tree.Memory {
	t.Helper()
	m := &tree.Memory{}
	for _, p := range ps {
		if err := m.Put(p.Name, p.Val); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func seq(ps []tree.Pair) iter.Seq2[tree.Pair, error] {
	return func(yield func(tree.Pair, error) bool) {
		for _, p := range ps {
			if !yield(p, nil) {
				return
			}
		}
	}
}

func apply1(t testing.TB, s *Store, ps []tree.Pair) tree.Hash {
	t.Helper()
	root, _, err := s.Apply(context.Background(), ps)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func sound(t testing.TB, s *Store, want tree.Hash) {
	t.Helper()
	damage, err := s.Audit(context.Background(), want)
	if err != nil || len(damage) > 0 {
		t.Fatalf("audit: %v, %v", damage, err)
	}
}

// TestApplyIsReference applies random batches and compares root, count,
// chunks and pairs with the reference after each.
func TestApplyIsReference(t *testing.T) {
	for _, batch := range []int{1, 37, 700} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) {
			s := open(t, filepath.Join(t.TempDir(), "tree"))
			m := &tree.Memory{}
			order := rand.New(rand.NewPCG(1, uint64(batch))).Perm(min(100*batch, 4000))
			for len(order) > 0 {
				var ps []tree.Pair
				for _, i := range order[:min(batch, len(order))] {
					ps = append(ps, pair(i))
					_ = m.Put(pair(i).Name, pair(i).Val)
				}
				order = order[len(ps):]
				root, count, err := s.Apply(t.Context(), ps)
				if err != nil || root != m.Root() || count != m.Count() {
					t.Fatalf("%d pairs: got %x, %d, %v", m.Count(), root, count, err)
				}
				sound(t, s, root)
			}
		})
	}
}

// TestApplyDescending puts each new name before all others, so that the first
// chunk of every level begins anew each time.
func TestApplyDescending(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	m := &tree.Memory{}
	for i := 600; i > 0; i-- {
		p := tree.Pair{Name: fmt.Appendf(nil, "%05d", i)}
		_ = m.Put(p.Name, p.Val)
		if root := apply1(t, s, []tree.Pair{p}); i%20 == 0 && root != m.Root() {
			t.Fatalf("at %d: got %x, want %x", i, root, m.Root())
		}
	}
	sound(t, s, m.Root())
}

func TestApplyTwice(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	root := apply1(t, s, pairsOf(0, 300))
	if again := apply1(t, s, append(pairsOf(100, 200), pairsOf(100, 200)...)); again != root {
		t.Errorf("root changed from %x to %x", root, again)
	}
	bound := []tree.Pair{{Name: []byte("new"), Val: nil}, {Name: pair(7).Name, Val: []byte("other")}}
	twice := []tree.Pair{{Name: []byte("new"), Val: []byte("1")}, {Name: []byte("new"), Val: []byte("2")}}
	for _, ps := range [][]tree.Pair{bound, twice} {
		if _, _, err := s.Apply(t.Context(), ps); !errors.Is(err, ErrBound) {
			t.Errorf("got %v, want %v", err, ErrBound)
		}
	}
	if _, _, err := s.Apply(t.Context(), []tree.Pair{{Name: nil}}); !errors.Is(err, tree.ErrSize) {
		t.Errorf("got %v, want %v", err, tree.ErrSize)
	}
	if _, ok, err := s.Get([]byte("new")); ok || err != nil {
		t.Errorf("a refused batch left a name: %v, %v", ok, err)
	}
	sound(t, s, root)
}

// fading is a context that ends when it was asked often enough.
type fading struct {
	context.Context
	left atomic.Int64
}

func (f *fading) Err() error {
	if f.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// TestApplyInParts interrupts a batch of several parts at many moments: the
// file is the tree of its first pairs, and the same batch again completes it.
func TestApplyInParts(t *testing.T) {
	all, err := sorted(pairsOf(0, 1000))
	if err != nil {
		t.Fatal(err)
	}
	want, partial := reference(t, all).Root(), 0
	for moment := int64(0); moment < 120; moment += 4 {
		s := open(t, filepath.Join(t.TempDir(), "tree"))
		s.partRows = 90
		ctx := &fading{Context: t.Context()}
		ctx.left.Store(moment)
		_, _, err := s.Apply(ctx, pairsOf(0, 1000))
		n, _ := s.Count()
		if err != nil && !errors.Is(err, context.Canceled) || err == nil && n != 1000 || n < 1000 && n%90 != 0 {
			t.Fatalf("at %d: %d pairs, %v", moment, n, err)
		}
		if n > 0 && n < 1000 {
			partial++
		}
		sound(t, s, reference(t, all[:n]).Root())
		if root := apply1(t, s, pairsOf(0, 1000)); root != want {
			t.Errorf("at %d: another root", moment)
		}
		sound(t, s, want)
		s.Close()
	}
	if partial < 5 {
		t.Errorf("only %d batches were interrupted between parts", partial)
	}
}

// TestBoundInLastPart: nothing is added when the last part has a bound name.
func TestBoundInLastPart(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	s.partRows = 10
	root := apply1(t, s, []tree.Pair{{Name: []byte("z"), Val: []byte("1")}})
	batch := append(pairsOf(0, 100), tree.Pair{Name: []byte("z"), Val: []byte("2")})
	if _, _, err := s.Apply(t.Context(), batch); !errors.Is(err, ErrBound) {
		t.Errorf("got %v, want %v", err, ErrBound)
	}
	sound(t, s, root)
}

func TestApplyCancelled(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Apply(ctx, pairsOf(0, 10)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	sound(t, s, tree.EmptyRoot())
}

// TestProofsAreReference compares proofs byte by byte with the reference's.
func TestProofsAreReference(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	m := reference(t, pairsOf(0, 2000))
	apply1(t, s, pairsOf(0, 2000))
	rapid.Check(t, func(t *rapid.T) {
		name := pair(rapid.IntRange(0, 2100).Draw(t, "i")).Name
		name = name[:rapid.IntRange(1, len(name)).Draw(t, "cut")]
		got, err := s.Prove(name)
		if err != nil || !bytes.Equal(got, m.Prove(name)) {
			t.Fatalf("Prove(%q): %v", name, err)
		}
		to := rapid.SampledFrom([][]byte{nil, tree.PrefixEnd(name), []byte("dir5"), name}).Draw(t, "to")
		limit := rapid.IntRange(-1, 300).Draw(t, "limit")
		got, err = s.ProveRange(name, to, limit)
		if err != nil || !bytes.Equal(got, m.ProveRange(name, to, limit)) {
			t.Fatalf("ProveRange(%q, %q, %d): %v", name, to, limit, err)
		}
	})
}

func TestProofsOfSmallTrees(t *testing.T) {
	for n := range 4 {
		s := open(t, filepath.Join(t.TempDir(), "tree"))
		m := reference(t, pairsOf(0, n))
		apply1(t, s, pairsOf(0, n))
		for _, name := range [][]byte{[]byte("a"), pair(0).Name, pair(1).Name, []byte("z"), nil} {
			got, err := s.Prove(name)
			if err != nil || !bytes.Equal(got, m.Prove(name)) {
				t.Errorf("%d pairs, Prove(%q): %v", n, name, err)
			}
			got, err = s.ProveRange(name, nil, 2)
			if err != nil || !bytes.Equal(got, m.ProveRange(name, nil, 2)) {
				t.Errorf("%d pairs, ProveRange(%q): %v", n, name, err)
			}
		}
	}
}

// TestPages lists a prefix page by page.
func TestPages(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	root := apply1(t, s, pairsOf(0, 2000))
	from, to := []byte("dir3/"), tree.PrefixEnd([]byte("dir3/"))
	seen := 0
	for from != nil {
		p, err := s.ProveRange(from, to, 50)
		if err != nil {
			t.Fatal(err)
		}
		v, err := tree.Verify(root, p)
		if err != nil {
			t.Fatal(err)
		}
		pairs, next, err := v.Page(from, to)
		if err != nil || len(pairs) > 50 {
			t.Fatalf("%d pairs, %v", len(pairs), err)
		}
		seen += len(pairs)
		from = next
	}
	if want := 2000/7 + 1; seen != want {
		t.Errorf("saw %d names, want %d", seen, want)
	}
}

func TestGetAndWalk(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	apply1(t, s, append(pairsOf(0, 1500), tree.Pair{Name: []byte("empty")}))
	if val, ok, err := s.Get(pair(3).Name); err != nil || !ok || !bytes.Equal(val, pair(3).Val) {
		t.Errorf("got %q, %v, %v", val, ok, err)
	}
	if val, ok, err := s.Get([]byte("empty")); err != nil || !ok || len(val) != 0 {
		t.Errorf("got %q, %v, %v", val, ok, err)
	}
	if _, ok, err := s.Get([]byte("none")); err != nil || ok {
		t.Errorf("got %v, %v", ok, err)
	}
	m := reference(t, append(pairsOf(0, 1500), tree.Pair{Name: []byte("empty")}))
	for _, from := range []string{"", "dir3", "empty", "empty\x00", "zz"} {
		var want, got []string
		for _, p := range m.Pairs() {
			if string(p.Name) >= from {
				want = append(want, string(p.Name)+"="+string(p.Val))
			}
		}
		err := s.Walk(t.Context(), []byte(from), func(name, val []byte) error {
			got = append(got, string(name)+"="+string(val))
			return nil
		})
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("from %q: %d pairs, want %d, %v", from, len(got), len(want), err)
		}
	}
	stop := errors.New("stop")
	if err := s.Walk(t.Context(), nil, func(_, _ []byte) error { return stop }); err != stop {
		t.Errorf("got %v, want %v", err, stop)
	}
}

// TestRehash recomputes an earlier root by leaving out what came later.
func TestRehash(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "tree"))
	before := apply1(t, s, pairsOf(0, 900))
	after := apply1(t, s, pairsOf(900, 1300))
	old := map[string]bool{}
	for _, p := range pairsOf(0, 900) {
		old[string(p.Name)] = true
	}
	root, count, err := s.Rehash(t.Context(), func(name, _ []byte) bool { return old[string(name)] })
	if err != nil || root != before || count != 900 {
		t.Errorf("earlier: %x, %d, %v", root, count, err)
	}
	root, count, err = s.Rehash(t.Context(), nil)
	if err != nil || root != after || count != 1300 {
		t.Errorf("all: %x, %d, %v", root, count, err)
	}
	all, err := s.RehashEach(t.Context(), nil, func(name, _ []byte) bool { return old[string(name)] })
	if want := []Rehashed{{after, 1300}, {before, 900}}; err != nil || !slices.Equal(all, want) {
		t.Errorf("both: %x, %v", all, err)
	}
}

func TestBuild(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	for _, n := range []int{0, 1, 5000} {
		m := reference(t, pairsOf(0, n))
		want := m.Root()
		root, count, err := Build(t.Context(), path, seq(m.Pairs()), &want)
		if err != nil || root != want || count != uint64(n) {
			t.Fatalf("%d pairs: %x, %d, %v", n, root, count, err)
		}
		s := open(t, path)
		sound(t, s, want)
		root = apply1(t, s, pairsOf(n, n+50))
		if root != reference(t, pairsOf(0, n+50)).Root() {
			t.Errorf("%d pairs and 50 more: wrong root", n)
		}
		sound(t, s, root)
		s.Close()
	}
}

func TestBuildRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	m := reference(t, pairsOf(0, 100))
	if _, _, err := Build(t.Context(), path, seq(m.Pairs()), nil); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(path)
	broken := errors.New("broken source")
	other := tree.EmptyRoot()
	for what, c := range map[string]struct {
		pairs iter.Seq2[tree.Pair, error]
		want  *tree.Hash
		err   error
	}{
		"another root": {seq(m.Pairs()), &other, ErrRoot},
		"unsorted":     {seq([]tree.Pair{pair(1), pair(0)}), nil, tree.ErrOrder},
		"broken":       {func(yield func(tree.Pair, error) bool) { yield(tree.Pair{}, broken) }, nil, broken},
	} {
		if _, _, err := Build(t.Context(), path, c.pairs, c.want); !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", what, err, c.err)
		}
		files, _ := filepath.Glob(path + "*")
		if after, _ := os.ReadFile(path); !bytes.Equal(before, after) || len(files) != 1 {
			t.Errorf("%s: file changed or left behind: %v", what, files)
		}
	}
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	if _, err := Open(path, Options{ReadOnly: true}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	s := open(t, path)
	root := apply1(t, s, pairsOf(0, 50))
	if _, err := Open(path, Options{Wait: 1}); !errors.Is(err, ErrBusy) {
		t.Errorf("open twice: got %v, want %v", err, ErrBusy)
	}
	s.Close()
	ro, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if got, err := ro.Root(); err != nil || got != root {
		t.Errorf("got %x, %v", got, err)
	}
	if _, _, err := ro.Apply(t.Context(), pairsOf(50, 60)); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("write to a read-only tree: got %v", err)
	}
}

// TestSmallFile: what is reserved for growth is no part of the file.
func TestSmallFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	s := open(t, path)
	apply1(t, s, pairsOf(0, 1000))
	info, err := os.Stat(path)
	if err != nil || info.Size() > 4<<20 {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
}
