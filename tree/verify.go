package tree

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sort"
)

// View is what a verified proof shows: some leaves in order, and between which
// of them something is left out.
type View struct {
	count uint64
	pairs []Pair
	gaps  []bool // gaps[i]: leaves are left out before pairs[i]; the last: after all
}

// Verify checks p against root. Whoever trusts root may believe what the View
// says. It returns ErrInvalidProof for anything else than the one canonical
// encoding of a pruned tree with that root. It is pure.
func Verify(root Hash, p Proof) (*View, error) {
	v, got, err := parse(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidProof, err)
	}
	if got != root {
		return nil, fmt.Errorf("%w: root is %x, want %x", ErrInvalidProof, got[:4], root[:4])
	}
	return v, nil
}

// parse decodes a proof and computes its root.
func parse(p Proof) (*View, Hash, error) {
	if len(p) < 8 || len(p) > MaxProof {
		return nil, Hash{}, fmt.Errorf("%d bytes", len(p))
	}
	p = bytes.Clone(p)
	d := decoder{rest: p[8:]}
	v := &d.view
	v.count = binary.BigEndian.Uint64(p)
	if v.count == 0 {
		return d.end(Hash{})
	}
	top := d.item(0)
	return d.end(top)
}

// decoder reads items; after the first error it reads nothing more.
type decoder struct {
	rest   []byte
	view   View
	gap    bool // something was left out since the last leaf
	pruned uint64
	err    error
}

// end checks what only the whole proof can show.
func (d *decoder) end(top Hash) (*View, Hash, error) {
	v := &d.view
	v.gaps = append(v.gaps, d.gap)
	shown := uint64(len(v.pairs))
	switch {
	case d.err != nil:
	case len(d.rest) > 0:
		d.fail("%d bytes too many", len(d.rest))
	case shown+d.pruned > v.count || d.pruned == 0 && shown != v.count:
		d.fail("%d leaves and %d pruned subtrees, count %d", shown, d.pruned, v.count)
	}
	return v, RootHash(v.count, top), d.err
}

// item reads one item and returns its digest.
func (d *decoder) item(depth int) Hash {
	if depth > MaxDepth {
		d.fail("deeper than %d", MaxDepth)
	}
	tag := d.take(1)
	if d.err != nil {
		return Hash{}
	}
	switch tag[0] {
	case tagLeaf:
		return d.leaf()
	case tagBoth:
		left := d.item(depth + 1)
		return NodeHash(left, d.item(depth+1))
	case tagRight:
		left := d.prunedDigest()
		return NodeHash(left, d.item(depth+1))
	case tagLeft:
		left := d.item(depth + 1)
		return NodeHash(left, d.prunedDigest())
	}
	d.fail("unknown item %#x", tag[0])
	return Hash{}
}

func (d *decoder) leaf() Hash {
	lens := d.take(4)
	if d.err != nil {
		return Hash{}
	}
	name := d.take(int(binary.BigEndian.Uint16(lens)))
	val := d.take(int(binary.BigEndian.Uint16(lens[2:])))
	d.show(name, val)
	if d.err != nil {
		return Hash{}
	}
	return LeafHash(name, val)
}

// show appends a leaf to the view.
func (d *decoder) show(name, val []byte) {
	v := &d.view
	if d.err == nil {
		d.err = CheckPair(name, val)
	}
	if n := len(v.pairs); n > 0 && d.err == nil && bytes.Compare(v.pairs[n-1].Name, name) >= 0 {
		d.err = ErrOrder
	}
	v.pairs = append(v.pairs, Pair{Name: name, Val: val})
	v.gaps = append(v.gaps, d.gap)
	d.gap = false
}

func (d *decoder) prunedDigest() (h Hash) {
	copy(h[:], d.take(len(h)))
	d.gap = true
	d.pruned++
	return h
}

// take returns the next n bytes, nil after an error.
func (d *decoder) take(n int) []byte {
	if d.err == nil && n > len(d.rest) {
		d.fail("cut short")
	}
	if d.err != nil {
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

// Count is the number of pairs that the root claims. The root binds it, but a
// proof that leaves something out does not show it to be true.
func (v *View) Count() uint64 { return v.count }

// Lookup returns the value of name, or that the tree does not hold it. It
// returns ErrInvalidProof if the proof decides neither.
func (v *View) Lookup(name []byte) (val []byte, present bool, err error) {
	i := v.seek(name)
	if v.holds(i, name) {
		return v.pairs[i].Val, true, nil
	}
	if v.gaps[i] {
		return nil, false, fmt.Errorf("%w: does not decide %q", ErrInvalidProof, name)
	}
	return nil, false, nil
}

// Page returns all pairs of the tree with from <= name < next. If next is nil
// it is complete up to `to`, or to the end of the tree if that is nil. It
// returns ErrInvalidProof if the proof shows nothing complete that begins at
// from.
func (v *View) Page(from, to []byte) (pairs []Pair, next []byte, err error) {
	if to != nil && bytes.Compare(from, to) >= 0 {
		return nil, nil, nil
	}
	i := v.seek(from)
	if v.gaps[i] && !v.holds(i, from) {
		return nil, nil, fmt.Errorf("%w: leaves out names from %q on", ErrInvalidProof, from)
	}
	end := i
	for end < len(v.pairs) && below(v.pairs[end].Name, to) && (end == i || !v.gaps[end]) {
		end++
	}
	pairs = v.pairs[i:end:end]
	if v.gaps[end] && end > i {
		next = append(bytes.Clone(v.pairs[end-1].Name), 0)
	}
	if !below(next, to) {
		next = nil
	}
	return pairs, next, nil
}

// below says whether name is under the bound `to`, nil being no bound.
func below(name, to []byte) bool { return to == nil || bytes.Compare(name, to) < 0 }

// seek is the index of the first shown leaf not below name.
func (v *View) seek(name []byte) int {
	return sort.Search(len(v.pairs), func(i int) bool { return bytes.Compare(v.pairs[i].Name, name) >= 0 })
}

func (v *View) holds(i int, name []byte) bool {
	return i < len(v.pairs) && bytes.Equal(v.pairs[i].Name, name)
}
