package tree

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// sample is a reference tree of n pairs; with many chunk levels for large n.
func sample(n int) *Memory {
	m := &Memory{}
	for i := range n {
		name, val := fmt.Sprintf("name/%07d", i*3), fmt.Sprintf("value %d", i)
		m.pairs = append(m.pairs, Pair{[]byte(name), []byte(val)})
	}
	return m
}

func TestPrefixEnd(t *testing.T) {
	for _, c := range []struct{ prefix, want string }{
		{"a", "b"}, {"a\xff", "b"}, {"a\xfe\xff\xff", "a\xff"}, {"a/", "a0"},
	} {
		if got := PrefixEnd([]byte(c.prefix)); string(got) != c.want {
			t.Errorf("PrefixEnd(%q) = %q, want %q", c.prefix, got, c.want)
		}
	}
	for _, prefix := range []string{"", "\xff", "\xff\xff"} {
		if got := PrefixEnd([]byte(prefix)); got != nil {
			t.Errorf("PrefixEnd(%q) = %q, want none", prefix, got)
		}
	}
}

func TestHeight(t *testing.T) {
	h := func(last ...byte) (d Hash) {
		d[0] = 1
		copy(d[32-len(last):], last)
		return d
	}
	for _, c := range []struct {
		d    Hash
		want int
	}{{h(1), 0}, {h(0x20), 0}, {h(0x40), 1}, {h(0x80), 1}, {h(0x0f, 0), 1}, {h(0x10, 0), 2}, {Hash{}, 42}} {
		if got := Height(c.d); got != c.want {
			t.Errorf("Height(%x) = %d, want %d", c.d, got, c.want)
		}
	}
}

func TestHasherRefuses(t *testing.T) {
	h := NewHasher()
	if err := h.Add([]byte("b"), nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, val []byte
		want      error
	}{
		{[]byte("b"), nil, ErrOrder},
		{[]byte("a"), nil, ErrOrder},
		{nil, nil, ErrSize},
		{make([]byte, MaxName+1), nil, ErrSize},
		{[]byte("c"), make([]byte, MaxVal+1), ErrSize},
	} {
		if err := h.Add(c.name, c.val); !errors.Is(err, c.want) {
			t.Errorf("Add(%.10q): got %v, want %v", c.name, err, c.want)
		}
	}
}

// TestHasherIsReference compares the streaming root with the reference, after
// each pair, over enough pairs for several levels.
func TestHasherIsReference(t *testing.T) {
	m := &Memory{}
	h := NewHasher()
	for i, p := range sample(6000).pairs {
		m.pairs = append(m.pairs, p)
		if err := h.Add(p.Name, p.Val); err != nil {
			t.Fatal(err)
		}
		if i%97 == 0 || i < 200 {
			if got, want := h.Root(), m.Root(); got != want {
				t.Fatalf("%d pairs: got %x, want %x", i+1, got, want)
			}
		}
	}
	if h.Root() != m.Root() || h.Count() != m.Count() {
		t.Fatal("root or count differ at the end")
	}
	if _, levels, _ := h.Finish(); levels < 3 {
		t.Fatalf("%d levels: too few to test anything", levels)
	}
}

func TestEmpty(t *testing.T) {
	var m Memory
	if m.Root() != EmptyRoot() || NewHasher().Root() != EmptyRoot() {
		t.Error("empty roots differ")
	}
	v, err := Verify(EmptyRoot(), m.Prove([]byte("a")))
	if err != nil {
		t.Fatal(err)
	}
	if _, present, err := v.Lookup([]byte("a")); present || err != nil {
		t.Errorf("got %v, %v, want absent", present, err)
	}
	if pairs, next, err := v.Page(nil, nil); len(pairs) != 0 || next != nil || err != nil {
		t.Errorf("got %v, %q, %v, want nothing, complete", pairs, next, err)
	}
}

var genName = rapid.SliceOfN(rapid.ByteRange('a', 'e'), 1, 4)

// genTree draws a reference tree over few short names, so that neighbours,
// prefixes and ends come up.
func genTree(t *rapid.T) *Memory {
	m := &Memory{}
	for range rapid.IntRange(0, 120).Draw(t, "n") {
		if err := m.Put(genName.Draw(t, "name"), rapid.SliceOfN(rapid.Byte(), 0, 3).Draw(t, "val")); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestProveLookup(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, name := genTree(t), genName.Draw(t, "asked")
		v, err := Verify(m.Root(), m.Prove(name))
		if err != nil {
			t.Fatal(err)
		}
		if v.Count() != m.Count() {
			t.Fatalf("count %d, want %d", v.Count(), m.Count())
		}
		checkLookup(t, m, v, name, true)
		checkLookup(t, m, v, genName.Draw(t, "other"), false)
	})
}

type fataler interface{ Fatalf(string, ...any) }

