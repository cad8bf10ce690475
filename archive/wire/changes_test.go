package wire

import (
	"bytes"
	"errors"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree"
)

func changesOf(next string, names ...string) Changes {
	c := Changes{Next: []byte(next)}
	for _, n := range names {
		c.Pairs = append(c.Pairs, tree.Pair{Name: []byte(n), Val: []byte("value")})
	}
	return c
}

func TestParseChanges(t *testing.T) {
	many := changesOf("")
	for i := range MaxPage + 1 {
		many.Pairs = append(many.Pairs, tree.Pair{Name: []byte{1, byte(i >> 8), byte(i)}})
	}
	for _, c := range []struct {
		what string
		b    []byte
		ok   bool
	}{
		{"none", changesOf("").Bytes(), true},
		{"one", changesOf("", "b").Bytes(), true},
		{"two and more", changesOf("d", "b", "c").Bytes(), true},
		{"none here", changesOf("c").Bytes(), true},
		{"a full page", Changes{Pairs: many.Pairs[:MaxPage]}.Bytes(), false}, // they lie below from
		{"nothing", nil, false},
		{"below from", changesOf("", "a").Bytes(), false},
		{"twice", changesOf("", "b", "b").Bytes(), false},
		{"out of order", changesOf("", "c", "b").Bytes(), false},
		{"no name", changesOf("", "").Bytes(), false},
		{"next is from", changesOf("b").Bytes(), false},
		{"next is the last", changesOf("c", "b", "c").Bytes(), false},
		{"next is long", changesOf(string(bytes.Repeat([]byte("n"), archive.MaxName+2))).Bytes(), false},
		{"too many", many.Bytes(), false},
		{"too long", make([]byte, MaxChanges+1), false},
		{"cut", changesOf("", "b").Bytes()[:9], false},
		{"a byte more", append(changesOf("", "b").Bytes(), 0), false},
	} {
		got, err := ParseChanges(c.b, []byte("b"))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, archive.ErrFormat) {
			t.Errorf("%s: %v", c.what, err)
		}
		if c.ok && !bytes.Equal(got.Bytes(), c.b) {
			t.Errorf("%s: got %x, want %x", c.what, got.Bytes(), c.b)
		}
	}
	if _, err := ParseChanges(Changes{Pairs: many.Pairs[:MaxPage]}.Bytes(), nil); err != nil {
		t.Errorf("a full page: %v", err)
	}
}

// What is parsed has one encoding, and increases from where it should.
func FuzzParseChanges(f *testing.F) {
	f.Add(changesOf("d", "b", "c").Bytes(), []byte("b"))
	f.Add(changesOf("").Bytes(), []byte{})
	f.Fuzz(func(t *testing.T, b, from []byte) {
		c, err := ParseChanges(b, from)
		if err != nil {
			return
		}
		if !bytes.Equal(c.Bytes(), b) {
			t.Fatalf("got %x, want %x", c.Bytes(), b)
		}
		for i, p := range c.Pairs {
			if bytes.Compare(p.Name, from) < 0 || i > 0 && bytes.Compare(p.Name, c.Pairs[i-1].Name) <= 0 {
				t.Fatalf("%q out of order", p.Name)
			}
		}
	})
}
