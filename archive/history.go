package archive

import (
	"fmt"
	"runtime"
	"sort"
	"sync"

	"github.com/bonafide-archive/bonafide/tree"
)

// Chain is the history of an archive as far as it has been verified, from its
// genesis on. It trusts the roster and nothing else.
type Chain struct {
	roster *Roster
	last   EpochRecord
}

// NewChain returns the history of the archive whose first roster is r at epoch 0.
func NewChain(r *Roster) *Chain { return &Chain{r, Genesis(r)} }

// Last returns the newest record.
func (c *Chain) Last() EpochRecord { return c.last }

// Append verifies a record and its certificate as those of the next epoch. On
// error, which is ErrIntegrity, the chain stays as it is.
func (c *Chain) Append(record, certificate []byte) (EpochRecord, Certificate, error) {
	rec, cert, err := VerifyRecord(c.roster, record, certificate)
	switch next := c.last.Epoch + 1; {
	case err != nil:
		err = fmt.Errorf("epoch %d: %w", next, err)
	case rec.Epoch != next:
		err = fmt.Errorf("epoch %d %w: missing, the record of epoch %d stands in its place", next, ErrIntegrity, rec.Epoch)
	case rec.Previous != c.last.Head():
		err = fmt.Errorf("epoch %d %w: its record is not on top of the one before", next, ErrIntegrity)
	case rec.Names < c.last.Names:
		err = fmt.Errorf("epoch %d %w: %d names, %d before", next, ErrIntegrity, rec.Names, c.last.Names)
	}
	if err != nil {
		return EpochRecord{}, Certificate{}, err
	}
	c.last = rec
	return rec, cert, nil
}

// Rewind checks that no name was changed or removed between the epochs of a
// history. It is fed with all names as of the last epoch, and makes the tree of
// each earlier one from those that were bound by then: an entry says when. That
// takes one leaf digest for each name, and one step of a tree for each name and
// epoch in which it was bound already.
type Rewind struct {
	epochs []rewound // ascending; of epochs with one tree only the first
	last   EpochRecord
}

// rewound is an epoch whose tree is being made.
type rewound struct {
	rec  EpochRecord
	tree *tree.Hasher
}

// NewRewind returns a Rewind of the given records, which ascend.
func NewRewind(records []EpochRecord) *Rewind {
	w := new(Rewind)
	for _, rec := range records {
		if w.epochs == nil || rec.Root != w.last.Root || rec.Names != w.last.Names {
			w.epochs = append(w.epochs, rewound{rec, tree.NewHasher()})
		}
		w.last = rec
	}
	return w
}

// Add takes the next names, in order. Those bound after the last epoch are left
// out.
func (w *Rewind) Add(pairs []tree.Pair) error {
	leaves := make([]rewindLeaf, 0, len(pairs))
	var hasher tree.LeafHasher
	for _, p := range pairs {
		e, err := ParseEntry(p.Val)
		if err != nil {
			return fmt.Errorf("entry of %q %w: %w", p.Name, ErrIntegrity, err)
		}
		if e.Epoch <= w.last.Epoch {
			leaves = append(leaves, rewindLeaf{p.Name, hasher.Hash(p.Name, p.Val), w.since(e.Epoch)})
		}
	}
	return w.grow(leaves)
}

// rewindLeaf is a name, and the first of the trees that it stands in.
type rewindLeaf struct {
	name  []byte
	hash  tree.Hash
	since int
}

// since returns the index of the first tree that names bound in epoch e stand in.
func (w *Rewind) since(e Epoch) int {
	return sort.Search(len(w.epochs), func(i int) bool { return w.epochs[i].rec.Epoch >= e })
}

// grow adds leaves to all trees, each tree on one processor.
func (w *Rewind) grow(leaves []rewindLeaf) error {
	n := min(runtime.GOMAXPROCS(0), len(w.epochs))
	errs := make([]error, n)
	var all sync.WaitGroup
	for first := range n {
		all.Go(func() {
			for i := first; i < len(w.epochs) && errs[first] == nil; i += n {
				errs[first] = w.epochs[i].grow(leaves, i)
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("listing %w: %w", ErrIntegrity, err)
		}
	}
	return nil
}

func (r *rewound) grow(leaves []rewindLeaf, i int) error {
	for _, l := range leaves {
		if l.since > i {
			continue
		}
		if err := r.tree.AddLeaf(l.name, l.hash); err != nil {
			return err
		}
	}
	return nil
}

// Check says, once all names have been added, whether each record's root and
// number of names are what they make. The error, ErrIntegrity, tells of the first
// that are not. The Rewind is then used up.
func (w *Rewind) Check() error {
	for _, e := range w.epochs {
		n := e.tree.Count()
		root, _, err := e.tree.Finish()
		if err != nil {
			return err
		}
		if root != e.rec.Root || n != e.rec.Names {
			return fmt.Errorf("tree of epoch %d %w: names were changed or removed since: those that stand now make %d with root %s, its record says %d with root %s",
				e.rec.Epoch, ErrIntegrity, n, Digest(root), e.rec.Names, Digest(e.rec.Root))
		}
	}
	return nil
}
