package replica

import (
	"sync"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// shelf holds the tree that the service process answers from, or why there is
// none. A tree that is replaced, or found wrong, is closed when the last who
// borrowed it has given it back.
type shelf struct {
	mu  sync.Mutex
	cur *copyOnShelf
	why error
}

type copyOnShelf struct {
	Lent
	borrowed int
	gone     bool // no longer on the shelf
}

// Lend implements Trees.
func (s *shelf) Lend() (*Lent, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cur
	if c == nil {
		return nil, nil, s.why
	}
	c.borrowed++
	return &c.Lent, func() { s.giveBack(c) }, nil
}

func (s *shelf) giveBack(c *copyOnShelf) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.borrowed--
	c.settle()
}

// settle closes a tree that nobody needs any more.
func (c *copyOnShelf) settle() {
	if c.gone && c.borrowed == 0 {
		c.Tree.Close() // read-only: nothing can be lost
	}
}

// put makes t, which has been checked against rec, the current tree.
func (s *shelf) put(t *boltstore.Store, rec archive.EpochRecord, cert archive.Certificate) {
	s.replace(&copyOnShelf{Lent: Lent{Tree: t, Record: rec, Certificate: cert, Head: rec.Head()}}, nil)
}

// withdraw takes the current tree off, for the reason that Lend then gives.
func (s *shelf) withdraw(why error) { s.replace(nil, why) }

// withdrawIf does so only if l is still the current tree, and reports it.
func (s *shelf) withdrawIf(l *Lent, why error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur == nil || &s.cur.Lent != l {
		return false
	}
	s.swap(nil, why)
	return true
}

func (s *shelf) replace(c *copyOnShelf, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.swap(c, why)
}

func (s *shelf) swap(c *copyOnShelf, why error) {
	old := s.cur
	s.cur, s.why = c, why
	if old != nil {
		old.gone = true
		old.settle()
	}
}

// reason returns why there is no tree, nil if there is one.
func (s *shelf) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}
