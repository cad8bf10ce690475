package consensus

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzJournal: whatever lies in an engine's directory is judged without a panic.
func FuzzJournal(f *testing.F) {
	dir := f.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "wal"), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"height":"1","round":0,"step":3}`), []byte("00"), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, votes, instance, wal, decided []byte) {
		for name, b := range map[string][]byte{"votes": votes, "instance": instance, "wal/wal": wal, "decided": decided} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		MayResume(dir)
	})
}
