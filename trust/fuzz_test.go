package trust

import (
	"bytes"
	"testing"
)

// FuzzSlots: slots have one encoding.
func FuzzSlots(f *testing.F) {
	f.Add(Slots{Epoch: 3, Tick: 1}.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseSlots(b); err == nil && !bytes.Equal(s.Bytes(), b) {
			t.Errorf("%x encodes as %x", b, s.Bytes())
		}
	})
}
