package consensus

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// noise is n bytes that are the same in every run: ChaCha8 under a fixed seed.
func noise(n int, seed byte) []byte {
	out := make([]byte, n)
	rand.NewChaCha8(filled(seed)).Read(out)
	return out
}

func pieces(t testing.TB, r io.Reader) (out [][]byte) {
	t.Helper()
	err := Split(r, func(p []byte) error {
		out = append(out, bytes.Clone(p))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// testPieces are the sizes into which a counter's text, one number a line, is cut.
func testPieces() string {
	var text bytes.Buffer
	for i := range 200000 {
		fmt.Fprintln(&text, i)
	}
	var sizes []string
	_ = Split(&text, func(p []byte) error {
		sizes = append(sizes, fmt.Sprint(len(p)))
		return nil
	})
	return strings.Join(sizes, ",")
}

func TestSplit(t *testing.T) {
	for name, in := range map[string][]byte{
		"nothing": nil, "a byte": {7}, "zeros": make([]byte, 5<<20), "noise": noise(5<<20, 1),
		"least": noise(minPiece, 2), "most": make([]byte, MaxPiece), "one more": make([]byte, MaxPiece+1),
	} {
		got := pieces(t, bytes.NewReader(in))
		if !bytes.Equal(bytes.Join(got, nil), in) {
			t.Errorf("%s: pieces do not make it up", name)
		}
		for i, p := range got {
			if len(p) == 0 || len(p) > MaxPiece || len(p) < minPiece && i < len(got)-1 {
				t.Errorf("%s: piece %d of %d bytes", name, i, len(p))
			}
		}
		slow := pieces(t, iotest.HalfReader(bytes.NewReader(in)))
		if len(slow) != len(got) {
			t.Errorf("%s: cuts depend on the reads", name)
		}
	}
}

// An insertion costs the pieces around it, not all that follow.
func TestSplitShares(t *testing.T) {
	a := noise(16<<20, 3)
	b := append(append(bytes.Clone(a[:1<<20]), "something else"...), a[1<<20:]...)
	have := map[[32]byte]bool{}
	for _, p := range pieces(t, bytes.NewReader(a)) {
		have[sha256.Sum256(p)] = true
	}
	news, all := 0, pieces(t, bytes.NewReader(b))
	for _, p := range all {
		if !have[sha256.Sum256(p)] {
			news++
		}
	}
	if news > 4 || len(all) < 32 {
		t.Errorf("%d of %d pieces are new", news, len(all))
	}
}

func TestSplitErrors(t *testing.T) {
	broken := errors.New("broken")
	count := func([]byte) error { return nil }
	if err := Split(iotest.ErrReader(broken), count); !errors.Is(err, broken) {
		t.Errorf("reader: %v", err)
	}
	stop := func([]byte) error { return broken }
	if err := Split(bytes.NewReader(noise(1<<20, 4)), stop); !errors.Is(err, broken) {
		t.Errorf("emit: %v", err)
	}
	if err := Split(strings.NewReader("last"), stop); !errors.Is(err, broken) {
		t.Errorf("last emit: %v", err)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("some text"), uint32(1))
	f.Add([]byte{0}, uint32(2<<20))
	f.Fuzz(func(t *testing.T, b []byte, n uint32) {
		in := bytes.Repeat(b, 1+int(n%(3<<20))/(len(b)+1))
		if got := pieces(t, bytes.NewReader(in)); !bytes.Equal(bytes.Join(got, nil), in) {
			t.Error("pieces do not make it up")
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	in := noise(16<<20, 5)
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		_ = Split(bytes.NewReader(in), func([]byte) error { return nil })
	}
}
