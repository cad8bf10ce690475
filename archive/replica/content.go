package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
)

// headroom is what contents leave free on the disk, for the files that an
// update phase must be able to write.
const headroom = 8 << 20

// ContentPath returns where a content lies: a plain file named by its SHA-256.
func (s *Store) ContentPath(d archive.Digest) string {
	h := d.String()
	return filepath.Join(s.dir, contentDir, h[:2], h[2:4], h)
}

// HasContent reports whether a file of that name is there. What is in it only
// reading tells.
func (s *Store) HasContent(d archive.Digest) bool {
	_, err := s.contentSize(d)
	return err == nil
}

func (s *Store) contentSize(d archive.Digest) (int64, error) {
	info, err := os.Lstat(s.ContentPath(d))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, ErrMissing
	case err != nil:
		return 0, fmt.Errorf("%w: %w", ErrDamaged, err)
	case !info.Mode().IsRegular():
		return 0, fmt.Errorf("%w: not a regular file", ErrDamaged)
	}
	return info.Size(), nil
}

// OpenContent opens a content for reading. Nothing says yet that its bytes are
// right. The error is ErrMissing or ErrDamaged.
func (s *Store) OpenContent(d archive.Digest) (*os.File, error) {
	if _, err := s.contentSize(d); err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	f, err := os.Open(s.ContentPath(d))
	if err != nil {
		return nil, fmt.Errorf("content %s: %w: %w", d, ErrDamaged, err)
	}
	return f, nil
}

// PutContent keeps what r gives, provided that it is exactly size bytes with
// digest d; otherwise nothing is kept. The content is on the disk when it
// returns. It takes the place of a damaged one.
func (s *Store) PutContent(ctx context.Context, d archive.Digest, size int64, r io.Reader) error {
	_, err := s.putContent(ctx, d, size, r)
	return err
}

func (s *Store) putContent(ctx context.Context, d archive.Digest, size int64, r io.Reader) (c archive.Content, err error) {
	err = s.putFile(s.ContentPath(d), func(f *os.File) error {
		if err := reserve(f, size); err != nil {
			return err
		}
		c, err = copyHashed(ctx, f, io.LimitReader(r, size+1))
		if err == nil && (c.Digest != d || int64(c.Size) != size) {
			err = fmt.Errorf("%w: got %d bytes with digest %s, want %d", archive.ErrIntegrity, c.Size, c.Digest, size)
		}
		return err
	})
	if err != nil {
		return c, fmt.Errorf("keep content %s: %w", d, err)
	}
	return c, nil
}

// reserve sets size bytes aside for f, so that a full disk shows before the
// first byte is written.
func reserve(f *os.File, size int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err == nil && st.Blocks > 0 {
		if free := int64(st.Bavail) * st.Bsize; free-headroom < size {
			return fmt.Errorf("%w: %d bytes free, %d kept free", ErrFull, free, headroom)
		}
	}
	if size == 0 {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// copyHashed copies r to w and returns what it copied.
func copyHashed(ctx context.Context, w io.Writer, r io.Reader) (archive.Content, error) {
	h := archive.NewContentHasher()
	buf := make([]byte, 256<<10)
	_, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(w, h)}, &boundReader{ctx, r}, buf)
	return h.Content(), err
}

// boundReader is a reader that ends with its context.
type boundReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *boundReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// CheckContent reads a content off the disk, not out of the page cache, and
// returns what is there. The error is ErrMissing or ErrDamaged, or the
// context's.
func (s *Store) CheckContent(ctx context.Context, d archive.Digest, p *pace) (archive.Content, error) {
	f, err := s.OpenContent(d)
	if err != nil {
		return archive.Content{}, err
	}
	defer f.Close()
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	c, err := copyHashed(ctx, io.Discard, &pacedReader{ctx: ctx, r: f, p: p})
	switch {
	case ctx.Err() != nil:
		return c, ctx.Err()
	case err != nil:
		return c, fmt.Errorf("content %s: %w: %w", d, ErrDamaged, err)
	case c.Digest != d:
		return c, fmt.Errorf("content %s: %w: digest of %d bytes is %s", d, ErrDamaged, c.Size, c.Digest)
	}
	return c, nil
}

// pace keeps background work to its share of the time. The nil pace does not.
type pace struct{ share float64 }

// took pauses as long as work that took so long must.
func (p *pace) took(ctx context.Context, d time.Duration) error {
	if p == nil || p.share >= 1 || p.share <= 0 {
		return ctx.Err()
	}
	return pause(ctx, time.Duration(float64(d)*(1-p.share)/p.share))
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

// pacedReader pauses for the time that went by since the read before: reading,
// and what was done with the bytes.
type pacedReader struct {
	ctx  context.Context
	r    io.Reader
	p    *pace
	last time.Time
}

func (r *pacedReader) Read(b []byte) (int, error) {
	if !r.last.IsZero() {
		if err := r.p.took(r.ctx, time.Since(r.last)); err != nil {
			return 0, err
		}
	}
	r.last = time.Now()
	return r.r.Read(b)
}
