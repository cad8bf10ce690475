package content

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
)

// Item is a content to be checked, and where it lies.
type Item struct {
	Digest archive.Digest
	Place  Place
	Size   int64 // as located, in bytes
}

// Checking says how contents are checked.
type Checking struct {
	// Took is called with the time that a piece of the work took, and pauses
	// as long as the share of the disk that the work may have demands. If it
	// is nil, all cores work without a pause.
	Took func(ctx context.Context, d time.Duration) error
	// Wrong is called, once at a time, with each content that is not what it
	// should be. The error is ErrMissing or ErrDamaged.
	Wrong func(Item, error)
	// Passed is called, once at a time, when so many contents more have been
	// checked, of which last lies farthest on the disk.
	Passed func(n int, last Item)

	cached bool // benchmarks: pages may come out of the page cache
}

// stride is how much is read at a time, in bytes.
const stride = 1 << 20

// CheckAll reads contents and compares them with their digests. They must be in
// the order of their places: then the disk is read from one end to the other.
// It fails with its context, and where the system does not let it read: that says
// nothing of a content.
func (s *Store) CheckAll(ctx context.Context, items []Item, how Checking) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	jobs := make(chan []Item)
	var wg sync.WaitGroup
	var telling sync.Mutex
	for range how.workers() {
		wg.Go(func() {
			c := &checker{store: s, how: how, buf: make([]byte, stride+span(Small)), telling: &telling}
			defer c.close()
			for job := range jobs {
				if err := c.check(ctx, job); err != nil {
					stop(err)
				}
			}
		})
	}
	for len(items) > 0 && ctx.Err() == nil {
		n := together(items)
		select {
		case jobs <- items[:n]:
			items = items[n:]
		case <-ctx.Done():
		}
	}
	close(jobs)
	wg.Wait()
	return context.Cause(ctx)
}

// workers returns how many check at a time: one more than there are cores, since
// one waits for the disk.
func (c Checking) workers() int {
	if c.Took != nil {
		return 1
	}
	return runtime.GOMAXPROCS(0) + 1
}

// together returns how many of the first items are read at once.
func together(items []Item) int {
	first := items[0].Place
	n := 1
	for first < plainPlace && n < len(items) && items[n].Place < plainPlace && items[n].Place-first <= stride/block {
		n++ // places in different packs are far apart
	}
	return n
}

// checker is one of those who check.
type checker struct {
	store   *Store
	how     Checking
	buf     []byte
	telling *sync.Mutex

	pack  *os.File // the one read last
	packN uint32
}

func (c *checker) close() {
	if c.pack != nil {
		c.pack.Close()
		c.pack = nil
	}
}

