// Package boltstore is the home of a tree on disk: plain sorted rows, and the
// digests of their chunks, in one bbolt file that is its own only copy.
//
// What is read may have been damaged since it was written. So every read runs
// guarded, checks the order of what it sees, and comes back as ErrDamaged, not
// as a panic; Prove and ProveRange check their own proofs against the stored
// root. Only a root known from elsewhere tells whether the file as a whole is
// the right one: compare Root with it, or Audit.
//
// The file, in buckets:
//
//	meta      "state" -> "bonafide/boltstore/v1\n" || be64 count || be32 levels || root
//	leaves    name -> value
//	chunks/L  0x00, or 0x01 || first name -> digest of that chunk of level L
//
// 0x00 is the first chunk of a level, whatever its first name. As names are
// only ever added, chunks only ever split, and no row is ever deleted.
package boltstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/tree"
)

var (
	// ErrDamaged says that the file is not what it was when it was written.
	ErrDamaged = errors.New("tree file is damaged")
	// ErrBound says that a name already has another value.
	ErrBound = errors.New("name is bound to another value")
	// ErrBusy says that another process, or another Store, has the file open.
	ErrBusy = errors.New("tree file is in use")
	// ErrRoot says that what was built has another root than was wanted.
	ErrRoot = errors.New("tree has another root")
)

// Options say how to open a file.
type Options struct {
	ReadOnly bool          // many may read one file; only one may write, and then alone
	Wait     time.Duration // how long to wait for others to close it; 0 is one second
}

const (
	addressSpace = 64 << 30 // reserved for growth, so that a writer need not wait for readers
	growStep     = 1 << 20
	maxLevels    = 44 // a digest has at most 256 trailing zero bits
	format       = "bonafide/boltstore/v1\n"
	sortedFill   = 0.9
)

var (
	metaBucket   = []byte("meta")
	leavesBucket = []byte("leaves")
	stateKey     = []byte("state")
)

// Store is an open file. All methods may be called concurrently; Apply calls
// wait for one another.
type Store struct {
	db     *bolt.DB
	file   *os.File    // the same file as in db
	page   int         // bytes of one
	broken atomic.Bool // bbolt panicked and kept its locks: db is not to be used or closed again

	beginning sync.Mutex // held while a transaction begins
	applying  sync.Mutex // held by Apply
	partRows  int

	scratch  sync.Pool // of *scratch
	outlines outlines
}

// Open opens the tree at path, which it makes, empty, if there is none and
// the options do not forbid it. It believes nothing it reads; see Audit.
func Open(path string, o Options) (*Store, error) {
	s := &Store{partRows: partRows}
	err := guard(func() (err error) {
		if s.db, err = bolt.Open(path, 0o600, s.boltOptions(o)); err == nil {
			s.page = s.db.Info().PageSize
		}
		return openError(err)
	})
	if err == nil {
		err = s.checkCycles()
	}
	if err == nil && !o.ReadOnly {
		s.db.AllocSize = growStep
		err = s.prepare()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open tree %s: %w", path, err), s.abandon())
	}
	return s, nil
}

func (s *Store) boltOptions(o Options) *bolt.Options {
	b := &bolt.Options{ReadOnly: o.ReadOnly, Timeout: o.Wait, NoStatistics: true}
	b.OpenFile = func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
		f, err = os.OpenFile(name, flag, mode)
		s.file = f
		return f, err
	}
	if o.Wait == 0 {
		b.Timeout = time.Second
	}
	if !o.ReadOnly {
		b.InitialMmapSize = addressSpace
	}
	return b
}

