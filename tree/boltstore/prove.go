package boltstore

import (
	"bytes"
	"fmt"
	"slices"
	"sort"

	bolt "go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/tree"
)

// Prove proves that name is in the tree or that it is not, against the stored
// root. It reads the chunks on the way only.
func (s *Store) Prove(name []byte) (p tree.Proof, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		p, _, err = s.prove(tx, nil, func(r *reader) window { return r.around(name) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("prove %q: %w", name, err)
	}
	return p, nil
}

// ViewNames proves of each name that it is in the tree or that it is not, as of
// one moment, against a root that the caller knows, and shows him each proof and
// what that shows. An error of show ends it and is returned.
func (s *Store) ViewNames(root tree.Hash, names [][]byte, show func(tree.Proof, *tree.View) error) error {
	return s.view(func(tx *bolt.Tx) error {
		for _, n := range names {
			p, v, err := s.prove(tx, &root, func(r *reader) window { return r.around(n) })
			if err != nil {
				return fmt.Errorf("prove %q: %w", n, err)
			}
			if err := show(p, v); err != nil {
				return err
			}
		}
		return nil
	})
}

// ProveRange proves one page of the pairs with from <= name < to, the first
// limit of them at most; a nil `to` is no bound. A page may hold fewer; see
// tree.Pager. tree.View.Page says where the next one begins.
func (s *Store) ProveRange(from, to []byte, limit int) (p tree.Proof, err error) {
	p, _, err = s.viewRange(nil, from, to, limit)
	return p, err
}

// ViewRange is ProveRange for a caller who knows the root, against which it
// checks the proof, and wants to see what that shows.
func (s *Store) ViewRange(root tree.Hash, from, to []byte, limit int) (tree.Proof, *tree.View, error) {
	return s.viewRange(&root, from, to, limit)
}

func (s *Store) viewRange(root *tree.Hash, from, to []byte, limit int) (p tree.Proof, v *tree.View, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		p, v, err = s.prove(tx, root, func(r *reader) window { return r.page(span{from, to}, limit) })
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("prove from %q: %w", from, err)
	}
	return p, v, nil
}

