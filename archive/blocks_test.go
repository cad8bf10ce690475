package archive_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/bonafide-archive/bonafide/archive"
)

func describe(b []byte) archive.Content {
	h := archive.NewContentHasher()
	h.Write(b)
	return h.Content()
}

func TestBlockList(t *testing.T) {
	const size = archive.BlockSize
	all := make([]byte, 5*size+1)
	for i := range all {
		all[i] = byte(i >> 12 * 7)
	}
	for _, n := range []int{0, 1, size - 1, size, size + 1, 2*size - 1, 2 * size, 3 * size, 4*size + 7, 5 * size, 5*size + 1} {
		c := describe(all[:n])
		l, err := archive.ReadBlocks(bytes.NewReader(all[:n]), 100)
		if err != nil || c.CheckBlocks(l) != nil {
			t.Fatalf("%d bytes: %v, %v", n, err, c.CheckBlocks(l))
		}
		again, err := archive.ParseBlockList(l.Bytes(), len(l))
		if err != nil || !slices.Equal(again, l) {
			t.Errorf("%d bytes: list parsed to another: %v", n, err)
		}
		var sum uint64
		for i := range c.BlockCount() {
			if l[i] != archive.DigestOf(all[i*size:i*size+c.BlockLen(i)]) {
				t.Errorf("%d bytes: digest of block %d", n, i)
			}
			sum += c.BlockLen(i)
		}
		if sum != c.Size {
			t.Errorf("%d bytes: blocks have %d", n, sum)
		}
		checkWrongLists(t, c, l)
	}
}

// checkWrongLists changes, drops, doubles and swaps each block of l.
func checkWrongLists(t *testing.T, c archive.Content, l archive.BlockList) {
	t.Helper()
	refuse := func(what string, wrong archive.BlockList) {
		t.Helper()
		if err := c.CheckBlocks(wrong); !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("%d blocks, %s: %v", len(l), what, err)
		}
	}
	refuse("one more", append(slices.Clone(l), archive.Digest{}))
	for i := range l {
		for _, at := range []int{0, 13, 31} {
			wrong := slices.Clone(l)
			wrong[i][at] ^= 1
			refuse("changed", wrong)
		}
		refuse("one less", slices.Delete(slices.Clone(l), i, i+1))
		refuse("doubled", slices.Insert(slices.Clone(l), i, l[i]))
		if i > 0 && l[i] != l[i-1] {
			wrong := slices.Clone(l)
			wrong[i], wrong[i-1] = wrong[i-1], wrong[i]
			refuse("swapped", wrong)
		}
	}
}

func TestReadBlocksBounds(t *testing.T) {
	endless := io.LimitReader(zeros{}, 1<<40)
	if l, err := archive.ReadBlocks(endless, 3); len(l) != 3 || err != nil {
		t.Errorf("%d blocks, %v", len(l), err)
	}
	broken := errors.New("broken")
	if _, err := archive.ReadBlocks(iotest.ErrReader(broken), 3); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestBlockCount(t *testing.T) {
	for size, want := range map[uint64]uint64{0: 0, 1: 1, 1 << 20: 1, 1<<20 + 1: 2, 1<<64 - 1: 1 << 44} {
		if got := (archive.Content{Size: size}).BlockCount(); got != want {
			t.Errorf("%d bytes: %d blocks, want %d", size, got, want)
		}
	}
}

func FuzzBlockList(f *testing.F) {
	seed := archive.BlockList{archive.DigestOf(nil), {1}, {2}}
	fuzz(f, seed.Bytes(), func(b []byte) (interface{ Bytes() []byte }, error) {
		l, err := archive.ParseBlockList(b, 256)
		if err == nil {
			l.Root() // must not panic
		}
		return l, err
	})
}
