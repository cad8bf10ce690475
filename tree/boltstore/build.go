package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/tree"
)

// Build makes the file at path from pairs, which must come in order, and
// replaces what was there. It writes path + ".new", in place of whatever lies
// there, compares the root with want unless that is nil, syncs and renames;
// before that path is untouched, and after an error it stays so. One Build of a path at a time. It makes
// digests on all processors and needs some MB of memory, however many pairs
// there are; pairs may use the memory of one for the next.
func Build(ctx context.Context, path string, pairs iter.Seq2[tree.Pair, error], want *tree.Hash) (tree.Hash, uint64, error) {
	temp := path + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return tree.Hash{}, 0, err
	}
	st, err := build(ctx, temp, pairs)
	if err == nil && want != nil && st.root != *want {
		err = fmt.Errorf("%w: %x, want %x", ErrRoot, st.root, *want)
	}
	if err == nil {
		err = replace(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return tree.Hash{}, 0, fmt.Errorf("build tree %s: %w", path, err)
	}
	return st.root, st.count, nil
}

// Compact builds the file at path anew from its own pairs: after many Applies
// that saves up to half of its size, and puts the pages in order. It fails
// while another process writes the file, and rather than change its root.
func Compact(ctx context.Context, path string) error {
	s, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		return err
	}
	root, err := s.Root()
	if err == nil {
		_, _, err = Build(ctx, path, s.rows(ctx), &root)
	}
	return errors.Join(err, s.Close())
}

// rows are all pairs of the store.
func (s *Store) rows(ctx context.Context) iter.Seq2[tree.Pair, error] {
	return func(yield func(tree.Pair, error) bool) {
		err := s.Walk(ctx, nil, func(name, val []byte) error {
			if !yield(tree.Pair{Name: name, Val: val}, nil) {
				return errStopped
			}
			return nil
		})
		if err != nil && err != errStopped {
			yield(tree.Pair{}, err)
		}
	}
}

var errStopped = errors.New("stopped")

// replace renames temp, whose contents are synced, to path.
func replace(temp, path string) error {
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func build(ctx context.Context, temp string, pairs iter.Seq2[tree.Pair, error]) (state, error) {
	s, err := Open(temp, Options{})
	if err != nil {
		return state{}, err
	}
	s.db.NoSync = true // one sync at the end
	b := &builder{db: s.db}
	var f folder
	l := newLine(ctx, f.fold, b.putBatch)
	f.h = tree.NewChunkHasher(f.emit)
	err = l.end(l.load(pairs))
	var st state
	if err == nil {
		st, err = b.finish(&f)
	}
	return st, errors.Join(err, b.abandon(), s.Close())
}

// load sends copies of the pairs down the line.
func (l *line) load(pairs iter.Seq2[tree.Pair, error]) error {
	b, err := l.next()
	if err != nil {
		return err
	}
	for p, err := range pairs {
		if err == nil {
			err = tree.CheckPair(p.Name, p.Val)
		}
		if err == nil && b.full() {
			l.put(b)
			b, err = l.next()
		}
		if err != nil {
			return err
		}
		b.add(p.Name, p.Val)
	}
	l.put(b)
	return nil
}

// commitRows is how many rows Build writes in one transaction.
const commitRows = 1 << 16

// builder puts rows that come in order.
type builder struct {
	db      *bolt.DB
	tx      *bolt.Tx // nil: none is open
	rows    int      // in tx
	buckets map[string]*bolt.Bucket
}

// put writes a row in the open transaction. It keeps val, not key.
func (b *builder) put(bucket, key, val []byte) error {
	if b.tx == nil {
		tx, err := b.db.Begin(true)
		if err != nil {
			return err
		}
		b.tx, b.rows, b.buckets = tx, 0, make(map[string]*bolt.Bucket)
	}
	at := b.buckets[string(bucket)]
	if at == nil {
		var err error
		if at, err = b.tx.CreateBucketIfNotExists(bucket); err != nil {
			return err
		}
		at.FillPercent = sortedFill
		b.buckets[string(bucket)] = at
	}
	b.rows++
	return at.Put(key, val)
}

func (b *builder) commit() error {
	tx := b.tx
	b.tx = nil
	return tx.Commit()
}

// abandon ends a transaction that an error left open.
func (b *builder) abandon() error {
	if b.tx == nil {
		return nil
	}
	return b.tx.Rollback()
}

// putChunks stores the digests of the chunks of a batch.
func (b *builder) putChunks(batch *batch) error {
	for _, c := range batch.chunks {
		if err := b.put(chunksBucket(c.Level), chunkKey(c.First), bytes.Clone(c.Digest[:])); err != nil {
			return err
		}
	}
	return nil
}

// folder computes the tree of the batches, and gives each the chunks that are
// complete with it.
type folder struct {
	h   *tree.Hasher
	cur *batch
}

func (f *folder) fold(b *batch) error {
	f.cur = b
	return b.addTo(f.h, nil)
}

func (f *folder) emit(c tree.Chunk) error {
	f.cur.chunks = append(f.cur.chunks, c)
	return nil
}

// putBatch stores a batch.
func (b *builder) putBatch(batch *batch) error {
	for _, p := range batch.pairs {
		if err := b.put(leavesBucket, p.Name, bytes.Clone(p.Val)); err != nil {
			return err
		}
	}
	if err := b.putChunks(batch); err != nil {
		return err
	}
	if b.tx != nil && b.rows >= commitRows {
		return b.commit()
	}
	return nil
}

// finish writes what f still holds and the state, and syncs the file.
func (b *builder) finish(f *folder) (state, error) {
	f.cur = new(batch)
	root, levels, err := f.h.Finish()
	if err != nil {
		return state{}, err
	}
	if err := b.putChunks(f.cur); err != nil {
		return state{}, err
	}
	st := state{count: f.h.Count(), levels: levels, root: root}
	if err := b.put(metaBucket, stateKey, st.bytes()); err != nil {
		return state{}, err
	}
	if err := b.commit(); err != nil {
		return state{}, err
	}
	return st, b.db.Sync()
}
