package boltstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/tree"
)

var names = flag.Int("names", 100_000, "names in a benchmark")

// benchPairs are n pairs in order, names of 39 bytes and values of 48, which
// begin at number lo.
func benchPairs(lo, n int) []tree.Pair {
	ps := make([]tree.Pair, n)
	for i := range ps {
		d := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(lo+i)))
		ps[i] = tree.Pair{Name: fmt.Appendf(nil, "archive/%x", d[:16])[:39], Val: append(d[:], d[:16]...)}
	}
	slices.SortFunc(ps, func(a, b tree.Pair) int { return bytes.Compare(a.Name, b.Name) })
	return ps
}

func built(b *testing.B, ps []tree.Pair) (*Store, tree.Hash) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "tree")
	root, _, err := Build(b.Context(), path, seq(ps), nil)
	if err != nil {
		b.Fatal(err)
	}
	return open(b, path), root
}

// raw is a bare bbolt file with the same rows.
func raw(b *testing.B, path string, ps []tree.Pair) *bolt.DB {
	b.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{InitialMmapSize: addressSpace})
	if err != nil {
		b.Fatal(err)
	}
	db.NoSync = true
	for part := range slices.Chunk(ps, batchRows) {
		rawPut(b, db, part, sortedFill)
	}
	db.NoSync = false
	if err := db.Sync(); err != nil {
		b.Fatal(err)
	}
	return db
}

func rawPut(b *testing.B, db *bolt.DB, ps []tree.Pair, fill float64) {
	b.Helper()
	err := db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists(leavesBucket)
		if err != nil {
			return err
		}
		bucket.FillPercent = fill
		for _, p := range ps {
			if err := bucket.Put(p.Name, p.Val); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

func size(b *testing.B, path string) float64 {
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return float64(info.Size()) / 1e6
}

func BenchmarkBuild(b *testing.B) {
	ps := benchPairs(0, *names)
	b.Run("raw", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "raw")
		for b.Loop() {
			os.Remove(path)
			raw(b, path, ps).Close()
		}
		b.ReportMetric(size(b, path), "MB")
	})
	b.Run("tree", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "tree")
		for b.Loop() {
			if _, _, err := Build(b.Context(), path, seq(ps), nil); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(size(b, path), "MB")
	})
}

// BenchmarkApply adds random names, a hundredth of those there.
func BenchmarkApply(b *testing.B) {
	ps, n := benchPairs(0, *names), *names/100
	b.Run("raw", func(b *testing.B) {
		db := raw(b, filepath.Join(b.TempDir(), "raw"), ps)
		defer db.Close()
		for i := 0; b.Loop(); i++ {
			rawPut(b, db, benchPairs(*names+i*n, n), bolt.DefaultFillPercent)
		}
	})
	b.Run("tree", func(b *testing.B) {
		s, _ := built(b, ps)
		for i := 0; b.Loop(); i++ {
			if _, _, err := s.Apply(context.Background(), benchPairs(*names+i*n, n)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkProve(b *testing.B) {
	ps := benchPairs(0, *names)
	s, _ := built(b, ps)
	total, i := 0, 0
	for b.Loop() {
		p, err := s.Prove(ps[i*7919%len(ps)].Name)
		if err != nil {
			b.Fatal(err)
		}
		total += len(p)
		i++
	}
	b.ReportMetric(float64(total)/float64(i), "B/proof")
}

func BenchmarkVerify(b *testing.B) {
	ps := benchPairs(0, *names)
	s, root := built(b, ps)
	p, err := s.Prove(ps[len(ps)/3].Name)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := tree.Verify(root, p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAudit(b *testing.B) {
	ps := benchPairs(0, *names)
	b.Run("sha256", func(b *testing.B) { // what hashing the rows alone takes
		for b.Loop() {
			for _, p := range ps {
				tree.NodeHash(tree.LeafHash(p.Name, p.Val), tree.Hash{})
			}
		}
	})
	b.Run("tree", func(b *testing.B) {
		s, root := built(b, ps)
		for b.Loop() {
			if damage, err := s.Audit(b.Context(), root); err != nil || len(damage) > 0 {
				b.Fatal(damage, err)
			}
		}
	})
}
