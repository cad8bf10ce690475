package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

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
	a := auditor{ctx: ctx, want: want}
	err := s.view(a.run)
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
	ctx     context.Context
	want    tree.Hash
	r       *reader
	rows    [][]item // the chunks of each level
	count   uint64
	damages []Damage
}

// report notes damage, as one with the damage just before it.
func (a *auditor) report(s span, l int, reason error) {
	if n := len(a.damages); n > 0 {
		last := &a.damages[n-1]
		if last.Level == l && last.To != nil && bytes.Equal(last.To, s.from) {
			last.To = bytes.Clone(s.to)
			return
		}
	}
	a.damages = append(a.damages, Damage{bytes.Clone(s.from), bytes.Clone(s.to), l, reason.Error()})
}

func (a *auditor) run(tx *bolt.Tx) (err error) {
	if a.r, err = newReader(tx); err != nil {
		return err
	}
	for l := range a.r.state.levels {
		a.rows = append(a.rows, a.readRows(l))
	}
	for l := range a.rows {
		if err := a.level(l); err != nil {
			return err
		}
	}
	if len(a.damages) == 0 {
		a.root()
		return nil
	}
	return a.pairs()
}

// pairs compares the pairs alone with the root, when all damage found so far
// is in digests.
func (a *auditor) pairs() error {
	for _, d := range a.damages {
		if d.Level == 0 {
			return nil
		}
	}
	h := tree.NewHasher()
	c := a.r.leaves.Cursor()
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

// readRows reads the digests of level l, as far as they can be read.
func (a *auditor) readRows(l int) (rows []item) {
	err := guard(func() error {
		return a.r.items(l+1, span{}, func(it item) error {
			rows = append(rows, item{name: bytes.Clone(it.name), digest: it.digest})
			return nil
		})
	})
	if err != nil {
		s := span{}
		if n := len(rows); n > 0 {
			s.from = rows[n-1].name
		}
		a.report(s, l+1, err)
	}
	return rows
}

// level compares the digests of level l with what they are made of.
func (a *auditor) level(l int) error {
	rows := a.rows[l]
	if len(rows) == 0 && l == 0 {
		rows = []item{{}}
	}
	for i, row := range rows {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		s := span{from: row.name}
		if i+1 < len(rows) {
			s.to = rows[i+1].name
		}
		if err := guard(func() error { return a.chunk(l, s, row.digest) }); err != nil {
			a.report(s, l, err)
		}
	}
	return nil
}

// chunk recomputes one chunk from the items of its level as they are stored.
func (a *auditor) chunk(l int, s span, want tree.Hash) error {
	var fold tree.Fold
	err := a.r.items(l, s, func(it item) error {
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
		a.count += fold.Len()
	}
	if fold.Sum() != want {
		return fmt.Errorf("%w: chunk of level %d has another digest", ErrDamaged, l)
	}
	return nil
}

// root compares what is left when everything within the file agrees.
func (a *auditor) root() {
	top := tree.Hash{}
	if n := len(a.rows); n > 0 {
		top = a.rows[n-1][0].digest
		if len(a.rows[n-1]) > 1 {
			a.report(span{}, n, fmt.Errorf("%w: level %d is not the top", ErrDamaged, n-1))
		}
	} else if k, _ := a.r.leaves.Cursor().First(); k != nil {
		a.report(span{}, 0, fmt.Errorf("%w: leaves in an empty tree", ErrDamaged))
	}
	root := tree.RootHash(a.count, top)
	if root != a.want {
		a.report(span{}, 0, fmt.Errorf("%w: root is %x, want %x", ErrDamaged, root, a.want))
	}
	if st := a.r.state; st.root != a.want || st.count != a.count {
		a.report(span{}, len(a.rows), fmt.Errorf("%w: stored root or count", ErrDamaged))
	}
}
