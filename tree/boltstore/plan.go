package boltstore

import (
	"bytes"
	"context"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/tree"
)

// planItems is how many changed items one processor takes at a time.
const planItems = 128

// change is an item of some level that is new or has a new digest.
type change struct {
	name   []byte // nil: the first chunk of its level
	val    []byte // of a leaf
	now    tree.Hash
	height int // of its first leaf; known if the item is new
	fresh  bool
}

// plan computes on a snapshot what a batch changes in the digests, while the
// rows are being written.
type plan struct {
	ctx    context.Context
	rs     snapshot
	count  uint64     // new leaves
	chunks [][]change // what changes, by level
	now    state
	done   chan struct{}
	err    error
}

func (s *Store) startPlan(ctx context.Context, pairs []tree.Pair) (*plan, error) {
	rs, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	p := &plan{ctx: ctx, rs: rs, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = p.run(pairs)
	}()
	return p, nil
}

func (p *plan) wait() error {
	<-p.done
	return p.err
}

// close waits, and gives up the snapshot.
func (p *plan) close() {
	<-p.done
	p.rs.close()
}

func (p *plan) run(pairs []tree.Pair) error {
	if err := p.rs.init(); err != nil {
		return err
	}
	items := make([]change, len(pairs))
	for i, x := range pairs {
		items[i] = change{name: x.Name, val: x.Val, fresh: true}
	}
	was := p.rs[0].state
	for l := 0; ; l++ {
		chunks, err := p.level(l, items)
		if err != nil {
			return err
		}
		if len(chunks) == 0 {
			return errNothingNew
		}
		p.chunks = append(p.chunks, chunks)
		if l >= was.levels-1 && len(chunks) == 1 {
			break
		}
		items = chunks
	}
	p.now = state{count: was.count + p.count, levels: len(p.chunks)}
	p.now.root = tree.RootHash(p.now.count, p.chunks[p.now.levels-1][0].now)
	return nil
}

// level recomputes the chunks of level l that hold the changed items, and
// returns the chunks that changed.
func (p *plan) level(l int, items []change) (chunks []change, err error) {
	parts := make([]splitter, (len(items)+planItems-1)/planItems)
	err = p.rs.each(p.ctx, len(parts), func(r *reader, i int) error {
		sp := splitter{r: r, level: l}
		err := sp.run(items, i*planItems, min((i+1)*planItems, len(items)))
		parts[i].chunks, parts[i].inserted = sp.chunks, sp.inserted
		return err
	})
	for i := range parts {
		chunks = append(chunks, parts[i].chunks...)
		if l == 0 {
			p.count += parts[i].inserted
		}
	}
	return chunks, err
}

// splitter cuts the items of former chunks of one level, with those that are
// new, into chunks.
type splitter struct {
	r        *reader
	level    int
	probe    *bolt.Cursor // in the rows of the items
	key      []byte
	items    []change // changed items to come in this chunk
	now      tree.Fold
	old      tree.Fold // the former chunk,
	forked   bool      // once it differs from now
	open     change    // the chunk that now digests
	kept     change    // memory for an item that is as it was
	chunks   []change  // those that changed
	inserted uint64
}

// run recomputes the chunks that hold items lo to hi-1, but not the one that
// holds the item before lo too.
func (sp *splitter) run(items []change, lo, hi int) error {
	if err := sp.begin(); err != nil {
		return err
	}
	if lo > 0 {
		_, s, err := sp.r.chunkOf(sp.level, items[lo-1].name)
		if err != nil {
			return err
		}
		for lo < hi && s.before(items[lo].name) {
			lo++
		}
	}
	for lo < hi {
		c, s, err := sp.r.chunkOf(sp.level, items[lo].name)
		if err != nil {
			return err
		}
		end := lo + 1
		for end < len(items) && s.before(items[end].name) {
			end++
		}
		if err := sp.split(c, s, items[lo:end]); err != nil {
			return err
		}
		lo = end
	}
	return nil
}

// begin checks that there is nothing where nothing should be.
func (sp *splitter) begin() error {
	switch {
	case sp.level == 0:
		sp.probe = sp.r.leaves.Cursor()
		if k, _ := sp.probe.First(); k != nil && sp.r.state.levels == 0 {
			return fmt.Errorf("%w: leaves in an empty tree", ErrDamaged)
		}
	case sp.stored():
		b, err := sp.r.chunks(sp.level - 1)
		if err != nil {
			return err
		}
		sp.probe = b.Cursor()
	}
	return nil
}

// stored says whether the level had chunks before.
func (sp *splitter) stored() bool { return sp.level < sp.r.state.levels }

// former is a chunk as it is stored.
type former struct {
	name   []byte
	digest tree.Hash
}