// check checks items that are read together. It fails as CheckAll does.
func (c *checker) check(ctx context.Context, items []Item) error {
	start := time.Now()
	var wrong []error
	if items[0].Place < plainPlace {
		wrong = c.packed(ctx, items)
	} else {
		wrong = []error{c.plain(ctx, items[0].Digest)}
		start = time.Time{} // it has paused by itself
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, err := range wrong {
		if err != nil && !isAny(err, ErrMissing, ErrDamaged) {
			return err
		}
	}
	c.tell(items, wrong)
	if c.how.Took == nil || start.IsZero() {
		return nil
	}
	return c.how.Took(ctx, time.Since(start))
}

func (c *checker) tell(items []Item, wrong []error) {
	c.telling.Lock()
	defer c.telling.Unlock()
	for i, err := range wrong {
		if err != nil && c.how.Wrong != nil {
			c.how.Wrong(items[i], err)
		}
	}
	if c.how.Passed != nil {
		c.how.Passed(len(items), items[len(items)-1])
	}
}

// packed checks members that lie near each other.
func (c *checker) packed(ctx context.Context, items []Item) []error {
	first, last := items[0].Place.location(), items[len(items)-1].Place.location()
	from := first.offset()
	to := last.offset() + span(Small)
	b := c.readPack(first.pack, from, to)
	wrong := make([]error, len(items))
	for i, it := range items {
		if !c.memberAt(b, it.Place.location().offset()-from, it.Digest) {
			wrong[i] = c.again(ctx, it.Digest)
		}
	}
	return wrong
}

// location returns where a packed content lies, but for its size.
func (p Place) location() location {
	return location{pack: uint32(p >> 24), block: uint32(p & (1<<24 - 1))}
}

// memberAt reports whether the member of a content lies at an offset of b.
func (c *checker) memberAt(b []byte, at int64, d archive.Digest) bool {
	if at < 0 || at+block > int64(len(b)) {
		return false
	}
	m, ok := parseHeader(b[at:])
	return ok && !m.removed && m.digest == d && at+span(m.size) <= int64(len(b)) && m.whole(b[at:at+span(m.size)])
}

// again checks one content by itself: it may have moved since it was located.
func (c *checker) again(ctx context.Context, d archive.Digest) error {
	_, err := c.store.packs.check(d, c.how.cached)
	if errors.Is(err, ErrMissing) {
		return c.plain(ctx, d)
	}
	return err
}

// readPack reads a part of a pack, or what there is of it.
func (c *checker) readPack(n uint32, from, to int64) []byte {
	if c.pack == nil || c.packN != n {
		c.close()
		f, _, err := openRegular(c.store.packs.path(n), os.O_RDONLY)
		if err != nil {
			return nil
		}
		c.pack, c.packN = f, n
	}
	c.fresh(c.pack, from, to-from)
	got, _ := c.pack.ReadAt(c.buf[:to-from], from)
	return c.buf[:got]
}

// fresh makes the pages of a file come from the disk, in few large reads.
func (c *checker) fresh(f *os.File, from, n int64) {
	if !c.how.cached {
		unix.Fadvise(int(f.Fd()), from, n, unix.FADV_DONTNEED)
	}
	unix.Fadvise(int(f.Fd()), from, n, unix.FADV_WILLNEED)
}

// plain checks a content that is a file.
func (c *checker) plain(ctx context.Context, d archive.Digest) error {
	r, err := openPlain(c.store.PlainPath(d))
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha256.New()
	for at := int64(0); at < r.Size(); at += stride {
		start := time.Now()
		c.fresh(r.f, at, stride)
		n, err := r.ReadAt(c.buf[:min(stride, r.Size()-at)], at)
		h.Write(c.buf[:n])
		if err != nil && err != io.EOF {
			return judged(err)
		}
		if c.how.Took != nil {
			err = c.how.Took(ctx, time.Since(start))
		} else {
			err = ctx.Err()
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	if got := archive.Digest(h.Sum(nil)); got != d {
		return fmt.Errorf("%w: digest of %d bytes is %s", ErrDamaged, r.Size(), got)
	}
	return nil
}

// Check reads a content off the disk, not out of the page cache, and returns
// what is there. The error is as in Locate, or the context's.
func (s *Store) Check(ctx context.Context, d archive.Digest) (archive.Content, error) {
	l, err := s.packs.check(d, false)
	switch {
	case err == nil:
		return describe(d, int64(l.size)), ctx.Err()
	case !errors.Is(err, ErrMissing):
		return archive.Content{}, fmt.Errorf("content %s: %w", d, err)
	}
	r, err := s.Open(d)
	if err != nil {
		return archive.Content{}, err
	}
	defer r.Close()
	unix.Fadvise(int(r.f.Fd()), 0, 0, unix.FADV_DONTNEED)
	c, err := copyHashed(io.Discard, Bound(ctx, r))
	switch {
	case ctx.Err() != nil:
		return c, ctx.Err()
	case err != nil:
		return c, fmt.Errorf("content %s: %w", d, judged(err))
	case c.Digest != d:
		return c, fmt.Errorf("content %s: %w: digest of %d bytes is %s", d, ErrDamaged, c.Size, c.Digest)
	}
	return c, nil
}
