package client

import (
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
)

// FuzzSeen: the file of what was accepted is in its one form, or damaged.
func FuzzSeen(f *testing.F) {
	s := &seen{archive: archive.Digest{1}}
	f.Add(s.encode(mark{7, archive.Digest{2}}))
	f.Fuzz(func(t *testing.T, text string) {
		if m, err := s.parse(text); err == nil && s.encode(m) != text {
			t.Errorf("%q encodes as %q", text, s.encode(m))
		}
	})
}