// checkLookup compares what v says of name with the truth. must: it has to say
// something.
func checkLookup(t fataler, m *Memory, v *View, name []byte, must bool) {
	val, present, err := v.Lookup(name)
	if err != nil && (must || !errors.Is(err, ErrInvalidProof)) {
		t.Fatalf("Lookup(%q): %v", name, err)
	}
	i, want := m.seek(name)
	if err == nil && present != want {
		t.Fatalf("Lookup(%q): present %v, want %v", name, present, want)
	}
	if err == nil && present && !bytes.Equal(val, m.pairs[i].Val) {
		t.Fatalf("Lookup(%q): %q, want %q", name, val, m.pairs[i].Val)
	}
}

// checkPage compares what v says of a range with the truth.
func checkPage(t fataler, m *Memory, v *View, from, to []byte) (next []byte, err error) {
	pairs, next, err := v.Page(from, to)
	if err != nil {
		return nil, err
	}
	end := to
	if next != nil {
		end = next
	}
	var want []Pair
	for _, p := range m.pairs {
		if bytes.Compare(p.Name, from) >= 0 && below(p.Name, end) {
			want = append(want, p)
		}
	}
	if fmt.Sprint(pairs) != fmt.Sprint(want) {
		t.Fatalf("Page(%q, %q): got %q up to %q, want %q", from, to, pairs, next, want)
	}
	return next, nil
}

func TestProveRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := genTree(t)
		from := rapid.OneOf(genName, rapid.Just([]byte{})).Draw(t, "from")
		to := rapid.OneOf(genName, rapid.Just[[]byte](nil)).Draw(t, "to")
		limit := rapid.IntRange(0, 9).Draw(t, "limit")
		for pages := 0; from != nil; pages++ {
			v, err := Verify(m.Root(), m.ProveRange(from, to, limit))
			if err != nil {
				t.Fatal(err)
			}
			next, err := checkPage(t, m, v, from, to)
			if err != nil || pages > len(m.pairs) {
				t.Fatalf("page %d from %q: %v", pages, from, err)
			}
			_, _ = checkPage(t, m, v, genName.Draw(t, "other from"), to)
			from = next
		}
	})
}

func TestPageBounds(t *testing.T) {
	m := &Memory{}
	for i := range 400 {
		if err := m.Put(fmt.Appendf(nil, "%03d", i), make([]byte, MaxVal)); err != nil {
			t.Fatal(err)
		}
	}
	p := m.ProveRange(nil, nil, 1<<30)
	v, err := Verify(m.Root(), p)
	if err != nil {
		t.Fatal(err)
	}
	pairs, next, err := v.Page(nil, nil)
	if err != nil || next == nil || len(pairs) < 100 || len(p) > MaxPageBytes+MaxName+2*MaxVal+2*MaxDepth*33 {
		t.Errorf("%d pairs, next %q, proof %d bytes, %v", len(pairs), next, len(p), err)
	}
}

// TestFlipEveryByte changes every byte of every kind of proof in all eight
// bits, cuts it everywhere, and expects refusal.
func TestFlipEveryByte(t *testing.T) {
	m := sample(700)
	root := m.Root()
	for kind, p := range proofs(m) {
		for i := range p {
			for bit := range 8 {
				bad := bytes.Clone(p)
				bad[i] ^= 1 << bit
				refuse(t, root, bad, "%s with bit %d of byte %d flipped", kind, bit, i)
			}
			refuse(t, root, p[:i], "%s cut to %d", kind, i)
		}
		refuse(t, root, append(bytes.Clone(p), 0), "%s with a byte more", kind)
		root := root
		for i := range root {
			root[i] ^= 1
			refuse(t, root, p, "%s against another root", kind)
			root[i] ^= 1
		}
	}
}

func proofs(m *Memory) map[string]Proof {
	name := m.pairs[len(m.pairs)/2].Name
	return map[string]Proof{
		"present":   m.Prove(name),
		"absent":    m.Prove(append(bytes.Clone(name), 0)),
		"below all": m.Prove([]byte("a")),
		"above all": m.Prove([]byte("z")),
		"page":      m.ProveRange(name, nil, 20),
		"range":     m.ProveRange(name, PrefixEnd(name[:len(name)-1]), 100),
	}
}

func refuse(t *testing.T, root Hash, p Proof, format string, args ...any) {
	t.Helper()
	if v, err := Verify(root, p); !errors.Is(err, ErrInvalidProof) || v != nil {
		t.Errorf(format+": got %v, want refusal", append(args, err)...)
	}
}