// openError sorts out what bbolt says about a file it does not open.
func openError(err error) error {
	var pathErr *os.PathError
	var sysErr *os.SyscallError
	switch {
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EBADF): // a bad sector; an empty file, which bbolt would write to
	case err == nil, errors.As(err, &pathErr), errors.As(err, &sysErr):
		return err
	case errors.Is(err, berrors.ErrTimeout):
		return ErrBusy
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// prepare makes the buckets of a new file.
func (s *Store) prepare() error {
	fresh := false
	err := s.view(func(tx *bolt.Tx) error {
		k, _ := tx.Cursor().First()
		fresh = k == nil
		return nil
	})
	if err != nil || !fresh {
		return err
	}
	return s.update(func(tx *bolt.Tx) error { return create(tx) })
}

func create(tx *bolt.Tx) error {
	if _, err := tx.CreateBucketIfNotExists(leavesBucket); err != nil {
		return err
	}
	return putState(tx, state{root: tree.EmptyRoot()})
}

// Close releases the file. It waits for what is under way.
func (s *Store) Close() error {
	if s.broken.Load() {
		return s.abandon()
	}
	return s.db.Close()
}

// abandon gives up the file without touching what is mapped. The mapping
// keeps the lock alive beyond Close, so it is given up first.
func (s *Store) abandon() error {
	if s.file == nil {
		return nil
	}
	_ = unix.Flock(int(s.file.Fd()), unix.LOCK_UN) // there may be none
	if err := s.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// guard runs fn and turns a panic or a fault, which is how bbolt meets damage,
// into ErrDamaged. Nothing that is mapped may be touched outside.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return fn()
}

// begin begins a transaction, guarded. Where both meta pages are damaged bbolt
// panics, and keeps its locks, so that nothing would ever begin or close again:
// they are looked at first.
func (s *Store) begin(writable bool) (tx *bolt.Tx, err error) {
	s.beginning.Lock()
	defer s.beginning.Unlock()
	if s.broken.Load() {
		return nil, fmt.Errorf("%w: it was found so before", ErrDamaged)
	}
	if err := CheckMeta(s.file, s.page); err != nil {
		return nil, err
	}
	done := false
	err = guard(func() (err error) {
		tx, err = s.db.Begin(writable)
		done = true
		return err
	})
	if !done {
		s.broken.Store(true)
	}
	return tx, err
}

// view runs fn, guarded, in a read transaction.
func (s *Store) view(fn func(*bolt.Tx) error) error {
	tx, err := s.begin(false)
	if err != nil {
		return err
	}
	defer tx.Rollback() // of a read transaction: it ends
	return guard(func() error { return fn(tx) })
}

// update runs fn, guarded, in a write transaction, and commits unless fn
// returns an error. After a panic the Store is not written again.
func (s *Store) update(fn func(*bolt.Tx) error) error {
	tx, err := s.begin(true)
	if err != nil {
		return err
	}
	done := false
	err = guard(func() error {
		err := commit(tx, fn(tx))
		done = true
		return err
	})
	if !done {
		s.broken.Store(true)
	}
	return err
}

func commit(tx *bolt.Tx, err error) error {
	if err == nil {
		return tx.Commit()
	}
	return errors.Join(err, tx.Rollback())
}

// state is what the file says of itself.
type state struct {
	count  uint64
	levels int
	root   tree.Hash
}

func putState(tx *bolt.Tx, st state) error {
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	return meta.Put(stateKey, st.bytes())
}

func (st state) bytes() []byte {
	b := binary.BigEndian.AppendUint64([]byte(format), st.count)
	b = binary.BigEndian.AppendUint32(b, uint32(st.levels))
	return append(b, st.root[:]...)
}

func getState(tx *bolt.Tx) (st state, err error) {
	meta := tx.Bucket(metaBucket)
	if meta == nil {
		return st, fmt.Errorf("%w: no state", ErrDamaged)
	}
	b := meta.Get(stateKey)
	if len(b) != len(format)+44 || string(b[:len(format)]) != format {
		return st, fmt.Errorf("%w: unknown state", ErrDamaged)
	}
	b = b[len(format):]
	levels := binary.BigEndian.Uint32(b[8:])
	st = state{count: binary.BigEndian.Uint64(b), levels: int(levels), root: tree.Hash(b[12:])}
	if levels > maxLevels || (levels == 0) != (st.count == 0) {
		return st, fmt.Errorf("%w: %d names on %d levels", ErrDamaged, st.count, levels)
	}
	return st, nil
}

func (s *Store) state() (st state, err error) {
	err = s.view(func(tx *bolt.Tx) (err error) {
		st, err = getState(tx)
		return err
	})
	return st, err
}

// Root is the root as stored: a claim, until Audit or Rehash.
func (s *Store) Root() (tree.Hash, error) {
	st, err := s.state()
	return st.root, err
}

// Count is the number of pairs as stored: a claim, until Audit or Rehash.
func (s *Store) Count() (uint64, error) {
	st, err := s.state()
	return st.count, err
}

// Get returns the value of name as stored. It proves nothing, not even that
// there is no such name.
func (s *Store) Get(name []byte) (val []byte, ok bool, err error) {
	all, err := s.GetAll([][]byte{name})
	if err != nil {
		return nil, false, err
	}
	return all[0], all[0] != nil, nil
}

// GetAll returns the values of names as stored, all of one moment, nil for a
// name that is not there. It proves no more than Get.
func (s *Store) GetAll(names [][]byte) (vals [][]byte, err error) {
	vals = make([][]byte, len(names))
	err = s.view(func(tx *bolt.Tx) error {
		r, err := newReader(tx)
		if err != nil {
			return err
		}
		for i, name := range names {
			if v := r.leaves.Get(name); v != nil {
				vals[i] = append([]byte{}, v...)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return vals, nil
}

// Walk calls fn for each pair from name `from` on, in order, as of one moment.
// name and val are fn's to keep. It stops at the first error, and returns
// ErrDamaged where the file cannot be read on. It proves nothing. fn must not
// call Apply or Close.
func (s *Store) Walk(ctx context.Context, from []byte, fn func(name, val []byte) error) error {
	b := &batch{apart: true}
	next := func() (*batch, error) {
		b.empty()
		return b, ctx.Err()
	}
	return s.blocks(from, next, func(b *batch) error {
		for _, p := range b.pairs {
			if err := fn(p.Name, p.Val); err != nil {
				return err
			}
		}
		return nil
	})
}

// blocks reads all pairs from `from` on, as of one moment, into batches from
// next, and hands them to fn; those before a damaged place, too.
func (s *Store) blocks(from []byte, next func() (*batch, error), fn func(*batch) error) error {
	tx, err := s.begin(false)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for p := (place{from: bytes.Clone(from)}); !p.last; {
		b, err := next()
		if err != nil {
			return err
		}
		damage := guard(func() error { return p.read(tx, b) })
		if err := cmp.Or(fn(b), damage); err != nil {
			return err
		}
	}
	return nil
}

// Rehash computes root and count from the pairs alone, or from those that
// keep wants; it believes no stored digest. It calls keep in order, and makes
// digests on all processors meanwhile; keep must not keep what it gets.
func (s *Store) Rehash(ctx context.Context, keep func(name, val []byte) bool) (tree.Hash, uint64, error) {
	all, err := s.RehashEach(ctx, keep)
	if err != nil {
		return tree.Hash{}, 0, err
	}
	return all[0].Root, all[0].Count, nil
}

// Rehashed is a root and the number of pairs that it was computed from.
type Rehashed struct {
	Root  tree.Hash
	Count uint64
}

// RehashEach is Rehash of the pairs that each of keeps wants, nil being all, in
// one pass. Each runs in a goroutine of its own.
func (s *Store) RehashEach(ctx context.Context, keeps ...func(name, val []byte) bool) ([]Rehashed, error) {
	hashers := make([]*tree.Hasher, len(keeps))
	var stages []func(*batch) error
	for i, keep := range keeps {
		h := tree.NewHasher()
		hashers[i], stages = h, append(stages, func(b *batch) error { return b.addTo(h, keep) })
	}
	l := newLine(ctx, stages...)
	err := s.blocks(nil, l.next, func(b *batch) error {
		l.put(b)
		return nil
	})
	if err = l.end(err); err != nil {
		return nil, err
	}
	var all []Rehashed
	for _, h := range hashers {
		all = append(all, Rehashed{h.Root(), h.Count()})
	}
	return all, nil
}

func chunksBucket(l int) []byte { return []byte("chunks/" + strconv.Itoa(l)) }
