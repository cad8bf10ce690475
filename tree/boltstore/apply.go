package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/tree"
)

// A transaction of Apply takes at most so many pairs, and so many bytes.
const partRows, partBytes = 1 << 15, 1 << 25

// Apply adds pairs, in any order; they are on disk when it returns. A pair that
// is there already changes nothing. If a name has another value, there or among
// pairs, Apply returns ErrBound and adds nothing. It recomputes only the chunks
// that it touches, and returns ErrDamaged rather than build on one whose old
// digest is wrong.
//
// Up to 32768 pairs of 32 MiB are one transaction: after a crash all of them
// are there or none. More are added in order, in parts, so that memory stays
// bounded: after a crash, or an error other than ErrBound, the file may hold
// the first of them, and is the whole tree of what it holds. Apply with the
// same pairs again adds the rest.
func (s *Store) Apply(ctx context.Context, pairs []tree.Pair) (root tree.Hash, count uint64, err error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	st, err := s.apply(ctx, pairs)
	if err != nil {
		return tree.Hash{}, 0, fmt.Errorf("add names: %w", err)
	}
	return st.root, st.count, nil
}

func (s *Store) apply(ctx context.Context, pairs []tree.Pair) (st state, err error) {
	if pairs, err = sorted(pairs); err != nil {
		return st, err
	}
	part, rest := s.cut(pairs)
	if len(rest) > 0 {
		if err := s.checkBound(ctx, pairs); err != nil {
			return st, err
		}
	}
	st, err = s.applyPart(ctx, part)
	for err == nil && len(rest) > 0 {
		part, rest = s.cut(rest)
		st, err = s.applyPart(ctx, part)
	}
	return st, err
}

// sorted returns pairs in order and without repetition.
func sorted(pairs []tree.Pair) ([]tree.Pair, error) {
	for _, p := range pairs {
		if err := tree.CheckPair(p.Name, p.Val); err != nil {
			return nil, err
		}
	}
	byName := func(a, b tree.Pair) int { return bytes.Compare(a.Name, b.Name) }
	pairs = slices.Clone(pairs)
	if !slices.IsSortedFunc(pairs, byName) {
		slices.SortFunc(pairs, byName)
	}
	for i := 1; i < len(pairs); i++ {
		a, b := pairs[i-1], pairs[i]
		if bytes.Equal(a.Name, b.Name) && !bytes.Equal(a.Val, b.Val) {
			return nil, fmt.Errorf("%w: %q", ErrBound, a.Name)
		}
	}
	return slices.CompactFunc(pairs, func(a, b tree.Pair) bool { return bytes.Equal(a.Name, b.Name) }), nil
}

// cut splits off what is added in one transaction.
func (s *Store) cut(pairs []tree.Pair) (part, rest []tree.Pair) {
	n := 0
	for size := 0; n < len(pairs) && n < s.partRows && size < partBytes; n++ {
		size += len(pairs[n].Name) + len(pairs[n].Val)
	}
	return pairs[:n], pairs[n:]
}

// checkBound returns ErrBound if any of the names has another value.
func (s *Store) checkBound(ctx context.Context, pairs []tree.Pair) error {
	rs, err := s.snapshot()
	if err != nil {
		return err
	}
	defer rs.close()
	if err := rs.init(); err != nil {
		return err
	}
	blocks := slices.Collect(slices.Chunk(pairs, planItems))
	return rs.each(ctx, len(blocks), func(r *reader, i int) error {
		for _, p := range blocks[i] {
			if v := r.leaves.Get(p.Name); v != nil && !bytes.Equal(v, p.Val) {
				return fmt.Errorf("%w: %q", ErrBound, p.Name)
			}
		}
		return nil
	})
}

// errNothingNew rolls back a transaction that would change nothing.
var errNothingNew = errors.New("nothing new")

func (s *Store) applyPart(ctx context.Context, pairs []tree.Pair) (st state, err error) {
	err = s.update(func(tx *bolt.Tx) (err error) {
		st, err = s.applyTo(ctx, tx, pairs)
		return err
	})
	if errors.Is(err, errNothingNew) {
		err = nil
	}
	return st, err
}

// applyTo puts the pairs while their digests are planned on a snapshot of what
// was there before.
func (s *Store) applyTo(ctx context.Context, tx *bolt.Tx, pairs []tree.Pair) (state, error) {
	w, err := newReader(tx)
	if err != nil {
		return state{}, err
	}
	if len(pairs) == 0 {
		return w.state, errNothingNew
	}
	p, err := s.startPlan(ctx, pairs)
	if err != nil {
		return state{}, err
	}
	defer p.close()
	if err := w.putLeaves(ctx, pairs); err != nil {
		return state{}, err
	}
	if err := p.wait(); err != nil {
		return w.state, err
	}
	for l, chunks := range p.chunks {
		if err := w.putChunks(l, chunks); err != nil {
			return state{}, err
		}
	}
	return p.now, putState(tx, p.now)
}

// putLeaves puts all pairs; the plan finds those that were there.
func (r *reader) putLeaves(ctx context.Context, pairs []tree.Pair) error {
	if last, _ := r.leaves.Cursor().Last(); bytes.Compare(last, pairs[0].Name) < 0 {
		r.leaves.FillPercent = sortedFill
	}
	for i, p := range pairs {
		if i%planItems == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := r.leaves.Put(p.Name, notNil(p.Val)); err != nil {
			return fmt.Errorf("%w: %q: %w", ErrDamaged, p.Name, err)
		}
	}
	return nil
}

// notNil is for bbolt, which reads a nil value back as none.
func notNil(val []byte) []byte {
	if val == nil {
		return []byte{}
	}
	return val
}

// putChunks stores the digests of changed chunks of level l.
func (r *reader) putChunks(l int, chunks []change) error {
	b, err := r.tx.CreateBucketIfNotExists(chunksBucket(l))
	if err != nil {
		return err
	}
	for i := range chunks {
		c := &chunks[i]
		if err := b.Put(chunkKey(c.name), c.now[:]); err != nil {
			return fmt.Errorf("%w: chunk %q: %w", ErrDamaged, c.name, err)
		}
	}
	return nil
}
