package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
)

// LeafHasher makes leaf digests one after the other, with less overhead than
// LeafHash as it uses its state again. The zero LeafHasher is ready.
type LeafHasher struct {
	h   hash.Hash
	buf []byte
	sum Hash
}

// Hash is LeafHash.
func (l *LeafHasher) Hash(name, val []byte) Hash {
	if l.h == nil {
		l.h = sha256.New()
	}
	// SHA256(0x00 || be32 len(name) || name || value)
	b := binary.BigEndian.AppendUint32(append(l.buf[:0], 0x00), uint32(len(name)))
	l.buf = append(append(b, name...), val...)
	l.h.Reset()
	l.h.Write(l.buf)
	l.h.Sum(l.sum[:0])
	return l.sum
}

// Fold is the running digest of a list in RFC 6962 shape. The zero Fold is the
// empty list. It holds one digest for each bit of its length.
type Fold struct {
	n     uint64
	spine []Hash    // roots of the full subtrees, largest first
	h     hash.Hash // used again for each node; nil at first
	buf   [65]byte  // 0x01 || left || right
}

// Len is the length of the list.
func (f *Fold) Len() uint64 { return f.n }

// Reset empties the list.
func (f *Fold) Reset() { f.n, f.spine = 0, f.spine[:0] }

// Clone returns an independent copy.
func (f *Fold) Clone() Fold { return Fold{n: f.n, spine: slices.Clone(f.spine)} }

// Set makes f an independent copy of g.
func (f *Fold) Set(g *Fold) { f.n, f.spine = g.n, append(f.spine[:0], g.spine...) }

// Add appends d.
func (f *Fold) Add(d Hash) {
	f.spine = append(f.spine, d)
	for k := f.n; k&1 == 1; k >>= 1 {
		f.merge()
	}
	f.n++
}

// merge makes one digest of the last two on the spine, as NodeHash does.
func (f *Fold) merge() {
	if f.h == nil {
		f.h = sha256.New()
		f.buf[0] = 0x01
	}
	last := len(f.spine) - 1
	left := &f.spine[last-1]
	copy(f.buf[1:], left[:])
	copy(f.buf[33:], f.spine[last][:])
	f.h.Reset()
	f.h.Write(f.buf[:])
	f.h.Sum(left[:0])
	f.spine = f.spine[:last]
}

// Sum is the digest of the list; zero if it is empty.
func (f *Fold) Sum() Hash {
	if f.n == 0 {
		return Hash{}
	}
	last := len(f.spine) - 1
	d := f.spine[last]
	for i := last - 1; i >= 0; i-- {
		d = NodeHash(f.spine[i], d)
	}
	return d
}

// Chunk is one chunk of one level.
type Chunk struct {
	Level  int
	First  []byte // name of its first leaf; nil for the first chunk of the level
	Digest Hash
}

// Hasher computes the root of a sorted stream of pairs, in memory that grows
// with the logarithm of their number.
type Hasher struct {
	count  uint64
	last   []byte
	levels []level
	emit   func(Chunk) error // nil: chunks are of no interest
}

// level is the open chunk of one level.
type level struct {
	fold   Fold
	first  []byte // its first leaf's name, if chunks are emitted
	height int    // its first leaf's height
	closed bool   // an earlier chunk of this level is closed
}

// NewHasher returns a Hasher of the empty tree.
func NewHasher() *Hasher { return &Hasher{} }

// NewChunkHasher returns a Hasher that hands over each chunk when it is
// complete; within a level in order. Finish hands over the last ones.
func NewChunkHasher(emit func(Chunk) error) *Hasher { return &Hasher{emit: emit} }

// Count is the number of pairs added.
func (h *Hasher) Count() uint64 { return h.count }

// Add appends a pair; its name must be above the last one, or Add returns
// ErrOrder.
func (h *Hasher) Add(name, val []byte) error {
	if err := CheckPair(name, val); err != nil {
		return err
	}
	return h.AddLeaf(name, LeafHash(name, val))
}

// AddLeaf is Add for a caller that has checked the pair and made its LeafHash,
// perhaps on another processor.
func (h *Hasher) AddLeaf(name []byte, d Hash) error {
	if h.count > 0 && bytes.Compare(name, h.last) <= 0 {
		return ErrOrder
	}
	h.last = append(h.last[:0], name...)
	h.count++
	return h.push(0, d, Height(d), name)
}

// push appends an item to the open chunk of level l, or begins a new one.
func (h *Hasher) push(l int, d Hash, height int, first []byte) error {
	if l == len(h.levels) {
		h.levels = append(h.levels, level{})
	}
	if height > l && h.levels[l].fold.Len() > 0 {
		if err := h.close(l); err != nil {
			return err
		}
	}
	lv := &h.levels[l]
	if lv.fold.Len() == 0 {
		lv.height = height
		if h.emit != nil {
			lv.first = bytes.Clone(first)
		}
	}
	lv.fold.Add(d)
	return nil
}

// close ends the open chunk of level l, which becomes an item of level l+1.
func (h *Hasher) close(l int) error {
	d, err := h.seal(l)
	if err != nil {
		return err
	}
	lv := &h.levels[l]
	lv.fold.Reset()
	lv.closed = true
	return h.push(l+1, d, lv.height, lv.first)
}

// seal hands over the open chunk of level l and returns its digest.
func (h *Hasher) seal(l int) (Hash, error) {
	lv := &h.levels[l]
	d := lv.fold.Sum()
	if h.emit == nil {
		return d, nil
	}
	c := Chunk{Level: l, First: lv.first, Digest: d}
	if !lv.closed {
		c.First = nil
	}
	return d, h.emit(c)
}

// Finish hands over the chunks still open, the top one last, and returns the
// root and the number of levels. The Hasher is then used up.
func (h *Hasher) Finish() (Hash, int, error) {
	if h.count == 0 {
		return EmptyRoot(), 0, nil
	}
	l := 0
	for ; h.levels[l].closed; l++ {
		if err := h.close(l); err != nil {
			return Hash{}, 0, err
		}
	}
	top, err := h.seal(l)
	return RootHash(h.count, top), l + 1, err
}

// Root is the root of the pairs added so far; more may follow.
func (h *Hasher) Root() Hash {
	c := Hasher{count: h.count, levels: slices.Clone(h.levels)}
	for i := range c.levels {
		c.levels[i].fold = h.levels[i].fold.Clone()
	}
	root, _, _ := c.Finish() // without emit there is nothing to go wrong
	return root
}
