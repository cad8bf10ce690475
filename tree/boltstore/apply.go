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

// Apply adds pairs, in any order, in one transaction that is on disk when it
// returns; after a crash all of them are there or none. A pair that is there
// already changes nothing. If a name has another value, there or among pairs,
// Apply returns ErrBound and adds nothing. It recomputes the chunks that it
// touches only, and returns ErrDamaged rather than build on one whose old
// digest is wrong.
func (s *Store) Apply(ctx context.Context, pairs []tree.Pair) (root tree.Hash, count uint64, err error) {
	pairs, err = sorted(pairs)
	if err != nil {
		return tree.Hash{}, 0, fmt.Errorf("add names: %w", err)
	}
	var st state
	err = s.update(func(tx *bolt.Tx) error {
		st, err = apply(ctx, tx, pairs)
		return err
	})
	if err != nil && !errors.Is(err, errNothingNew) {
		return tree.Hash{}, 0, fmt.Errorf("add names: %w", err)
	}
	return st.root, st.count, nil
}

// errNothingNew rolls back a transaction that would change nothing.
var errNothingNew = errors.New("nothing new")

// sorted returns pairs in order and without repetition.
func sorted(pairs []tree.Pair) ([]tree.Pair, error) {
	for _, p := range pairs {
		if err := tree.CheckPair(p.Name, p.Val); err != nil {
			return nil, err
		}
	}
	pairs = slices.Clone(pairs)
	slices.SortFunc(pairs, func(a, b tree.Pair) int { return bytes.Compare(a.Name, b.Name) })
	for i := 1; i < len(pairs); i++ {
		a, b := pairs[i-1], pairs[i]
		if bytes.Equal(a.Name, b.Name) && !bytes.Equal(a.Val, b.Val) {
			return nil, fmt.Errorf("%w: %q", ErrBound, a.Name)
		}
	}
	return slices.CompactFunc(pairs, func(a, b tree.Pair) bool { return bytes.Equal(a.Name, b.Name) }), nil
}

// change is an item of some level that is new or has a new digest.
type change struct {
	name   []byte // nil: the first chunk of its level
	now    tree.Hash
	height int // of its first leaf; known if the item is new
	fresh  bool
	old    tree.Hash // unless fresh
}

func apply(ctx context.Context, tx *bolt.Tx, pairs []tree.Pair) (state, error) {
	r, err := newReader(tx)
	if err != nil {
		return state{}, err
	}
	changes, err := r.putLeaves(pairs)
	if err != nil {
		return state{}, err
	}
	if len(changes) == 0 {
		return r.state, errNothingNew
	}
	now := state{count: r.state.count + uint64(len(changes))}
	for top := false; !top; now.levels++ {
		if changes, err = r.level(ctx, now.levels, changes); err != nil {
			return state{}, err
		}
		if top, err = r.single(now.levels); err != nil {
			return state{}, err
		}
	}
	now.root = tree.RootHash(now.count, changes[0].now)
	return now, putState(tx, now)
}

// putLeaves stores the pairs that are new and returns them as changes.
func (r *reader) putLeaves(pairs []tree.Pair) ([]change, error) {
	if last, _ := r.leaves.Cursor().Last(); len(pairs) > 0 && bytes.Compare(last, pairs[0].Name) < 0 {
		r.leaves.FillPercent = sortedFill
	}
	var changes []change
	for _, p := range pairs {
		v := r.leaves.Get(p.Name)
		switch {
		case v == nil:
			d := tree.LeafHash(p.Name, p.Val)
			changes = append(changes, change{name: p.Name, now: d, height: tree.Height(d), fresh: true})
			if err := r.leaves.Put(p.Name, notNil(p.Val)); err != nil {
				return nil, err
			}
		case !bytes.Equal(v, p.Val):
			return nil, fmt.Errorf("%w: %q", ErrBound, p.Name)
		}
	}
	return changes, nil
}

// notNil is for bbolt, which reads a nil value back as none.
func notNil(val []byte) []byte {
	if val == nil {
		return []byte{}
	}
	return val
}

// level recomputes the chunks of level l that hold the changed items, and
// returns the chunks that changed.
func (r *reader) level(ctx context.Context, l int, items []change) (chunks []change, err error) {
	b, err := r.tx.CreateBucketIfNotExists(chunksBucket(l))
	if err != nil {
		return nil, err
	}
	for len(items) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, s, err := r.chunkOf(b, l, items[0].name)
		if err != nil {
			return nil, err
		}
		n := 1
		for n < len(items) && s.before(items[n].name) {
			n++
		}
		if chunks, err = r.split(l, c, s, items[:n], chunks); err != nil {
			return nil, err
		}
		items = items[n:]
	}
	return chunks, putChunks(b, chunks)
}

