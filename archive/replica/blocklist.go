package replica

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/content"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

const (
	maxLists  = 2    // pages of block lists being computed at a time
	keptLists = 1024 // pages kept, of at most 8 KiB each
)

// blockLists remembers pages of block lists, which cost the reading of 256 MiB
// each. What is remembered need not be right any more: who asks checks.
type blockLists struct {
	places chan struct{}

	mu    sync.Mutex
	pages map[listKey][]byte
	order []listKey // oldest first
}

// listKey names a page of a file as it was last written.
type listKey struct {
	digest  archive.Digest
	page    uint64
	size    int64
	written time.Time
}

func newBlockLists() *blockLists {
	return &blockLists{places: make(chan struct{}, maxLists), pages: make(map[listKey][]byte)}
}

func (l *blockLists) get(k listKey) ([]byte, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.pages[k]
	return b, ok
}

func (l *blockLists) put(k listKey, b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.pages[k]; ok {
		return
	}
	if len(l.order) == keptLists {
		delete(l.pages, l.order[0])
		l.order = l.order[1:]
	}
	l.pages[k], l.order = b, append(l.order, k)
}

// page returns page k of what f holds.
func (l *blockLists) page(ctx context.Context, k listKey, f io.ReadSeeker) ([]byte, error) {
	start := int64(k.page) * wire.MaxBlocks * archive.BlockSize
	if start >= k.size {
		return nil, nil
	}
	if b, ok := l.get(k); ok {
		return b, nil
	}
	leave, err := enter(ctx, l.places)
	if err != nil {
		return nil, err
	}
	defer leave()
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return nil, err
	}
	list, err := archive.ReadBlocks(content.Bound(ctx, f), wire.MaxBlocks)
	if err != nil {
		return nil, err
	}
	b := list.Bytes()
	l.put(k, b)
	return b, nil
}

// blocks serves a page of the digests of a content's blocks, as they are in the
// file: a damaged block shows.
func (p *peerHandler) blocks(w http.ResponseWriter, r *http.Request) error {
	d, err := archive.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return badRequest(err)
	}
	page, err := strconv.ParseUint(r.URL.Query().Get("page"), 10, 32)
	if err != nil {
		return wire.Errorf(wire.CodeBadRequest, "page must be a number below 2^32")
	}
	f, err := p.store.OpenContent(d)
	if err != nil {
		return notOpened(d, err)
	}
	defer f.Close()
	b, err := p.lists.page(r.Context(), listKey{d, page, f.Size(), f.Written()}, f)
	var known *wire.Error
	if errors.As(err, &known) {
		return known
	}
	if err != nil {
		return wire.Errorf(wire.CodeDamaged, "content %s cannot be read", d)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b) // the peer may be gone
	return nil
}
