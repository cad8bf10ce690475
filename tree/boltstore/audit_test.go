package boltstore

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/tree"
)

// builtFile is a file of n pairs, closed.
func builtFile(t *testing.T, n int) (path string, root tree.Hash) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "tree")
	root, _, err := Build(t.Context(), path, seq(reference(t, pairsOf(0, n)).Pairs()), nil)
	if err != nil {
		t.Fatal(err)
	}
	return path, root
}

func audit(t *testing.T, s *Store, want tree.Hash) []Damage {
	t.Helper()
	damage, err := s.Audit(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	return damage
}

func TestAuditOtherRoot(t *testing.T) {
	path, root := builtFile(t, 500)
	s := open(t, path)
	later := apply1(t, s, pairsOf(500, 510))
	sound(t, s, later)
	got := audit(t, s, root)
	if !slices.ContainsFunc(got, func(d Damage) bool { return d.Level == 0 && d.From == nil && d.To == nil }) {
		t.Errorf("against an earlier root: %v", got)
	}
}

// rewrite changes rows behind the store's back.
func rewrite(t *testing.T, s *Store, bucket, key, val []byte) {
	t.Helper()
	err := s.db.Update(func(tx *bolt.Tx) error {
		if val == nil {
			return tx.Bucket(bucket).Delete(key)
		}
		return tx.Bucket(bucket).Put(key, val)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestAuditLocates changes rows one at a time and expects the damage to be
// found at the right level, and, for pairs, in a small range.
func TestAuditLocates(t *testing.T) {
	wrong := make([]byte, 32)
	for _, c := range []struct {
		what             string
		bucket, key, val []byte
		pairs            bool
	}{
		{"value changed", leavesBucket, pair(700).Name, []byte("other"), true},
		{"pair deleted", leavesBucket, pair(700).Name, nil, true},
		{"pair added", leavesBucket, append(pair(700).Name, 'x'), []byte("v"), true},
		{"digest of level 0", chunksBucket(0), []byte{0}, wrong, true},
		{"digest of level 1", chunksBucket(1), []byte{0}, wrong, false},
		{"state", metaBucket, stateKey, []byte("junk"), false},
	} {
		t.Run(c.what, func(t *testing.T) {
			path, root := builtFile(t, 3000)
			s := open(t, path)
			rewrite(t, s, c.bucket, c.key, c.val)
			got := audit(t, s, root)
			inPairs := slices.ContainsFunc(got, func(d Damage) bool { return d.Level == 0 })
			if len(got) == 0 || inPairs != c.pairs {
				t.Fatalf("got %v", got)
			}
			for _, d := range got {
				if d.Level == 0 && d.From == nil && d.To == nil {
					t.Errorf("not located: %v", d)
				}
			}
		})
	}
}

const pageSize = 4096

// branchOf returns the offset of a branch page with more than one child.
func branchOf(t *testing.T, b []byte) int {
	t.Helper()
	for at := 2 * pageSize; at < len(b); at += pageSize {
		if p := page(b[at:]); p.flags() == branchPage && p.count() > 2 {
			return at
		}
	}
	t.Fatal("no branch page")
	return 0
}

// TestCircle: a branch of which any child is the branch itself is refused at
// once; a search in it would overflow the stack.
func TestCircle(t *testing.T) {
	path, _ := builtFile(t, 3000)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := branchOf(t, whole)
	for child := range page(whole[at:]).count() {
		b := slices.Clone(whole)
		binary.LittleEndian.PutUint64(b[at+pageHeader+child*element+8:], uint64(at/pageSize))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, Options{ReadOnly: true}); !errors.Is(err, ErrDamaged) {
			t.Errorf("child %d: got %v, want %v", child, err, ErrDamaged)
		}
	}
}

// TestBranchKey: a branch key too low hides names from a search, though a walk
// meets all of them and every digest is right.
func TestBranchKey(t *testing.T) {
	path, root := builtFile(t, 3000)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	e := branchOf(t, b) + pageHeader + element
	key := e + int(binary.LittleEndian.Uint32(b[e:]))
	b[key+int(binary.LittleEndian.Uint32(b[e+4:]))-2] -= 2
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, _, err := s.Rehash(t.Context(), nil); err != nil || got != root {
		t.Fatalf("the walk meets other pairs: %v", err)
	}
	if len(audit(t, s, root)) == 0 {
		t.Error("not found")
	}
}