// TestForged feeds the verifier trees whose root is right, since the forger
// chose it, but which no honest tree has.
func TestForged(t *testing.T) {
	leaf := func(p Proof, name string) Proof { return AppendLeaf(p, []byte(name), []byte("v")) }
	both := func(count uint64, names ...string) Proof {
		p := append(NewProof(count), tagBoth)
		for _, n := range names {
			p = leaf(p, n)
		}
		return p
	}
	deep := NewProof(1 << 20)
	for range MaxDepth + 1 {
		deep = append(append(deep, tagRight), make([]byte, 32)...)
	}
	bomb := append(NewProof(1<<20), bytes.Repeat([]byte{tagBoth}, MaxProof-8)...)
	pruned := append(leaf(append(append(NewProof(1), tagRight), make([]byte, 32)...), "a"), 0)
	for _, c := range []struct {
		what string
		p    Proof
	}{
		{"same name twice", both(2, "a", "a")},
		{"names out of order", both(2, "b", "a")},
		{"count too low", both(1, "a", "b")},
		{"count too high with nothing pruned", both(3, "a", "b")},
		{"count below leaves and pruned", pruned[:len(pruned)-1]},
		{"empty name", leaf(NewProof(1), "")},
		{"long name", AppendLeaf(NewProof(1), make([]byte, MaxName+1), nil)},
		{"long value", AppendLeaf(NewProof(1), []byte("a"), make([]byte, MaxVal+1))},
		{"nothing at all", nil},
		{"no item", NewProof(1)},
		{"an item in an empty tree", leaf(NewProof(0), "a")},
		{"unknown item", append(NewProof(1), 4)},
		{"bare digest", append(append(NewProof(1), 2), make([]byte, 32)...)},
		{"too deep", leaf(deep, "a")},
		{"too many nodes", bomb},
		{"too long", append(NewProof(1), make([]byte, MaxProof)...)},
	} {
		if _, _, err := parse(c.p); err == nil {
			t.Errorf("%s: accepted", c.what)
		}
	}
	if _, _, err := parse(both(2, "a", "b")); err != nil {
		t.Errorf("honest proof: %v", err)
	}
}

// TestGaps asks a proof for what it does not decide.
func TestGaps(t *testing.T) {
	m := sample(700)
	v, err := Verify(m.Root(), m.Prove(m.pairs[300].Name))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range [][]byte{[]byte("a"), []byte("z"), m.pairs[299].Name, append(bytes.Clone(m.pairs[300].Name), 0)} {
		if _, _, err := v.Lookup(name); !errors.Is(err, ErrInvalidProof) {
			t.Errorf("Lookup(%q): got %v, want %v", name, err, ErrInvalidProof)
		}
		if _, _, err := v.Page(name, nil); !errors.Is(err, ErrInvalidProof) {
			t.Errorf("Page(%q): got %v, want %v", name, err, ErrInvalidProof)
		}
	}
}

// TestCanonical: the root does not depend on the order of insertion.
func TestCanonical(t *testing.T) {
	want := sample(500)
	got := &Memory{}
	for _, i := range rand.Perm(500) {
		if err := got.Put(want.pairs[i].Name, want.pairs[i].Val); err != nil {
			t.Fatal(err)
		}
	}
	if got.Root() != want.Root() {
		t.Error("roots differ")
	}
}

// FuzzVerify: whatever bytes pass against a root tell the truth about it, and
// whatever bytes have a root are the only encoding of what they show.
func FuzzVerify(f *testing.F) {
	m := sample(90)
	root := m.Root()
	for _, p := range proofs(m) {
		f.Add([]byte(p), m.pairs[7].Name, []byte("name/1"))
	}
	f.Fuzz(func(t *testing.T, p, from, to []byte) {
		if v, err := Verify(root, p); err == nil {
			checkLookup(t, m, v, from, false)
			_, _ = checkPage(t, m, v, from, to)
			_, _ = checkPage(t, m, v, from, nil)
		}
		v, own, err := parse(p)
		if err != nil {
			return
		}
		if _, err := Verify(own, p); err != nil {
			t.Fatalf("does not verify against its own root: %v", err)
		}
		for i, pair := range v.pairs {
			if val, present, err := v.Lookup(pair.Name); err != nil || !present || !bytes.Equal(val, pair.Val) {
				t.Fatalf("leaf %d: %v", i, err)
			}
		}
		_, _, _ = v.Page(from, to)
	})
}

func ExampleVerify() {
	var m Memory
	for _, name := range []string{"etc/hosts", "etc/passwd", "usr/bin/go"} {
		_ = m.Put([]byte(name), []byte("its entry"))
	}
	page, _ := Verify(m.Root(), m.ProveRange([]byte("etc/"), PrefixEnd([]byte("etc/")), 10))
	pairs, next, _ := page.Page([]byte("etc/"), PrefixEnd([]byte("etc/")))
	for _, p := range pairs {
		fmt.Printf("%s: %s\n", p.Name, p.Val)
	}
	fmt.Println("complete:", next == nil)
	// Output:
	// etc/hosts: its entry
	// etc/passwd: its entry
	// complete: true
}
