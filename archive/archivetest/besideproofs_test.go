package archivetest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// besideAsked is how many names are proven, evenly among all.
const besideAsked = 1000

// proofLine is what one kind of proof took; means a proof, 0 where there is none.
type proofLine struct {
	of            string
	built         time.Duration // of all names
	made, checked float64       // µs
	size          float64       // bytes, with the name and its value
	absent, older string        // bytes of proofs that a name is absent, and that an older state is part of this one
}

// besideProofs sets the tree's proofs beside those of a transparency log, and the
// tree beside a bare bbolt file, of the same names. A name has 39 bytes and its
// value as many as an entry of an archive.
func besideProofs(t *testing.T) {
	modules, err := shellIn(t, os.Environ(), "go list -m go.etcd.io/bbolt golang.org/x/mod")()
	if err != nil {
		t.Fatal(modules)
	}
	tell(t, "proofs: means of %d names; %s\n", besideAsked, strings.Join(strings.Split(strings.TrimSpace(modules), "\n"), ", "))
	tell(t, "all in one process: bbolt and the tree from a file, warm; tlog's hashes in memory\n\n")
	tell(t, "| names | proofs of | all built, s | ratio to bbolt | one made, µs | checked, µs | bytes | ratio to tlog | absent: bytes | older state: bytes |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, n := range []int{100_000, 1_000_000} {
		ps := besidePairs(n / *share)
		raw, log := besideBolt(t, ps), besideLog(t, ps)
		for _, l := range []proofLine{raw, log, besideTree(t, ps)} {
			tell(t, "| %d | %s | %.2f | %.2f | %.1f | %.1f | %.0f | %.2f | %s | %s |\n", len(ps), l.of, l.built.Seconds(), l.built.Seconds()/raw.built.Seconds(),
				l.made, l.checked, l.size, l.size/log.size, l.absent, l.older)
		}
	}
	tell(t, "\n")
}

// besidePairs are n names in order, and values.
func besidePairs(n int) []tree.Pair {
	ps := make([]tree.Pair, n)
	for i := range ps {
		d := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
		ps[i] = tree.Pair{Name: fmt.Appendf(nil, "archive/%x", d[:16])[:39], Val: bytes.Repeat(d[:], 4)[:archive.EntrySize]}
	}
	slices.SortFunc(ps, func(a, b tree.Pair) int { return bytes.Compare(a.Name, b.Name) })
	return ps
}

// asked are the numbers of the names to prove.
func asked(ps []tree.Pair) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := range besideAsked {
			if !yield(i * len(ps) / besideAsked) {
				return
			}
		}
	}
}

// micros is the mean of what was done for each name asked, in µs.
func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / besideAsked }