// prove makes the proof that shows the leaves of a window, and checks it against
// root; nil: the stored one.
func (s *Store) prove(tx *bolt.Tx, root *tree.Hash, choose func(*reader) window) (tree.Proof, *tree.View, error) {
	r, err := newReader(tx)
	if err != nil {
		return nil, nil, err
	}
	r.outlines = &s.outlines
	r.scratch, _ = s.scratch.Get().(*scratch)
	if r.scratch == nil {
		r.scratch = &scratch{}
	}
	defer s.scratch.Put(r.scratch)
	p := tree.NewProof(r.state.count)
	if r.state.count > 0 {
		top, err := r.top()
		if err == nil {
			p, err = r.show(p, r.state.levels-1, span{}, top, choose(r))
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if root == nil {
		root = &r.state.root
	}
	v, err := tree.Verify(*root, p)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return p, v, nil
}

// around returns the leaf called name twice, or its neighbours.
func (r *reader) around(name []byte) window {
	c := r.leaves.Cursor()
	if k, _ := seek(c, name); bytes.Equal(k, name) {
		return window{k, k}
	}
	return r.neighbours(name)
}

// neighbours are the last leaf below name and the first not below; at the ends
// of the tree both are the one there is.
func (r *reader) neighbours(name []byte) window {
	c := r.leaves.Cursor()
	hi, _ := seek(c, name)
	if hi == nil {
		lo, _ := c.Last()
		return window{lo, lo}
	}
	lo, _ := c.Prev()
	if lo == nil {
		lo = hi
	}
	return window{lo, hi}
}

// page returns the first and last leaf to show for a page of s.
func (r *reader) page(s span, limit int) window {
	w := r.neighbours(s.from)
	if bytes.Equal(w.hi, s.from) {
		w.lo = w.hi
	}
	g := tree.NewPager(limit)
	c := r.leaves.Cursor()
	for k, v := seek(c, s.from); k != nil; k, v = c.Next() {
		if !s.before(k) {
			return window{w.lo, k} // the leaf after the range
		}
		if !g.Take(k, v) {
			break
		}
		w.hi = k
	}
	return w
}

// scratch is memory for one proof, used again for others.
type scratch [maxLevels]struct {
	items   []item
	digests []tree.Hash
}

// top is the stored digest of the top chunk.
func (r *reader) top() (tree.Hash, error) {
	b, err := r.chunks(r.state.levels - 1)
	if err != nil {
		return tree.Hash{}, err
	}
	it, err := chunkRow(chunkKey(nil), b.Get(chunkKey(nil)))
	return it.digest, err
}

// window is what a proof shows: the leaves lo to hi.
type window struct{ lo, hi []byte }

// within is the range of the items that hold the window.
func (w window) within(items []item) (first, end int, err error) {
	above := func(name []byte) int {
		return sort.Search(len(items), func(i int) bool { return bytes.Compare(items[i].name, name) > 0 })
	}
	first, end = max(above(w.lo)-1, 0), above(w.hi)
	if first >= end {
		return 0, 0, fmt.Errorf("%w: chunks and leaves disagree", ErrDamaged)
	}
	return first, end, nil
}

// show adds the chunk of level l over s, whose digest is chunk, to p, pruned to
// the window w.
func (r *reader) show(p tree.Proof, l int, s span, chunk tree.Hash, w window) (tree.Proof, error) {
	if l == 0 && w.covers(s) {
		return r.showAll(p, s)
	}
	if o := r.outlines.get(chunkID{l, chunk}); o != nil {
		return r.showOutline(p, l, s, o, 0, len(o[len(o)-1].starts), w)
	}
	m := &r.scratch[l]
	if err := r.gather(l, s); err != nil {
		return nil, err
	}
	if len(m.items) <= outlineFrom {
		return r.showItems(p, l, s, w)
	}
	o := outlineOf(m.items, m.digests)
	m.items, m.digests = nil, nil // too large to keep
	if o.sum() != chunk {
		return nil, fmt.Errorf("%w: chunk %q of level %d", ErrDamaged, s.from, l)
	}
	r.outlines.put(chunkID{l, chunk}, o)
	return r.showOutline(p, l, s, o, 0, len(o[len(o)-1].starts), w)
}

// covers says whether all that is in s is shown.
func (w window) covers(s span) bool {
	return s.from != nil && bytes.Compare(w.lo, s.from) <= 0 && s.to != nil && bytes.Compare(s.to, w.hi) <= 0
}

// showAll shows all leaves in s, for which it needs no digest of them.
func (r *reader) showAll(p tree.Proof, s span) (tree.Proof, error) {
	m := &r.scratch[0]
	m.items = m.items[:0]
	var it item
	row := func(k, v []byte) error {
		it.name, it.val = k, v
		return checkLeaf(k, v)
	}
	err := scan(r.leaves.Cursor(), s.from, true, s, &it, row, func(it *item) error {
		m.items = append(m.items, *it)
		return nil
	})
	if err != nil {
		return nil, err
	}
	m.digests = slices.Grow(m.digests[:0], len(m.items))[:len(m.items)]
	return tree.AppendChunk(p, m.digests, 0, len(m.items), func(p tree.Proof, i int) (tree.Proof, error) {
		return tree.AppendLeaf(p, m.items[i].name, m.items[i].val), nil
	})
}

// gather reads the items of level l in s into the scratch of that level.
func (r *reader) gather(l int, s span) error {
	m := &r.scratch[l]
	m.items, m.digests = m.items[:0], m.digests[:0]
	return r.items(l, s, func(it *item) error {
		m.items, m.digests = append(m.items, *it), append(m.digests, it.digest)
		return nil
	})
}

// showOutline shows the runs lo to hi-1 of the uppermost tier of o; of the items
// it reads only the blocks that the window touches.
func (r *reader) showOutline(p tree.Proof, l int, s span, o outline, lo, hi int, w window) (tree.Proof, error) {
	t, below := o[len(o)-1], o[:len(o)-1]
	starts := t.starts[lo:hi]
	first, end, err := w.within(starts)
	if err != nil {
		return nil, err
	}
	return tree.AppendChunk(p, t.digests[lo:hi], first, end, func(p tree.Proof, i int) (tree.Proof, error) {
		sub := s.part(starts, i)
		if len(below) == 0 {
			return r.showBlock(p, l, sub, w)
		}
		from := (lo + i) * outlineBlock
		to := min(from+outlineBlock, len(below[len(below)-1].starts))
		return r.showOutline(p, l, sub, below, from, to, w)
	})
}

// showBlock shows one block of the items of level l.
func (r *reader) showBlock(p tree.Proof, l int, s span, w window) (tree.Proof, error) {
	if err := r.gather(l, s); err != nil {
		return nil, err
	}
	if n := len(r.scratch[l].items); n > outlineBlock {
		return nil, fmt.Errorf("%w: %d items in a block", ErrDamaged, n)
	}
	return r.showItems(p, l, s, w)
}

// showItems shows the items gathered, which are all in s.
func (r *reader) showItems(p tree.Proof, l int, s span, w window) (tree.Proof, error) {
	items, digests := r.scratch[l].items, r.scratch[l].digests
	first, end, err := w.within(items)
	if err != nil {
		return nil, err
	}
	return tree.AppendChunk(p, digests, first, end, func(p tree.Proof, i int) (tree.Proof, error) {
		if l == 0 {
			return tree.AppendLeaf(p, items[i].name, items[i].val), nil
		}
		return r.show(p, l-1, s.part(items, i), items[i].digest, w)
	})
}