// chunkOf finds the chunk of level l that holds name, and its span.
func (r *reader) chunkOf(b *bolt.Bucket, l int, name []byte) (change, span, error) {
	if l >= r.state.levels {
		return change{fresh: true}, span{}, nil
	}
	c := b.Cursor()
	key := chunkKey(name)
	k, v := c.Seek(key)
	if k == nil {
		k, v = c.Last()
	} else if !bytes.Equal(k, key) {
		k, v = c.Prev()
	}
	it, err := chunkRow(k, v)
	if err != nil {
		return change{}, span{}, err
	}
	s := span{from: bytes.Clone(it.name)}
	if k, v := c.Next(); k != nil {
		next, err := chunkRow(k, v)
		if err != nil {
			return change{}, span{}, err
		}
		s.to = bytes.Clone(next.name)
	}
	return change{name: s.from, old: it.digest}, s, nil
}

// split recomputes one chunk c of level l: it may have become several, which
// it appends to chunks. What c was before must be what its row says.
func (r *reader) split(l int, c change, s span, items []change, chunks []change) ([]change, error) {
	sp := splitter{level: l, open: c, items: items, chunks: chunks}
	if err := r.items(l, s, sp.add); err != nil {
		return nil, err
	}
	if len(sp.items) > 0 {
		return nil, fmt.Errorf("%w: no row %q", ErrDamaged, sp.items[0].name)
	}
	sp.close()
	return sp.chunks, r.checkOld(l, c, &sp.old)
}

// checkOld compares what a chunk was with its row, and the top with the root.
func (r *reader) checkOld(l int, c change, old *tree.Fold) error {
	was := old.Sum()
	switch {
	case r.state.levels == 0:
		if l == 0 && old.Len() > 0 {
			return fmt.Errorf("%w: leaves in an empty tree", ErrDamaged)
		}
	case l < r.state.levels && was != c.old:
		return fmt.Errorf("%w: chunk %q of level %d", ErrDamaged, c.name, l)
	case l == r.state.levels-1 && tree.RootHash(r.state.count, was) != r.state.root:
		return fmt.Errorf("%w: stored root", ErrDamaged)
	}
	return nil
}

// splitter cuts the items of one former chunk into chunks.
type splitter struct {
	level  int
	items  []change // changed items to come
	now    tree.Fold
	old    tree.Fold // the former chunk,
	forked bool      // once it differs from now
	open   change    // the chunk that now digests
	chunks []change
}

func (sp *splitter) add(it item) error {
	c := sp.match(it)
	cut := c.height > sp.level && sp.now.Len() > 0
	if !sp.forked && (cut || c.fresh || c.old != it.digest) {
		sp.old, sp.forked = sp.now.Clone(), true
	}
	if sp.forked && !c.fresh {
		sp.old.Add(c.old)
	}
	if cut {
		sp.close()
		sp.open = change{name: bytes.Clone(it.name), height: c.height, fresh: true}
		sp.now.Reset()
	}
	sp.now.Add(it.digest)
	return nil
}

// match returns what changed about it. The height of a chunk that is not new
// does not matter: it begins the chunk above already, or it never does.
func (sp *splitter) match(it item) change {
	c := change{old: it.digest}
	if len(sp.items) > 0 && bytes.Equal(sp.items[0].name, it.name) {
		c = sp.items[0]
		sp.items = sp.items[1:]
	}
	if sp.level == 0 {
		c.height = tree.Height(it.digest)
	}
	return c
}

func (sp *splitter) close() {
	sp.open.now = sp.now.Sum()
	sp.chunks = append(sp.chunks, sp.open)
}

// putChunks stores the digests of changed chunks.
func putChunks(b *bolt.Bucket, chunks []change) error {
	for _, c := range chunks {
		if err := b.Put(chunkKey(c.name), bytes.Clone(c.now[:])); err != nil {
			return err
		}
	}
	return nil
}

// single says whether level l has one chunk only.
func (r *reader) single(l int) (bool, error) {
	b, err := r.chunks(l)
	if err != nil {
		return false, err
	}
	c := b.Cursor()
	if k, _ := c.First(); k == nil {
		return false, fmt.Errorf("%w: level %d is empty", ErrDamaged, l)
	}
	k, _ := c.Next()
	return k == nil, nil
}