// besideBolt writes the rows to a bare bbolt file, as fast as it takes them, and
// reads some: no proof, but what one is on top of.
func besideBolt(t *testing.T, ps []tree.Pair) proofLine {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "raw"), 0o600, &bolt.Options{InitialMmapSize: 1 << 32, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	began := time.Now()
	for part := range slices.Chunk(ps, 100_000) {
		err := db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(boltKept)
			b.FillPercent = 0.9
			for _, p := range part {
				if err == nil {
					err = b.Put(p.Name, p.Val)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Sync(); err != nil {
		t.Fatal(err)
	}
	built := time.Since(began)
	began = time.Now()
	for i := range asked(ps) {
		err := db.View(func(tx *bolt.Tx) error {
			if got := tx.Bucket(boltKept).Get(ps[i].Name); !bytes.Equal(got, ps[i].Val) {
				return fmt.Errorf("%s: %x", ps[i].Name, got)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return proofLine{of: "bbolt: none, rows are read", built: built, made: micros(time.Since(began)), absent: "none", older: "none"}
}

func besideTree(t *testing.T, ps []tree.Pair) proofLine {
	path := filepath.Join(t.TempDir(), "tree")
	began := time.Now()
	root, _, err := boltstore.Build(t.Context(), path, func(yield func(tree.Pair, error) bool) {
		for _, p := range ps {
			if !yield(p, nil) {
				return
			}
		}
	}, nil)
	built := time.Since(began)
	if err != nil {
		t.Fatal(err)
	}
	s, err := boltstore.Open(path, boltstore.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	made, checked, size := treeProofs(t, s, root, ps, func(p tree.Pair) ([]byte, []byte) { return p.Name, p.Val })
	_, _, absent := treeProofs(t, s, root, ps, func(p tree.Pair) ([]byte, []byte) { return append(bytes.Clone(p.Name), '-'), nil })
	return proofLine{"tree: what a name is bound to", built, made, checked, size, fmt.Sprintf("%.0f", absent), "none: all names"}
}

// treeProofs proves what some names, each made of one that is there, are bound to,
// nil for those that are absent, and returns the means of µs and bytes.
func treeProofs(t *testing.T, s *boltstore.Store, root tree.Hash, ps []tree.Pair, of func(tree.Pair) (name, val []byte)) (made, checked, size float64) {
	t.Helper()
	var proofs []tree.Proof
	total := 0
	began := time.Now()
	for i := range asked(ps) {
		name, _ := of(ps[i])
		p, err := s.Prove(name)
		if err != nil {
			t.Fatal(err)
		}
		proofs, total = append(proofs, p), total+len(p)
	}
	made = micros(time.Since(began))
	began = time.Now()
	for i := range asked(ps) {
		name, want := of(ps[i])
		v, err := tree.Verify(root, proofs[0])
		if err != nil {
			t.Fatal(err)
		}
		if val, present, err := v.Lookup(name); err != nil || present != (want != nil) || !bytes.Equal(val, want) {
			t.Fatalf("%s: %x, %t, %v", name, val, present, err)
		}
		proofs = proofs[1:]
	}
	return made, micros(time.Since(began)), float64(total) / besideAsked
}

// logHashes are a log's hashes, in memory.
type logHashes []tlog.Hash

func (l logHashes) ReadHashes(indexes []int64) (all []tlog.Hash, err error) {
	for _, i := range indexes {
		all = append(all, l[i])
	}
	return all, nil
}

// besideLog proves that records are in a log. A record is a name and its value.
func besideLog(t *testing.T, ps []tree.Pair) proofLine {
	record := func(i int) []byte { return append(bytes.Clone(ps[i].Name), ps[i].Val...) }
	var l logHashes
	began := time.Now()
	for i := range ps {
		more, err := tlog.StoredHashes(int64(i), record(i), l)
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, more...)
	}
	built, n := time.Since(began), int64(len(ps))
	head, err := tlog.TreeHash(n, l)
	if err != nil {
		t.Fatal(err)
	}
	var proofs []tlog.RecordProof
	hashes, size := 0, 0
	began = time.Now()
	for i := range asked(ps) {
		p, err := tlog.ProveRecord(n, int64(i), l)
		if err != nil {
			t.Fatal(err)
		}
		proofs, hashes = append(proofs, p), hashes+len(p)
	}
	made := micros(time.Since(began))
	began = time.Now()
	for i := range asked(ps) {
		b := record(i)
		if err := tlog.CheckRecord(proofs[0], n, head, int64(i), tlog.RecordHash(b)); err != nil {
			t.Fatal(err)
		}
		proofs, size = proofs[1:], size+len(b)+8+8 // its number, and how many there are
	}
	checked := micros(time.Since(began))
	return proofLine{"tlog: that a record is the n-th", built, made, checked, float64(size+hashes*tlog.HashSize) / besideAsked,
		"none", fmt.Sprint(older(t, l, n, head) * tlog.HashSize)}
}

// older proves that half of a log is how it begins, and returns in how many hashes.
func older(t *testing.T, l logHashes, n int64, head tlog.Hash) int {
	t.Helper()
	half := n/2 - 1
	was, err := tlog.TreeHash(half, l)
	if err != nil {
		t.Fatal(err)
	}
	p, err := tlog.ProveTree(n, half, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := tlog.CheckTree(p, n, head, half, was); err != nil {
		t.Fatal(err)
	}
	return len(p)
}
