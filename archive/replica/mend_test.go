package replica

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// counted counts what a source sends of contents.
type counted struct {
	*wire.Client
	sent *int64
}

func (c counted) Content(ctx context.Context, d archive.Digest, offset int64) (io.ReadCloser, int64, error) {
	body, size, err := c.Client.Content(ctx, d, offset)
	*c.sent += size - offset
	return body, size, err
}

func (c counted) ContentPart(ctx context.Context, d archive.Digest, offset, n int64) (io.ReadCloser, int64, error) {
	*c.sent += n
	return c.Client.ContentPart(ctx, d, offset, n)
}

func TestMend(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	big := bytes.Repeat([]byte("0123456789abcdef"), 200_000) // three blocks and a bit
	for i := range big {
		big[i] += byte(i >> 20)
	}
	c := archivetest.ContentOf(big)
	a.Certify(t, map[archive.Name][]byte{"big": big})
	s := startService(t, a, a.Replicas[1])
	startLiar(t, a, a.Replicas[2])
	liar := wire.NewClient(a.Replicas[2].Replica, a.Roster, wire.Options{})
	t.Cleanup(liar.Close)
	mine := a.Replicas[0]
	store, path := openStore(t, a, mine), archivetest.ContentPath(mine.Dir, c.Digest)
	for name, tt := range map[string]struct {
		damage func()
		most   int64
	}{
		"a bit":       {func() { flipByte(t, path, 2<<20+1) }, 1 << 20},
		"two blocks":  {func() { flipByte(t, path, 0); flipByte(t, path, 3<<20) }, 1<<20 + int64(len(big)) - 3<<20},
		"cut":         {func() { os.Truncate(path, 2<<20) }, int64(len(big)) - 2<<20},
		"longer":      {func() { os.Truncate(path, 9<<20) }, 0},
		"all is gone": {func() { removeAll(t, path) }, int64(len(big))},
	} {
		var honest, lies int64
		log := serviceConfig(t, a, mine).Log
		r := newContentRepair(store, []Source{counted{liar, &lies}, counted{s.client, &honest}}, log)
		tt.damage()
		if err := r.restore(t.Context(), c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, big) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if honest > tt.most {
			t.Errorf("%s: fetched %d bytes, want at most %d", name, honest, tt.most)
		}
	}
}
