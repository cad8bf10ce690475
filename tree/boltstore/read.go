package boltstore

import (
	"bytes"
	"fmt"
	"sort"

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

	scratch *scratch // while it makes a proof
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
func chunkRow(k, v []byte) (item, error) {
	if len(v) != len(tree.Hash{}) || !(len(k) == 1 && k[0] == 0 || len(k) > 1 && k[0] == 1) {
		return item{}, fmt.Errorf("%w: bad chunk row", ErrDamaged)
	}
	it := item{digest: tree.Hash(v)}
	if k[0] == 1 {
		it.name = k[1:]
	}
	return it, nil
}

// checkLeaf checks a leaf's form; a nil value is a nested bucket.
func checkLeaf(k, v []byte) error {
	if err := tree.CheckPair(k, v); err != nil || v == nil {
		return fmt.Errorf("%w: bad leaf row", ErrDamaged)
	}
	return nil
}

func leafRow(k, v []byte) (item, error) {
	if err := checkLeaf(k, v); err != nil {
		return item{}, err
	}
	return item{name: k, val: v, digest: tree.LeafHash(k, v)}, nil
}

// span is a run of names, from <= name < to; nil is no bound.
type span struct{ from, to []byte }

func (s span) before(name []byte) bool { return s.to == nil || bytes.Compare(name, s.to) < 0 }

// items calls fn for each item of level l that begins within s, in order. The
// first one must begin exactly at s.from.
func (r *reader) items(l int, s span, fn func(item) error) error {
	if l == 0 {
		return scan(r.leaves.Cursor(), s.from, s.from != nil, s, leafRow, fn)
	}
	b, err := r.chunks(l - 1)
	if err != nil {
		return err
	}
	return scan(b.Cursor(), chunkKey(s.from), true, s, chunkRow, fn)
}

// scan reads rows from key on; exact means that there must be one of that key.
// Names that do not increase are damage.
func scan(c *bolt.Cursor, key []byte, exact bool, s span, row func(k, v []byte) (item, error), fn func(item) error) error {
	var last []byte
	first := true
	for k, v := seek(c, key); k != nil; k, v = c.Next() {
		if first && exact && !bytes.Equal(k, key) {
			break
		}
		it, err := row(k, v)
		if err != nil {
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

// Prove proves that name is in the tree or that it is not, against the stored
// root. It reads the chunks on the way only.
func (s *Store) Prove(name []byte) (p tree.Proof, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		p, err = s.prove(tx, func(r *reader) (lo, hi []byte) { return r.around(name) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("prove %q: %w", name, err)
	}
	return p, nil
}

// ProveRange proves one page of the pairs with from <= name < to, the first
// limit of them at most; a nil `to` is no bound. A page may hold fewer; see
// tree.Pager. tree.View.Page says where the next one begins.
func (s *Store) ProveRange(from, to []byte, limit int) (p tree.Proof, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		p, err = s.prove(tx, func(r *reader) (lo, hi []byte) { return r.page(span{from, to}, limit) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("prove from %q: %w", from, err)
	}
	return p, nil
}

// prove makes and checks the proof that shows the leaves lo to hi.
func (s *Store) prove(tx *bolt.Tx, window func(*reader) (lo, hi []byte)) (tree.Proof, error) {
	r, err := newReader(tx)
	if err != nil {
		return nil, err
	}
	r.scratch, _ = s.scratch.Get().(*scratch)
	if r.scratch == nil {
		r.scratch = &scratch{}
	}
	defer s.scratch.Put(r.scratch)
	p := tree.NewProof(r.state.count)
	if r.state.count > 0 {
		lo, hi := window(r)
		if p, err = r.show(p, r.state.levels-1, span{}, lo, hi); err != nil {
			return nil, err
		}
	}
	if _, err := tree.Verify(r.state.root, p); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return p, nil
}

// around returns the leaf called name twice, or its neighbours.
func (r *reader) around(name []byte) (lo, hi []byte) {
	c := r.leaves.Cursor()
	if k, _ := seek(c, name); bytes.Equal(k, name) {
		return k, k
	}
	return r.neighbours(name)
}

// neighbours are the last leaf below name and the first not below; at the ends
// of the tree both are the one there is.
func (r *reader) neighbours(name []byte) (lo, hi []byte) {
	c := r.leaves.Cursor()
	hi, _ = seek(c, name)
	if hi == nil {
		lo, _ = c.Last()
		return lo, lo
	}
	if lo, _ = c.Prev(); lo == nil {
		lo = hi
	}
	return lo, hi
}

// page returns the first and last leaf to show for a page of s.
func (r *reader) page(s span, limit int) (lo, hi []byte) {
	lo, hi = r.neighbours(s.from)
	if bytes.Equal(hi, s.from) {
		lo = hi
	}
	g := tree.NewPager(limit)
	c := r.leaves.Cursor()
	for k, v := seek(c, s.from); k != nil; k, v = c.Next() {
		if !s.before(k) {
			return lo, k // the leaf after the range
		}
		if !g.Take(k, v) {
			break
		}
		hi = k
	}
	return lo, hi
}

// scratch is memory for one proof, used again for others.
type scratch [maxLevels]struct {
	items   []item
	digests []tree.Hash
}

// show adds the chunk of level l over s to p, pruned to the leaves lo to hi.
func (r *reader) show(p tree.Proof, l int, s span, lo, hi []byte) (tree.Proof, error) {
	m := &r.scratch[l]
	m.items, m.digests = m.items[:0], m.digests[:0]
	err := r.items(l, s, func(it item) error {
		m.items, m.digests = append(m.items, it), append(m.digests, it.digest)
		return nil
	})
	if err != nil {
		return nil, err
	}
	items, digests := m.items, m.digests
	above := func(name []byte) int {
		return sort.Search(len(items), func(i int) bool { return bytes.Compare(items[i].name, name) > 0 })
	}
	first, end := max(above(lo)-1, 0), above(hi)
	if first >= end {
		return nil, fmt.Errorf("%w: chunks and leaves disagree", ErrDamaged)
	}
	return tree.AppendChunk(p, digests, first, end, func(p tree.Proof, i int) (tree.Proof, error) {
		if l == 0 {
			return tree.AppendLeaf(p, items[i].name, items[i].val), nil
		}
		sub := span{items[i].name, s.to}
		if i+1 < len(items) {
			sub.to = items[i+1].name
		}
		return r.show(p, l-1, sub, lo, hi)
	})
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
