package boltstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	bolt "go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/tree"
)

// Damage is a range of names, from <= name < to, nil being no bound, in which
// something is not what the root wants.
type Damage struct {
	From, To []byte
	// Level 0 says that pairs may be wrong, missing or too many: they must be
	// had from elsewhere. Above, only digests are: the pairs suffice.
	Level  int
	Reason string
	torn   bool // pages cannot be read: what they held is missing
}

func (d Damage) String() string {
	return fmt.Sprintf("%s to %s: %s", bound(d.From, "the first name"), bound(d.To, "the last"), d.Reason)
}

func bound(name []byte, none string) string {
	if name == nil {
		return none
	}
	return fmt.Sprintf("%q", name)
}

// Audit reads the whole file and compares the pairs, all digests, the order
// and the count with the root it should have. No damage means: each pair of
// the tree with that root is there and found, and no other. The error says
// why the audit could not be finished, never what it found.
func (s *Store) Audit(ctx context.Context, want tree.Hash) ([]Damage, error) {
	found, err := s.audit(ctx, want)
	return merged(found), err
}

// Salvage is Audit for a repair. all is what Audit reports. least are ranges that
// must be had from elsewhere at the least: unreadable pages, and chunks with
// wrong pairs where all pages can be read. If the pages are the only damage,
// the readable pairs outside least are right, also in a chunk that lost others;
// the root of the repaired tree tells.
func (s *Store) Salvage(ctx context.Context, want tree.Hash) (least, all []Damage, err error) {
	found, err := s.audit(ctx, want)
	if err != nil {
		return nil, nil, err
	}
	for _, d := range found {
		tornIn := func(t Damage) bool { return t.torn && t.Level < maxLevels && t.meets(d) }
		if d.Level == 0 && (d.torn || !slices.ContainsFunc(found, tornIn)) {
			least = append(least, d)
		}
	}
	return merged(least), merged(found), nil
}

// meets says whether two ranges have a name in common.
func (d Damage) meets(o Damage) bool {
	return span{d.From, d.To}.before(o.From) && span{o.From, o.To}.before(d.From)
}

func (s *Store) audit(ctx context.Context, want tree.Hash) ([]Damage, error) {
	rs, err := s.snapshot()
	if err != nil {
		return nil, fmt.Errorf("audit tree: %w", err)
	}
	defer rs.close()
	a := auditor{ctx: ctx, want: want, rs: rs}
	err = guard(func() error { return a.pages(s, rs[0].tx) })
	if err == nil {
		a.joinTorn()
		err = guard(a.run)
	}
	if errors.Is(err, ErrDamaged) {
		a.report(span{}, 0, err)
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("audit tree: %w", err)
	}
	return a.damages, nil
}

type auditor struct {
	ctx  context.Context
	want tree.Hash
	rs   snapshot
	r    *reader  // one of rs
	rows [][]item // the chunks of each level

	count   atomic.Uint64
	mu      sync.Mutex // guards damages
	damages []Damage
	torn    []Damage // those of pages, sorted by level and name
}

func (a *auditor) report(s span, l int, reason error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.damages = append(a.damages, damaged(s, l, reason))
}

func damaged(s span, l int, reason error) Damage {
	return Damage{From: bytes.Clone(s.from), To: bytes.Clone(s.to), Level: l, Reason: reason.Error()}
}

// tear reports pages of level l that cannot be read.
func (a *auditor) tear(s span, l int, reason error) {
	d := damaged(s, l, reason)
	d.torn = true
	a.mu.Lock()
	defer a.mu.Unlock()
	a.damages = append(a.damages, d)
}

// joinTorn joins what the pages showed, all of which is torn.
func (a *auditor) joinTorn() {
	a.damages = merged(a.damages)
	a.torn = slices.Clone(a.damages)
}

// merged returns the damages sorted, those of one level that meet as one.
func merged(ds []Damage) (out []Damage) {
	slices.SortStableFunc(ds, func(a, b Damage) int {
		return cmp.Or(cmp.Compare(a.Level, b.Level), bytes.Compare(a.From, b.From), cmp.Compare(a.Reason, b.Reason))
	})
	for _, d := range ds {
		n := len(out) - 1
		if n < 0 || out[n].Level != d.Level || out[n].To != nil && bytes.Compare(out[n].To, d.From) < 0 {
			out = append(out, d)
			continue
		}
		if d.To == nil || out[n].To != nil && bytes.Compare(d.To, out[n].To) > 0 {
			out[n].To = d.To
		}
	}
	return out
}

