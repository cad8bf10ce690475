package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/tree"
)

// leafPages are the offsets of the pages that hold rows.
func leafPages(b []byte) (at []int) {
	for off := 0; off < len(b); off += 4096 {
		p := page(b[off : off+4096])
		if binary.LittleEndian.Uint64(p) == uint64(off/4096) && p.flags() == leafPage && p.count() > 8 {
			at = append(at, off)
		}
	}
	return at
}

// TestSalvage: of pages that were lost little more must be fetched than they
// held, even where digests are lost with them, and all else is still there.
func TestSalvage(t *testing.T) {
	ps := benchPairs(0, 40_000)
	path := filepath.Join(t.TempDir(), "tree")
	root, _, err := Build(t.Context(), path, seq(ps), nil)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at, lost := leafPages(whole), 0
	for i := 7; i < len(at); i += 31 {
		clear(whole[at[i] : at[i]+4096])
		lost++
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	least, all, err := s.Salvage(t.Context(), root)
	if err != nil || len(least) == 0 || len(all) == 0 {
		t.Fatal(least, all, err)
	}
	in := func(ds []Damage, name []byte) bool {
		return slices.ContainsFunc(ds, func(d Damage) bool {
			return d.Level == 0 && bytes.Compare(d.From, name) <= 0 && span{d.From, d.To}.before(name)
		})
	}
	m, fetched := &tree.Memory{}, 0
	for _, p := range ps {
		val, ok, err := s.Get(p.Name)
		switch {
		case in(least, p.Name):
			fetched++
			val = p.Val
			if !in(all, p.Name) {
				t.Fatalf("%q is lost at the least, but not in all", p.Name)
			}
		case err != nil || !ok:
			t.Fatalf("%q is neither there nor said to be lost: %v", p.Name, err)
		}
		if err := m.Put(p.Name, val); err != nil {
			t.Fatal(err)
		}
	}
	if m.Root() != root {
		t.Error("what is said to be right is not")
	}
	if most := lost * 45; fetched > most {
		t.Errorf("%d names must be fetched for %d lost pages, want at most %d", fetched, lost, most)
	}
}

// TestSalvagePageSize: rows are found in a file from a machine with other pages,
// also if one of its meta pages is lost.
func TestSalvagePageSize(t *testing.T) {
	for _, size := range []int{1 << 10, 4 << 10, 16 << 10, 64 << 10} {
		for _, lost := range []int{-1, 0, 1} {
			path := filepath.Join(t.TempDir(), "rows")
			db, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: size})
			if err != nil {
				t.Fatal(err)
			}
			const n = 3000
			fill := func(tx *bolt.Tx) error {
				b, err := tx.CreateBucket([]byte("rows"))
				for i := 0; err == nil && i < n; i++ {
					err = b.Put(fmt.Appendf(nil, "name %04d", i), bytes.Repeat([]byte{byte(i)}, 40+i%7*300))
				}
				return err
			}
			if err := errors.Join(db.Update(fill), db.Close()); err != nil {
				t.Fatal(err)
			}
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if lost >= 0 {
				clear(file[lost*size : (lost+1)*size])
			}
			found := make(map[string]bool)
			err = Salvage(bytes.NewReader(file), int64(len(file)), func(key, val []byte) error {
				var i int
				if k, err := fmt.Sscanf(string(key), "name %04d", &i); k == 1 && err == nil && len(val) == 40+i%7*300 {
					found[string(key)] = true
				}
				return nil
			})
			if err != nil || len(found) != n {
				t.Errorf("pages of %d bytes, without meta page %d: %d of %d rows, %v", size, lost, len(found), n, err)
			}
		}
	}
}
