package tree

import (
	"bytes"
	"slices"
)

// Memory is the reference: a tree in memory that follows SPEC.md to the
// letter and computes everything anew each time. The zero Memory is empty.
type Memory struct{ pairs []Pair }

// Put adds or replaces a pair.
func (m *Memory) Put(name, val []byte) error {
	if err := CheckPair(name, val); err != nil {
		return err
	}
	p := Pair{bytes.Clone(name), bytes.Clone(val)}
	i, found := m.seek(name)
	if found {
		m.pairs[i] = p
		return nil
	}
	m.pairs = slices.Insert(m.pairs, i, p)
	return nil
}

// Count is the number of pairs.
func (m *Memory) Count() uint64 { return uint64(len(m.pairs)) }

// Pairs are the pairs in order.
func (m *Memory) Pairs() []Pair { return slices.Clone(m.pairs) }

// Root is the root of the tree.
func (m *Memory) Root() Hash {
	if len(m.pairs) == 0 {
		return EmptyRoot()
	}
	return RootHash(m.Count(), m.top().digest)
}

// Prove proves that name is in the tree or that it is not.
func (m *Memory) Prove(name []byte) Proof {
	i, found := m.seek(name)
	if found {
		return m.show(i, i+1)
	}
	return m.show(i-1, i+1)
}

// ProveRange proves one page of the pairs with from <= name < to, the first
// limit of them at most; a nil `to` is no bound.
func (m *Memory) ProveRange(from, to []byte, limit int) Proof {
	lo, found := m.seek(from)
	pg := NewPager(limit)
	hi := lo
	for hi < len(m.pairs) && below(m.pairs[hi].Name, to) && pg.Take(m.pairs[hi].Name, m.pairs[hi].Val) {
		hi++
	}
	if !pg.Full() {
		hi++ // the pair after the range
	}
	if !found {
		lo-- // the pair before it
	}
	return m.show(lo, hi)
}

// seek is the index of the first pair not below name, and whether it is name.
func (m *Memory) seek(name []byte) (int, bool) {
	return slices.BinarySearchFunc(m.pairs, name, func(p Pair, n []byte) int { return bytes.Compare(p.Name, n) })
}

// show is the proof that shows the pairs lo to hi-1, as far as they exist.
func (m *Memory) show(lo, hi int) Proof {
	p := NewProof(m.Count())
	if len(m.pairs) == 0 {
		return p
	}
	return m.top().append(p, m.pairs, max(lo, 0), min(hi, len(m.pairs)))
}

// node is a node of the explicit tree over the pairs lo to hi-1.
type node struct {
	digest      Hash
	height      int // of its first leaf
	lo, hi      int
	left, right *node // nil for a leaf
}

// top is the chunk of the first level that has only one.
func (m *Memory) top() *node {
	items := m.leaves()
	for l := 0; ; l++ {
		chunks := chunksOf(items, l)
		if len(chunks) == 1 {
			return join(chunks[0])
		}
		items = items[:0:0]
		for _, c := range chunks {
			items = append(items, join(c))
		}
	}
}

func (m *Memory) leaves() []*node {
	var ns []*node
	for i, p := range m.pairs {
		d := LeafHash(p.Name, p.Val)
		ns = append(ns, &node{digest: d, height: Height(d), lo: i, hi: i + 1})
	}
	return ns
}

// chunksOf cuts the items of level l before each whose height is above l.
func chunksOf(items []*node, l int) [][]*node {
	var chunks [][]*node
	start := 0
	for i := 1; i < len(items); i++ {
		if items[i].height > l {
			chunks = append(chunks, items[start:i])
			start = i
		}
	}
	return append(chunks, items[start:])
}

// join builds the RFC 6962 tree over the items of one chunk.
func join(items []*node) *node {
	if len(items) == 1 {
		return items[0]
	}
	k := 1
	for 2*k < len(items) {
		k *= 2
	}
	l, r := join(items[:k]), join(items[k:])
	return &node{digest: NodeHash(l.digest, r.digest), height: l.height, lo: l.lo, hi: r.hi, left: l, right: r}
}

// append adds the subtree to p, showing the pairs lo to hi-1.
func (n *node) append(p Proof, pairs []Pair, lo, hi int) Proof {
	switch {
	case n.left == nil:
		return AppendLeaf(p, pairs[n.lo].Name, pairs[n.lo].Val)
	case lo >= n.right.lo:
		p = append(append(p, tagRight), n.left.digest[:]...)
		return n.right.append(p, pairs, lo, hi)
	case hi <= n.right.lo:
		p = n.left.append(append(p, tagLeft), pairs, lo, hi)
		return append(p, n.right.digest[:]...)
	}
	p = n.left.append(append(p, tagBoth), pairs, lo, hi)
	return n.right.append(p, pairs, lo, hi)
}

// Pager decides where a page of a listing ends.
type Pager struct {
	leaves, bytes int
	full          bool
}

// NewPager returns a Pager for at most limit leaves, and never more than
// MaxPage leaves and MaxPageBytes of them; a limit below 1 means 1.
func NewPager(limit int) *Pager {
	return &Pager{leaves: min(max(limit, 1), MaxPage), bytes: MaxPageBytes}
}

// Take says whether the page still takes this pair; the first always fits.
func (g *Pager) Take(name, val []byte) bool {
	if g.full || g.leaves == 0 || g.bytes <= 0 {
		g.full = true
		return false
	}
	g.leaves--
	g.bytes -= LeafSize(name, val)
	return true
}

// Full says whether a pair was turned away.
func (g *Pager) Full() bool { return g.full }