func (a *auditor) run() error {
	a.r = a.rs[0]
	if err := a.rs.init(); err != nil {
		a.report(span{}, maxLevels, err)
		return a.pairs(a.r.tx)
	}
	for l := range a.r.state.levels {
		a.rows = append(a.rows, a.readRows(l))
	}
	for l := range a.rows {
		if err := a.level(l); err != nil {
			return err
		}
	}
	if len(a.damages) == 0 && !a.right() {
		a.report(span{}, maxLevels, fmt.Errorf("%w: stored root, count or levels", ErrDamaged))
	}
	if len(a.damages) > 0 {
		return a.pairs(a.r.tx)
	}
	return nil
}

// pairs compares the pairs alone with the root, when all damage found so far
// is in digests.
func (a *auditor) pairs(tx *bolt.Tx) error {
	if slices.ContainsFunc(a.damages, func(d Damage) bool { return d.Level == 0 }) {
		return nil
	}
	leaves := tx.Bucket(leavesBucket)
	if leaves == nil {
		return fmt.Errorf("%w: no leaves", ErrDamaged)
	}
	h := tree.NewHasher()
	c := leaves.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if err := errors.Join(checkLeaf(k, v), h.Add(k, v)); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	if root := h.Root(); root != a.want {
		a.report(span{}, 0, fmt.Errorf("%w: root is %x, want %x", ErrDamaged, root, a.want))
	}
	return a.ctx.Err()
}

// readRows reads the digests of level l, as far as they can be read, and goes on
// behind pages that cannot.
func (a *auditor) readRows(l int) (rows []item) {
	for from, more := []byte(nil), true; more; {
		err := guard(func() error {
			return a.r.items(l+1, span{from: from}, func(it *item) error {
				rows = append(rows, item{name: bytes.Clone(it.name), digest: it.digest})
				return nil
			})
		})
		if err == nil {
			break
		}
		s := span{from: from}
		if n := len(rows); n > 0 && bytes.Compare(rows[n-1].name, from) > 0 {
			s.from = rows[n-1].name
		}
		from, more = a.behind(l+1, s.from)
		s.to = from
		a.report(s, l+1, err)
	}
	return rows
}

// behind is where the pages of level l can be read again after name.
func (a *auditor) behind(l int, name []byte) (from []byte, ok bool) {
	for _, d := range a.torn {
		if d.Level == l && d.To != nil && bytes.Compare(d.To, name) > 0 {
			return d.To, true
		}
	}
	return nil, false
}

// level compares the digests of level l with what they are made of.
func (a *auditor) level(l int) error {
	rows := a.rows[l]
	if len(rows) == 0 && l == 0 {
		rows = []item{{}}
	}
	blocks := (len(rows) + auditChunks - 1) / auditChunks
	return a.rs.each(a.ctx, blocks, func(r *reader, k int) error {
		for i := k * auditChunks; i < min((k+1)*auditChunks, len(rows)); i++ {
			a.row(r, l, rows, i)
		}
		return nil
	})
}

// auditChunks is how many chunks one processor takes at a time.
const auditChunks = 16

func (a *auditor) row(r *reader, l int, rows []item, i int) {
	s := span{from: rows[i].name}
	if i+1 < len(rows) {
		s.to = rows[i+1].name
	}
	if err := guard(func() error { return a.chunk(r, l, s, rows[i].digest) }); err != nil {
		a.report(s, l, err)
	}
}

// chunk recomputes one chunk from the items of its level as they are stored.
func (a *auditor) chunk(r *reader, l int, s span, want tree.Hash) error {
	fold := &r.fold
	fold.Reset()
	err := r.items(l, s, func(it *item) error {
		if l == 0 && fold.Len() > 0 && tree.Height(it.digest) > 0 {
			return fmt.Errorf("%w: %q does not begin a chunk", ErrDamaged, it.name)
		}
		fold.Add(it.digest)
		return nil
	})
	if err != nil {
		return err
	}
	if l == 0 {
		a.count.Add(fold.Len())
	}
	if fold.Sum() != want {
		return fmt.Errorf("%w: chunk of level %d has another digest", ErrDamaged, l)
	}
	return nil
}

// right compares what is left when everything within the file agrees.
func (a *auditor) right() bool {
	if st := a.r.state; st.root != a.want || st.count != a.count.Load() {
		return false
	}
	if len(a.rows) == 0 {
		k, _ := a.r.leaves.Cursor().First()
		return k == nil && a.want == tree.EmptyRoot()
	}
	top := a.rows[len(a.rows)-1]
	return len(top) == 1 && tree.RootHash(a.r.state.count, top[0].digest) == a.want
}