// chunkOf finds the chunk of level l that holds name, and its span; above the
// former top all items make one chunk.
func (r *reader) chunkOf(l int, name []byte) (former, span, error) {
	if l >= r.state.levels {
		return former{}, span{}, nil
	}
	b, err := r.chunks(l)
	if err != nil {
		return former{}, span{}, err
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
		return former{}, span{}, err
	}
	s := span{from: it.name}
	if k, v := c.Next(); k != nil {
		next, err := chunkRow(k, v)
		if err != nil {
			return former{}, span{}, err
		}
		s.to = next.name
	}
	return former{it.name, it.digest}, s, nil
}

// split recomputes one chunk: it may become several. What it was before must
// be what its row says.
func (sp *splitter) split(c former, s span, items []change) error {
	sp.items, sp.forked = items, false
	sp.now.Reset()
	sp.open = change{name: bytes.Clone(c.name), fresh: !sp.stored()}
	if sp.stored() {
		if err := sp.r.items(sp.level, s, sp.row); err != nil {
			return err
		}
	}
	for len(sp.items) > 0 {
		if err := sp.change(s.to); err != nil {
			return err
		}
	}
	if err := sp.checkOld(c); err != nil || !sp.forked {
		return err
	}
	sp.close()
	return nil
}

// row takes a stored item, after the new ones below it.
func (sp *splitter) row(it *item) error {
	for len(sp.items) > 0 && bytes.Compare(sp.items[0].name, it.name) < 0 {
		if err := sp.change(it.name); err != nil {
			return err
		}
	}
	c := &sp.kept
	c.name, c.now = it.name, it.digest
	if len(sp.items) > 0 && bytes.Equal(sp.items[0].name, it.name) {
		x := &sp.items[0]
		sp.items = sp.items[1:]
		if err := sp.same(x, it); err != nil {
			return err
		}
		if sp.level > 0 {
			c = x
		}
	}
	if sp.level == 0 {
		c.height = tree.Height(it.digest)
	}
	sp.add(c, &it.digest)
	return nil
}

// same checks a changed item that has the row it.
func (sp *splitter) same(x *change, it *item) error {
	switch {
	case sp.level == 0 && !bytes.Equal(x.val, it.val):
		return fmt.Errorf("%w: %q", ErrBound, x.name)
	case sp.level > 0 && x.fresh:
		return fmt.Errorf("%w: chunk %q is there already", ErrDamaged, x.name)
	}
	return sp.find(it.name, it.name)
}

// change takes the next changed item, of which there is no row in the span;
// the next row is called next.
func (sp *splitter) change(next []byte) error {
	c := &sp.items[0]
	sp.items = sp.items[1:]
	if sp.stored() {
		if !c.fresh {
			return fmt.Errorf("%w: no row %q", ErrDamaged, c.name)
		}
		if err := sp.find(c.name, next); err != nil {
			return err
		}
	}
	if sp.level == 0 {
		c.now = sp.r.leaf.Hash(c.name, c.val)
		c.height = tree.Height(c.now)
	}
	sp.inserted++
	sp.add(c, &tree.Hash{})
	return nil
}

// find checks that a search for name, which is what a write begins with, ends
// at the row called next, where the scan is: else a damaged branch would hide
// the row that is there, or misplace the one to come.
func (sp *splitter) find(name, next []byte) error {
	key := name
	if sp.level > 0 {
		sp.key = appendKey(sp.key[:0], name)
		key = sp.key
	}
	k, _ := sp.probe.Seek(key)
	if sp.level > 0 && k != nil {
		k = k[1:]
	}
	if !bytes.Equal(k, next) {
		return fmt.Errorf("%w: search for %q", ErrDamaged, name)
	}
	return nil
}

// add appends an item that now has the digest c.now, and had old unless fresh.
func (sp *splitter) add(c *change, old *tree.Hash) {
	cut := c.height > sp.level && sp.now.Len() > 0
	if !sp.forked && (cut || c.fresh || c.now != *old) {
		sp.old.Set(&sp.now)
		sp.forked = true
	}
	if sp.forked && !c.fresh {
		sp.old.Add(*old)
	}
	if cut {
		sp.close()
		sp.open = change{name: bytes.Clone(c.name), height: c.height, fresh: true}
		sp.now.Reset()
	}
	sp.now.Add(c.now)
}

func (sp *splitter) close() {
	sp.open.now = sp.now.Sum()
	sp.chunks = append(sp.chunks, sp.open)
}

// checkOld compares what a chunk was with its row, and the top with the root.
func (sp *splitter) checkOld(c former) error {
	if !sp.stored() {
		return nil
	}
	was := &sp.old
	if !sp.forked {
		was = &sp.now
	}
	st, d := sp.r.state, was.Sum()
	switch {
	case d != c.digest:
		return fmt.Errorf("%w: chunk %q of level %d", ErrDamaged, c.name, sp.level)
	case sp.level == st.levels-1 && tree.RootHash(st.count, d) != st.root:
		return fmt.Errorf("%w: stored root", ErrDamaged)
	}
	return nil
}
