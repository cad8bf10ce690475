package tree

import (
	"encoding/binary"
	"math/bits"
)

// Proof is a pruned tree: the number of pairs, then the nodes on the way to
// the leaves it shows, in preorder. One form serves membership, absence and
// listings. See SPEC.md.
type Proof []byte

// Bounds of a proof. A page ends after MaxPage leaves or when its leaves
// exceed MaxPageBytes, whichever comes first.
const (
	MaxProof     = 1 << 21
	MaxPage      = 1 << 14
	MaxPageBytes = 1 << 20
	MaxDepth     = 256
)

// The items of a proof.
const (
	tagLeaf  = 0x00 // be16 len(name) || be16 len(value) || name || value
	tagBoth  = 0x01 // item || item
	tagRight = 0x02 // digest of the left subtree || item
	tagLeft  = 0x03 // item || digest of the right subtree
)

const leafHeader = 5 // tag and lengths

// LeafSize is what a shown leaf adds to a proof, at most.
func LeafSize(name, val []byte) int { return leafHeader + len(name) + len(val) + 1 }

// NewProof begins a proof of a tree with count pairs.
func NewProof(count uint64) Proof {
	return binary.BigEndian.AppendUint64(make(Proof, 0, 1024), count)
}

// AppendLeaf adds a leaf to a proof under construction.
func AppendLeaf(p Proof, name, val []byte) Proof {
	p = binary.BigEndian.AppendUint16(append(p, tagLeaf), uint16(len(name)))
	p = binary.BigEndian.AppendUint16(p, uint16(len(val)))
	return append(append(p, name...), val...)
}

// AppendChunk adds a chunk whose items have the given digests to a proof under
// construction. Items lo to hi-1 are shown: show adds item i. There must be at
// least one of them.
func AppendChunk(p Proof, items []Hash, lo, hi int, show func(p Proof, i int) (Proof, error)) (Proof, error) {
	if lo < 0 || lo >= hi || hi > len(items) {
		panic("tree: no item to show")
	}
	return appendItems(p, items, 0, lo, hi, show)
}

// appendItems adds the subtree over items, the first of which has index base.
func appendItems(p Proof, items []Hash, base, lo, hi int, show func(Proof, int) (Proof, error)) (Proof, error) {
	if len(items) == 1 {
		return show(p, base)
	}
	k := split(len(items))
	left, right, mid := items[:k], items[k:], base+k
	switch {
	case lo >= mid:
		d := sum(left)
		return appendItems(append(append(p, tagRight), d[:]...), right, mid, lo, hi, show)
	case hi <= mid:
		p, err := appendItems(append(p, tagLeft), left, base, lo, hi, show)
		d := sum(right)
		return append(p, d[:]...), err
	}
	p, err := appendItems(append(p, tagBoth), left, base, lo, hi, show)
	if err != nil {
		return nil, err
	}
	return appendItems(p, right, mid, lo, hi, show)
}

// split is the largest power of two below n.
func split(n int) int { return 1 << (bits.Len(uint(n-1)) - 1) }

// sum is the digest of a list in RFC 6962 shape, as Fold makes it.
func sum(items []Hash) Hash {
	if len(items) == 1 {
		return items[0]
	}
	k := split(len(items))
	return NodeHash(sum(items[:k]), sum(items[k:]))
}
