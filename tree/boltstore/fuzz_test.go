package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/bonafide-archive/bonafide/tree"
)

// FuzzFile changes bytes of a tree file: no question panics or hangs, and what
// the audit calls right is right.
func FuzzFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "tree")
	m := new(tree.Memory)
	for _, p := range pairsOf(0, 700) {
		if err := m.Put(p.Name, p.Val); err != nil {
			f.Fatal(err)
		}
	}
	root, _, err := Build(f.Context(), path, seq(m.Pairs()), nil)
	if err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0, 0, 0, 24, 1})
	f.Add([]byte{0, 0, 0x30, 8, 1, 0, 0, 0x30, 10, 3})
	f.Fuzz(func(t *testing.T, edits []byte) {
		b := bytes.Clone(whole)
		for ; len(edits) >= 5; edits = edits[5:] {
			b[int(binary.BigEndian.Uint32(edits))%len(b)] = edits[4]
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Salvage(bytes.NewReader(b), int64(len(b)), func(_, _ []byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path, Options{ReadOnly: true})
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		defer s.Close()
		found, err := s.Audit(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < 720; i += 90 {
			want, there := pair(i), i < 700
			val, ok, err := s.Get(want.Name)
			if len(found) == 0 && (err != nil || ok != there || ok && !bytes.Equal(val, want.Val)) {
				t.Errorf("get %d: wrong, not found by the audit: %q, %v, %v", i, val, ok, err)
			}
			if _, err := s.Prove(want.Name); err != nil && !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
		}
	})
}
