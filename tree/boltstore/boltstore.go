// Package boltstore is the home of a tree on disk: plain sorted rows and the
// digests of their chunks in one bbolt file.
package boltstore

import (
	"context"
	"errors"
	"iter"

	"github.com/bonafide-archive/bonafide/tree"
)

var (
	// ErrDamaged says that the file is not what it was when it was written.
	ErrDamaged = errors.New("tree file is damaged")
	// ErrBound says that a name already has another value.
	ErrBound = errors.New("name is bound to another value")
)

// Options say how to open a file.
type Options struct{ ReadOnly bool }

// Store is an open file.
type Store struct{}

// Damage is a range of names, from <= name < to (nil: no bound), that is not what the root wants.
type Damage struct {
	From, To []byte
	Level    int
	Reason   string
}

func Open(path string, o Options) (*Store, error)                            { panic("soon") }
func (s *Store) Close() error                                                { panic("soon") }
func (s *Store) Root() (tree.Hash, error)                                    { panic("soon") }
func (s *Store) Count() (uint64, error)                                      { panic("soon") }
func (s *Store) Get(name []byte) (val []byte, ok bool, err error)            { panic("soon") }
func (s *Store) Prove(name []byte) (tree.Proof, error)                       { panic("soon") }
func (s *Store) ProveRange(from, to []byte, limit int) (tree.Proof, error)   { panic("soon") }
func (s *Store) Audit(ctx context.Context, want tree.Hash) ([]Damage, error) { panic("soon") }
func (s *Store) Apply(ctx context.Context, pairs []tree.Pair) (root tree.Hash, count uint64, err error) {
	panic("soon")
}
func (s *Store) Walk(ctx context.Context, from []byte, fn func(name, val []byte) error) error {
	panic("soon")
}
func (s *Store) Rehash(ctx context.Context, keep func(name, val []byte) bool) (tree.Hash, uint64, error) {
	panic("soon")
}
func Build(ctx context.Context, path string, pairs iter.Seq2[tree.Pair, error], want *tree.Hash) (tree.Hash, uint64, error) {
	panic("soon")
}
