package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// maxMended is how many blocks a content may have to be mended by block: the
// list of them is kept in memory, 32 bytes each.
const maxMended = 1 << 20

// mender reads a content block by block: out of the damaged file where it is
// right, the rest from the sources.
type mender struct {
	ctx     context.Context
	r       *contentRepair
	content archive.Content
	list    archive.BlockList
	old     io.ReaderAt
	next    uint64
	buf     []byte
	ready   bytes.Reader // what is left of the block before next
}

// mend repairs a content of which a damaged file is there. It fails if that
// cannot be done by block.
func (r *contentRepair) mend(ctx context.Context, c archive.Content) error {
	if n := c.BlockCount(); n < 2 || n > maxMended {
		return errNoSource
	}
	old, err := r.store.OpenContent(c.Digest)
	if err != nil {
		return err
	}
	defer old.Close()
	list, err := r.blockList(ctx, c)
	if err != nil {
		return err
	}
	m := &mender{ctx: ctx, r: r, content: c, list: list, old: old, buf: make([]byte, archive.BlockSize)}
	return r.store.PutContent(ctx, c.Digest, int64(c.Size), m)
}

// blockList returns the list that fits the block root, from any source.
func (r *contentRepair) blockList(ctx context.Context, c archive.Content) (archive.BlockList, error) {
	for _, src := range r.sources {
		b, ok := src.(blockSource)
		if !ok {
			continue
		}
		var l archive.BlockList
		for page := uint64(0); uint64(len(l)) < c.BlockCount(); page++ {
			more, err := b.Blocks(ctx, c.Digest, page)
			if err != nil || len(more) == 0 {
				break
			}
			l = append(l, more...)
		}
		if c.CheckBlocks(l) == nil {
			return l, nil
		}
	}
	return nil, errors.Join(errNoSource, ctx.Err())
}

// blockSource is a Source that gives parts of contents. *wire.Client is one.
type blockSource interface {
	Source
	Blocks(ctx context.Context, d archive.Digest, page uint64) (archive.BlockList, error)
	ContentPart(ctx context.Context, d archive.Digest, offset, n int64) (io.ReadCloser, int64, error)
}

// Read implements io.Reader.
func (m *mender) Read(p []byte) (int, error) {
	if m.ready.Len() == 0 {
		if m.next == uint64(len(m.list)) {
			return 0, io.EOF
		}
		if err := m.block(m.next); err != nil {
			return 0, err
		}
		m.next++
	}
	return m.ready.Read(p)
}

// block makes block i ready.
func (m *mender) block(i uint64) error {
	b := m.buf[:m.content.BlockLen(i)]
	if n, _ := m.old.ReadAt(b, int64(i*archive.BlockSize)); n == len(b) && archive.DigestOf(b) == m.list[i] {
		m.ready.Reset(b)
		return nil
	}
	for _, src := range m.r.sources {
		s, ok := src.(blockSource)
		if !ok || m.r.dropped(src) {
			continue
		}
		err := m.fetch(s, i, b)
		if err == nil {
			m.ready.Reset(b)
			return nil
		}
		if m.ctx.Err() != nil {
			return m.ctx.Err()
		}
		m.r.log.Warn("a peer gave no good block", "peer", src.ID(), "content", m.content.Digest.String(), "block", i, "because", err)
	}
	return fmt.Errorf("block %d: %w", i, errNoSource)
}

func (m *mender) fetch(src blockSource, i uint64, b []byte) error {
	body, _, err := src.ContentPart(m.ctx, m.content.Digest, int64(i*archive.BlockSize), int64(len(b)))
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.ReadFull(body, b); err != nil {
		return err
	}
	if archive.DigestOf(b) != m.list[i] {
		return fmt.Errorf("%w: other bytes", archive.ErrIntegrity)
	}
	return nil
}

var _ blockSource = (*wire.Client)(nil)
