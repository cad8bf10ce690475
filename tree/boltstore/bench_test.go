package boltstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/tree"
)

// The benchmarks measure against a baseline within the same loop, a bare bbolt
// file or bare hashing, and report the ratio of the least times: x-raw, x-sha256.
// The rows are as in an archive: names of 39 bytes, values of 48.
//
//	go test -run xxx -bench . -benchtime 5x -names 1000000

var names = flag.Int("names", 100_000, "names in a benchmark")

// benchPairs are n pairs in order, which begin at number lo.
func benchPairs(lo, n int) []tree.Pair {
	ps := make([]tree.Pair, n)
	for i := range ps {
		d := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(lo+i)))
		ps[i] = tree.Pair{Name: fmt.Appendf(nil, "archive/%x", d[:16])[:39], Val: append(d[:], d[:16]...)}
	}
	slices.SortFunc(ps, func(a, b tree.Pair) int { return bytes.Compare(a.Name, b.Name) })
	return packed(ps)
}

// packed are copies that lie in memory in order, as read from a stream.
func packed(ps []tree.Pair) []tree.Pair {
	mem := make([]byte, 0, len(ps)*(39+48))
	for i, p := range ps {
		n := len(mem)
		mem = append(append(mem, p.Name...), p.Val...)
		ps[i] = tree.Pair{Name: mem[n : n+39 : n+39], Val: mem[n+39:]}
	}
	return ps
}

// cost is what a run took, on the clock and of all processors together: the
// second is less disturbed by what else the machine does.
type cost struct{ wall, cpu time.Duration }

// versus runs both in turn, after what is not measured, and reports the least
// times in ms and their ratios.
func versus(b *testing.B, what string, baseline, ours func(), before ...func()) {
	b.Helper()
	var base, own []cost
	for b.Loop() {
		for _, f := range before {
			f()
		}
		base, own = append(base, measured(baseline)), append(own, measured(ours))
	}
	x, y := least(base), least(own)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(x.wall.Seconds()*1e3, what+"-ms")
	b.ReportMetric(y.wall.Seconds()*1e3, "tree-ms")
	b.ReportMetric(y.wall.Seconds()/x.wall.Seconds(), "x-"+what)
	b.ReportMetric(y.cpu.Seconds()/x.cpu.Seconds(), "x-"+what+"-cpu")
}

func measured(f func()) cost {
	runtime.GC()
	start, used := time.Now(), cpu()
	f()
	return cost{time.Since(start), cpu() - used}
}

// cpu is the processor time that this process has used.
func cpu() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// least is the least that a run took: what else the machine did is in the rest.
func least(cs []cost) cost {
	m := cs[0]
	for _, c := range cs {
		m = cost{min(m.wall, c.wall), min(m.cpu, c.cpu)}
	}
	return m
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
	db.AllocSize = growStep
	db.NoSync = true
	for part := range slices.Chunk(ps, 100_000) {
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
	bare, path := filepath.Join(b.TempDir(), "raw"), filepath.Join(b.TempDir(), "tree")
	versus(b, "raw", func() {
		os.Remove(bare)
		raw(b, bare, ps).Close()
	}, func() {
		if _, _, err := Build(b.Context(), path, seq(ps), nil); err != nil {
			b.Fatal(err)
		}
	})
	b.ReportMetric(size(b, path), "MB")
	b.ReportMetric(size(b, path)/size(b, bare), "x-raw-size")
}

// BenchmarkApply adds random names, a hundredth of those there.
func BenchmarkApply(b *testing.B) {
	ps, n := benchPairs(0, *names), *names/100
	db := raw(b, filepath.Join(b.TempDir(), "raw"), ps)
	defer db.Close()
	s, _ := built(b, ps)
	at := *names
	var more []tree.Pair
	versus(b, "raw", func() {
		rawPut(b, db, more, bolt.DefaultFillPercent)
	}, func() {
		if _, _, err := s.Apply(b.Context(), more); err != nil {
			b.Fatal(err)
		}
	}, func() {
		more, at = benchPairs(at, n), at+n
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
	var proofs []tree.Proof
	for i := range 100 {
		p, err := s.Prove(ps[i*len(ps)/100].Name)
		if err != nil {
			b.Fatal(err)
		}
		proofs = append(proofs, p)
	}
	for i := 0; b.Loop(); i++ {
		if _, err := tree.Verify(root, proofs[i%len(proofs)]); err != nil {
			b.Fatal(err)
		}
	}
}

// hashAll makes the digests that the rows need at the least, one of each leaf
// and one node for it, on all cores.
func hashAll(ps []tree.Pair) {
	var wg sync.WaitGroup
	for part := range slices.Chunk(ps, len(ps)/runtime.GOMAXPROCS(0)+1) {
		wg.Go(func() {
			for _, p := range part {
				tree.NodeHash(tree.LeafHash(p.Name, p.Val), tree.Hash{})
			}
		})
	}
	wg.Wait()
}

func BenchmarkAudit(b *testing.B) {
	ps := benchPairs(0, *names)
	s, root := built(b, ps)
	versus(b, "sha256", func() { hashAll(ps) }, func() {
		if damage, err := s.Audit(b.Context(), root); err != nil || len(damage) > 0 {
			b.Fatal(damage, err)
		}
	})
}

func BenchmarkRehash(b *testing.B) {
	ps := benchPairs(0, *names)
	s, root := built(b, ps)
	versus(b, "sha256", func() { hashAll(ps) }, func() {
		if got, _, err := s.Rehash(b.Context(), nil); err != nil || got != root {
			b.Fatal(got, err)
		}
	})
}

// BenchmarkProveMined proves names of one chunk that holds a fifth of all.
func BenchmarkProveMined(b *testing.B) {
	ps := mined(*names / 5)
	s, _ := built(b, ps)
	for i := 0; b.Loop(); i++ {
		if _, err := s.Prove(ps[i*7919%len(ps)].Name); err != nil {
			b.Fatal(err)
		}
	}
}
