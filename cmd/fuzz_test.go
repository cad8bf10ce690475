package cmd

import (
	"bytes"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
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

// FuzzRegistration: what parses is the one encoding of what it says.
func FuzzRegistration(f *testing.F) {
	odd := []guarded{{"00", ""}, {"00ff", "a b\\\n\r\xff"}}
	f.Add(registration{kind: "files", root: rootOf(odd), came: odd, went: odd[1:]}.bytes())
	f.Add([]byte(guardFormat + "\nkind git\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parseRegistration("x", b)
		if err != nil {
			return
		}
		if !bytes.Equal(v.bytes(), b) {
			t.Errorf("%q encodes to %q", b, v.bytes())
		}
		r := registry{items: make(map[guarded]archive.Name)}
		r.take(v)
		if len(r.items) > 0 && r.next(v.kind, nil) == nil {
			t.Error("nothing is left, and that is nothing new")
		}
	})
}

// FuzzSums: each path comes with a digest that stands in the list.
func FuzzSums(f *testing.F) {
	const digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, l := range []string{digest + "  a", `\` + digest + ` *a\nb\\`, "SHA256 (a b) = " + digest, "#\n\r\n" + digest + "\t*50%25"} {
		f.Add(l, l != "")
		f.Add(l, false)
	}
	f.Fuzz(func(t *testing.T, list string, bag bool) {
		lines, err := readSums(strings.NewReader(list), bag)
		for _, l := range lines {
			if err == nil && (l.path == "" || !strings.Contains(strings.ToLower(list), l.digest.String())) {
				t.Errorf("%q: made up %+v", list, l)
			}
		}
	})
}
