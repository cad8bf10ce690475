package boltstore

import (
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
// replaces what was there. It writes path + ".new", compares the root with
// want unless that is nil, syncs and renames; before that path is untouched,
// and after an error it stays so. One Build of a path at a time.
func Build(ctx context.Context, path string, pairs iter.Seq2[tree.Pair, error], want *tree.Hash) (tree.Hash, uint64, error) {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
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
	b := newBuilder(s)
	err = b.load(ctx, pairs)
	if err == nil {
		err = b.finish()
	}
	return b.state, errors.Join(err, s.Close())
}

const batchRows, batchBytes = 1 << 16, 32 << 20

// builder gathers rows and writes them batch by batch.
type builder struct {
	store  *Store
	hasher *tree.Hasher
	leaves []tree.Pair
	chunks []tree.Chunk
	bytes  int
	state  state
}

func newBuilder(s *Store) *builder {
	b := &builder{store: s}
	b.hasher = tree.NewChunkHasher(func(c tree.Chunk) error {
		b.chunks = append(b.chunks, c)
		return nil
	})
	return b
}

func (b *builder) load(ctx context.Context, pairs iter.Seq2[tree.Pair, error]) error {
	for p, err := range pairs {
		if err != nil {
			return err
		}
		if err := b.add(ctx, p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (b *builder) add(ctx context.Context, p tree.Pair) error {
	if err := b.hasher.Add(p.Name, p.Val); err != nil {
		return fmt.Errorf("%q: %w", p.Name, err)
	}
	row := append(append(make([]byte, 0, len(p.Name)+len(p.Val)), p.Name...), p.Val...)
	n := len(p.Name)
	b.leaves = append(b.leaves, tree.Pair{Name: row[:n:n], Val: row[n:]})
	b.bytes += len(row)
	if len(b.leaves) < batchRows && b.bytes < batchBytes {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return b.store.update(b.flush)
}

// finish writes the last rows and the state, and syncs the file.
func (b *builder) finish() error {
	root, levels, err := b.hasher.Finish()
	if err != nil {
		return err
	}
	b.state = state{count: b.hasher.Count(), levels: levels, root: root}
	err = b.store.update(func(tx *bolt.Tx) error {
		return errors.Join(b.flush(tx), putState(tx, b.state))
	})
	if err != nil {
		return err
	}
	return b.store.db.Sync()
}

// flush writes the rows gathered.
func (b *builder) flush(tx *bolt.Tx) error {
	leaves := tx.Bucket(leavesBucket)
	leaves.FillPercent = sortedFill
	for _, p := range b.leaves {
		if err := leaves.Put(p.Name, p.Val); err != nil {
			return err
		}
	}
	for _, c := range b.chunks {
		level, err := tx.CreateBucketIfNotExists(chunksBucket(c.Level))
		if err != nil {
			return err
		}
		level.FillPercent = sortedFill
		if err := level.Put(chunkKey(c.First), c.Digest[:]); err != nil {
			return err
		}
	}
	b.leaves, b.chunks, b.bytes = b.leaves[:0], b.chunks[:0], 0
	return nil
}
