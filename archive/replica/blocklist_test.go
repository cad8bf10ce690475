package replica

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

func TestServeBlocks(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	big := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	a.Certify(t, map[archive.Name][]byte{"big": big, "empty": nil})
	s := startService(t, a, a.Replicas[0])
	c := archivetest.ContentOf(big)
	for range 2 { // computed, then remembered
		l, err := s.client.Blocks(t.Context(), c.Digest, 0)
		if err != nil || c.CheckBlocks(l) != nil {
			t.Fatalf("got %d blocks, %v", len(l), err)
		}
	}
	for _, page := range []uint64{1, 1<<32 - 1} {
		if l, err := s.client.Blocks(t.Context(), c.Digest, page); len(l) != 0 || err != nil {
			t.Errorf("page %d: %d blocks, %v", page, len(l), err)
		}
	}
	if l, err := s.client.Blocks(t.Context(), archivetest.ContentOf(nil).Digest, 0); len(l) != 0 || err != nil {
		t.Errorf("empty: %d blocks, %v", len(l), err)
	}
	if _, err := s.client.Blocks(t.Context(), archive.Digest{}, 0); !errors.Is(err, &wire.Error{Code: wire.CodeMissing}) {
		t.Errorf("missing: %v", err)
	}
	for _, path := range []string{c.Digest.String(), c.Digest.String() + "?page=-1", c.Digest.String() + "?page=4294967296", "x?page=0"} {
		resp, err := s.client.HTTP().Get(s.client.URL(wire.PathBlocks + path))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: status %d", path, resp.StatusCode)
		}
	}
	body, size, err := s.client.ContentPart(t.Context(), c.Digest, 1<<20, 100)
	if err != nil || size != int64(len(big)) {
		t.Fatalf("part: %d bytes, %v", size, err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); err != nil || !bytes.Equal(b, big[1<<20:1<<20+100]) {
		t.Errorf("part: got %d bytes, %v", len(b), err)
	}
}

// A long list comes in pages, and a file that is written anew shows.
func TestBlockPages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const size = (wire.MaxBlocks+2)<<20 - 1
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lists, first := newBlockLists(), make(map[uint64]string)
	for page, want := range map[uint64]int{0: wire.MaxBlocks, 1: 2, 2: 0, 1<<32 - 1: 0} {
		b, err := lists.page(t.Context(), listKey{page: page, size: size}, f)
		if err != nil || len(b) != want*32 {
			t.Errorf("page %d: %d bytes, %v", page, len(b), err)
		}
		first[page] = string(b)
	}
	if _, err := f.WriteAt([]byte("x"), (wire.MaxBlocks+1)<<20); err != nil {
		t.Fatal(err)
	}
	if b, _ := lists.page(t.Context(), listKey{page: 1, size: size, written: time.Unix(1, 0)}, f); string(b) == first[1] || string(b[:32]) != first[1][:32] {
		t.Error("the second block of the page changed, the list did not, or more of it")
	}
}

func TestBlockListsBounded(t *testing.T) {
	l := newBlockLists()
	for i := range uint64(keptLists + 10) {
		l.put(listKey{page: i}, nil)
		l.put(listKey{page: i}, nil)
	}
	if len(l.pages) != keptLists || len(l.order) != keptLists {
		t.Errorf("%d pages kept, %d in order", len(l.pages), len(l.order))
	}
	if _, ok := l.get(listKey{page: 9}); ok {
		t.Error("the oldest stays")
	}
}
