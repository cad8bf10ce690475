package cmd

import (
	"bytes"
	"testing"
)

// FuzzControl: whatever comes over a control socket is a line of JSON, or an
// error.
func FuzzControl(f *testing.F) {
	f.Add([]byte(`{"do":"state"}` + "\n"))
	f.Add([]byte(`{"replica":1,"report":{"epoch":3}}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var q controlRequest
		var r controlReply
		if (receive(bytes.NewReader(b), &q) == nil || receive(bytes.NewReader(b), &r) == nil) && !bytes.Contains(b, []byte("\n")) {
			t.Errorf("%q is no line", b)
		}
	})
}
