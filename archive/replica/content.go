package replica

import (
	"context"
	"io"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/content"
)

// headroom is what contents leave free on the disk, for the files that an
// update phase must be able to write.
const headroom = content.Headroom

// ContentPath returns where a content lies that is a file of its own.
func (s *Store) ContentPath(d archive.Digest) string { return s.contents.PlainPath(d) }

func (s *Store) contentSize(d archive.Digest) (int64, error) { return s.contents.Size(d) }

// OpenContent opens a content for reading. Nothing says yet that its bytes are
// right. The error is ErrMissing or ErrDamaged, or another if nothing is known of
// the content.
func (s *Store) OpenContent(d archive.Digest) (*content.Reader, error) { return s.contents.Open(d) }

// PutContent keeps what r gives, provided that it is exactly size bytes with
// digest d; otherwise nothing is kept. The content is on the disk when it
// returns. It takes the place of a damaged one.
func (s *Store) PutContent(ctx context.Context, d archive.Digest, size int64, r io.Reader) error {
	_, err := s.putContent(ctx, d, size, r)
	return err
}

func (s *Store) putContent(ctx context.Context, d archive.Digest, size int64, r io.Reader) (archive.Content, error) {
	return s.contents.Put(ctx, d, size, r)
}

// CheckContent reads a content off the disk, not out of the page cache, and
// returns what is there. The error is as in OpenContent, or the context's.
func (s *Store) CheckContent(ctx context.Context, d archive.Digest) (archive.Content, error) {
	return s.contents.Check(ctx, d)
}

// pace keeps background work to its share of the time.
type pace struct{ share float64 }

// took pauses as long as work that took so long must.
func (p *pace) took(ctx context.Context, d time.Duration) error {
	if p.share >= 1 || p.share <= 0 {
		return ctx.Err()
	}
	return pause(ctx, time.Duration(float64(d)*(1-p.share)/p.share))
}

// limit returns the pauses that the work must make, nil for none.
func (p *pace) limit() func(context.Context, time.Duration) error {
	if p.share >= 1 || p.share <= 0 {
		return nil
	}
	return p.took
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
