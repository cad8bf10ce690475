package soft

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzState: whatever lies where the state belongs is a whole state, or refused.
func FuzzState(f *testing.F) {
	dir := f.TempDir()
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, stateName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := read(dir); err == nil && s.check() != nil {
			t.Error("a state that is not whole")
		}
	})
}
