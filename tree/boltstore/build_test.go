package boltstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/tree"
)

// sized are n pairs in order, with names and values of up to max bytes more
// than needed.
func sized(n, max int) (ps []tree.Pair) {
	r := rand.New(rand.NewPCG(uint64(n), uint64(max)))
	for i := range n {
		name := append(fmt.Appendf(nil, "%08d", i), bytes.Repeat([]byte{'n'}, r.IntN(max))...)
		ps = append(ps, tree.Pair{Name: name, Val: bytes.Repeat([]byte{'v'}, r.IntN(max))})
	}
	return ps
}

// TestBuildIsBolt: bbolt itself finds nothing wrong in a file that Build wrote,
// nor after it has written to it.
func TestBuildIsBolt(t *testing.T) {
	for _, c := range []struct{ n, max int }{
		{0, 1}, {1, 1}, {1, 4000}, {2, 4000}, {37, 1}, {300, 4000}, {500, 1500}, {3000, 300}, {20000, 8}, {150000, 20},
	} {
		t.Run(fmt.Sprintf("%d rows to %d bytes", c.n, c.max), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tree")
			ps := sized(c.n, c.max)
			root, _, err := Build(t.Context(), path, seq(ps), nil)
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, path)
			sound(t, s, root)
			checkBolt(t, s)
			sameRows(t, s, ps)
			more := sized(c.n, c.max)
			for i := range more {
				more[i].Name = append(more[i].Name, 'x')
			}
			root = apply1(t, s, more[:min(len(more), 1000)])
			sound(t, s, root)
			checkBolt(t, s)
		})
	}
}

// TestCompact: the same tree in fewer bytes; none of a damaged one.
func TestCompact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	s := open(t, path)
	var root tree.Hash
	for i := range 20 {
		root = apply1(t, s, pairsOf(i*500, i*500+500))
	}
	if err := Compact(t.Context(), path); !errors.Is(err, ErrBusy) {
		t.Errorf("while it is written: got %v, want %v", err, ErrBusy)
	}
	s.Close()
	before := fileSize(t, path)
	if err := Compact(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if after := fileSize(t, path); after > before*2/3 {
		t.Errorf("%d bytes, had %d", after, before)
	}
	s = open(t, path)
	sound(t, s, root)
	rewrite(t, s, leavesBucket, pair(700).Name, []byte("other"))
	s.Close()
	if err := Compact(t.Context(), path); !errors.Is(err, ErrRoot) {
		t.Errorf("of a damaged tree: got %v, want %v", err, ErrRoot)
	}
}

// What lies where Build writes first, even a directory, does not hinder it.
func TestBuildObstacle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree.db")
	for name, obstacle := range map[string]func(string) error{
		"a directory": func(p string) error { return os.MkdirAll(filepath.Join(p, "x"), 0o700) },
		"a pipe":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a link":      func(p string) error { return os.Symlink("tree.db", p) },
	} {
		if err := obstacle(path + ".new"); err != nil {
			t.Fatal(err)
		}
		if _, n, err := Build(t.Context(), path, seq(sized(10, 5)), nil); err != nil || n != 10 {
			t.Errorf("%s: %d names, %v", name, n, err)
		}
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func checkBolt(t *testing.T, s *Store) {
	t.Helper()
	err := s.db.Update(func(tx *bolt.Tx) error { // where the list of free pages is known
		for err := range tx.Check() {
			t.Error(err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func sameRows(t *testing.T, s *Store, ps []tree.Pair) {
	t.Helper()
	i := 0
	err := s.Walk(t.Context(), nil, func(name, val []byte) error {
		if i >= len(ps) || !bytes.Equal(name, ps[i].Name) || !bytes.Equal(val, ps[i].Val) {
			t.Fatalf("row %d is %q", i, name)
		}
		i++
		return nil
	})
	if err != nil || i != len(ps) {
		t.Fatalf("%d rows, want %d, %v", i, len(ps), err)
	}
	for i := 0; i < len(ps); i += 1 + len(ps)/100 {
		if val, ok, err := s.Get(ps[i].Name); err != nil || !ok || !bytes.Equal(val, ps[i].Val) {
			t.Errorf("row %d: got %q, %v, %v", i, val, ok, err)
		}
	}
}
