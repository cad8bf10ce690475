package boltstore

import (
	"bytes"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/tree"
)

// reader reads one transaction. Its results lie in the mapped file: they are
// to be used only under guard and before the transaction ends.
type reader struct {
	tx     *bolt.Tx
	leaves *bolt.Bucket
	state  state
	fold   tree.Fold // for whoever has the reader
	leaf   tree.LeafHasher

	scratch  *scratch // while it makes a proof
	outlines *outlines
}

func newReader(tx *bolt.Tx) (*reader, error) {
	r := &reader{tx: tx}
	return r, r.init()
}

func (r *reader) init() (err error) {
	if r.state, err = getState(r.tx); err != nil {
		return err
	}
	if r.leaves = r.tx.Bucket(leavesBucket); r.leaves == nil {
		return fmt.Errorf("%w: no leaves", ErrDamaged)
	}
	return nil
}

func (r *reader) chunks(l int) (*bolt.Bucket, error) {
	b := r.tx.Bucket(chunksBucket(l))
	if b == nil {
		return nil, fmt.Errorf("%w: no chunks of level %d", ErrDamaged, l)
	}
	return b, nil
}

// item is a leaf of the tree (level 0), or a chunk of the level below.
type item struct {
	name   []byte // nil: the first chunk of its level
	val    []byte // of a leaf
	digest tree.Hash
}

// chunkKey is the key of the chunk that begins with name, nil for the first.
func chunkKey(name []byte) []byte { return appendKey(nil, name) }

func appendKey(key, name []byte) []byte {
	if name == nil {
		return append(key, 0)
	}
	return append(append(key, 1), name...)
}

// chunkRow undoes chunkKey and checks the row's form.
func chunkRow(k, v []byte) (it item, err error) {
	err = it.chunkRow(k, v)
	return it, err
}

func (it *item) chunkRow(k, v []byte) error {
	if len(v) != len(tree.Hash{}) || !(len(k) == 1 && k[0] == 0 || len(k) > 1 && k[0] == 1) {
		return fmt.Errorf("%w: bad chunk row", ErrDamaged)
	}
	it.name, it.digest = nil, tree.Hash(v)
	if k[0] == 1 {
		it.name = k[1:]
	}
	return nil
}

// checkLeaf checks a leaf's form; a nil value is a nested bucket.
func checkLeaf(k, v []byte) error {
	if err := tree.CheckPair(k, v); err != nil || v == nil {
		return fmt.Errorf("%w: bad leaf row", ErrDamaged)
	}
	return nil
}

func (it *item) leafRow(k, v []byte, h *tree.LeafHasher) error {
	if err := checkLeaf(k, v); err != nil {
		return err
	}
	it.name, it.val, it.digest = k, v, h.Hash(k, v)
	return nil
}

// span is a run of names, from <= name < to; nil is no bound.
type span struct{ from, to []byte }

// part is the span of the i-th of the items that make up s.
func (s span) part(items []item, i int) span {
	sub := span{items[i].name, s.to}
	if i+1 < len(items) {
		sub.to = items[i+1].name
	}
	return sub
}

func (s span) before(name []byte) bool { return s.to == nil || bytes.Compare(name, s.to) < 0 }

// items calls fn for each item of level l that begins within s, in order. The
// first one must begin exactly at s.from. The item is used again for the next.
func (r *reader) items(l int, s span, fn func(*item) error) error {
	var it item
	if l == 0 {
		row := func(k, v []byte) error { return it.leafRow(k, v, &r.leaf) }
		return scan(r.leaves.Cursor(), s.from, s.from != nil, s, &it, row, fn)
	}
	b, err := r.chunks(l - 1)
	if err != nil {
		return err
	}
	return scan(b.Cursor(), chunkKey(s.from), true, s, &it, it.chunkRow, fn)
}

// scan reads rows from key on, each by row into it; exact means that there must
// be one of that key. Names that do not increase are damage.
func scan(c *bolt.Cursor, key []byte, exact bool, s span, it *item, row func(k, v []byte) error, fn func(*item) error) error {
	var last []byte
	first := true
	for k, v := seek(c, key); k != nil; k, v = c.Next() {
		if first && exact && !bytes.Equal(k, key) {
			break
		}
		if err := row(k, v); err != nil {
			return err
		}
		if !first && bytes.Compare(last, it.name) >= 0 {
			return fmt.Errorf("%w: %w", ErrDamaged, tree.ErrOrder)
		}
		if !s.before(it.name) {
			break
		}
		if err := fn(it); err != nil {
			return err
		}
		first, last = false, it.name
	}
	if first {
		return fmt.Errorf("%w: no row %q", ErrDamaged, s.from)
	}
	return nil
}

// seek is Seek that takes an empty key for the beginning.
func seek(c *bolt.Cursor, key []byte) (k, v []byte) {
	if len(key) == 0 {
		return c.First()
	}
	return c.Seek(key)
}

// place is how far a walk has come.
type place struct {
	from  []byte // where the next read begins
	after bool   // from itself is read already
	last  bool   // nothing is left
}

// read fills b with the next pairs. What it copied before an error is good.
func (p *place) read(tx *bolt.Tx, b *batch) error {
	r, err := newReader(tx)
	if err != nil {
		return err
	}
	c := r.leaves.Cursor()
	k, v := seek(c, p.from)
	if p.after && bytes.Equal(k, p.from) {
		k, v = c.Next()
	}
	for ; k != nil && !b.full(); k, v = c.Next() {
		if err := p.pass(k, v); err != nil {
			return err
		}
		b.add(k, v)
	}
	p.last = k == nil
	return nil
}

// pass checks the next row.
func (p *place) pass(k, v []byte) error {
	if err := checkLeaf(k, v); err != nil {
		return err
	}
	if order := bytes.Compare(p.from, k); order > 0 || order == 0 && p.after {
		return fmt.Errorf("%w: %w", ErrDamaged, tree.ErrOrder)
	}
	p.from, p.after = append(p.from[:0], k...), true
	return nil
}
