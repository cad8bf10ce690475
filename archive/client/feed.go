package client

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

const (
	chunkSize = 256 << 10
	// ahead is how many chunks the quickest reader of a feed may be ahead of
	// the slowest.
	ahead = 16
)

// errLeft says that a replica takes nothing more of a feed.
var errLeft = errors.New("left")

// feed reads a source once for several replicas.
type feed struct {
	c       *Client
	readers []*feedReader
	content int         // how many have left because they want no more
	free    chan []byte // chunks to fill
}

// chunk is a piece of the source.
type chunk struct {
	b    []byte
	refs atomic.Int32
	free chan []byte
}

func (k *chunk) release() {
	if k.refs.Add(-1) == 0 {
		k.free <- k.b[:chunkSize]
	}
}

// feedReader is one replica's place in a feed.
type feedReader struct {
	lane   *lane
	chunks chan *chunk
	left   chan struct{} // closed when nobody reads any more
	leave  func()
	held   time.Duration // how long it has held up others

	mu  sync.Mutex
	end error // what stands behind the last chunk

	now  *chunk // reader's alone
	rest []byte
}

// stream sends one large item to all lanes at once.
func (s *sending) stream(ctx context.Context, it Item) error {
	src, err := openSource(it)
	if err != nil {
		return err
	}
	defer src.close()
	f := &feed{c: s.c, free: make(chan []byte, 2*ahead)}
	for range cap(f.free) {
		f.free <- nil
	}
	for _, l := range s.lanes {
		if l.failed() != nil {
			continue
		}
		r := newFeedReader(l)
		f.readers = append(f.readers, r)
		l.count(1)
		l.jobs <- &whole{it: it, r: r}
	}
	return f.run(ctx, src)
}

func newFeedReader(l *lane) *feedReader {
	r := &feedReader{lane: l, chunks: make(chan *chunk, ahead), left: make(chan struct{})}
	r.leave = sync.OnceFunc(func() { close(r.left) })
	return r
}

// run reads the source to its end, as long as anybody wants it.
func (f *feed) run(ctx context.Context, src *source) error {
	var err error
	for len(f.readers) > 0 && err == nil {
		var k *chunk
		if k, err = f.next(ctx, src); k != nil {
			f.share(ctx, k)
		}
	}
	for _, r := range f.readers {
		r.finish(err)
	}
	if own := src.failed(); own != nil {
		return own
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// next reads a chunk.
func (f *feed) next(ctx context.Context, src *source) (*chunk, error) {
	var b []byte
	select {
	case b = <-f.free:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if b == nil {
		b = make([]byte, chunkSize)
	}
	n, err := io.ReadFull(src, b)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return &chunk{b: b[:n], free: f.free}, err
}

// share gives a chunk to all readers, and drops those that are gone or behind.
func (f *feed) share(ctx context.Context, k *chunk) {
	k.refs.Store(1)
	defer k.release()
	var stay []*feedReader
	for _, r := range f.readers {
		k.refs.Add(1)
		if err := f.give(ctx, r, k); err != nil {
			k.release()
			if errors.Is(err, errBehind) {
				r.lane.fail(err)
			}
			if r.isContent() {
				f.content++
			}
			r.finish(err)
			continue
		}
		stay = append(stay, r)
	}
	f.readers = stay
}

// give waits until r takes the chunk. A reader that keeps a quorum of others
// waiting for too long is behind.
func (f *feed) give(ctx context.Context, r *feedReader, k *chunk) error {
	const look = 50 * time.Millisecond
	for {
		t := time.NewTimer(look)
		select {
		case r.chunks <- k:
			t.Stop()
			return nil
		case <-r.left:
			t.Stop()
			return errLeft
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
		if f.starving() >= f.c.Roster.Quorum() {
			f.heldUp(look)
		}
		if r.held > f.c.indulgence() {
			return errBehind
		}
	}
}

// heldUp counts for how long readers whose chunks wait have held up the others.
func (f *feed) heldUp(d time.Duration) {
	for _, r := range f.readers {
		if len(r.chunks) == cap(r.chunks) {
			r.held += d
		}
	}
}

// starving counts the readers that have read all there is, or want no more.
func (f *feed) starving() int {
	n := f.content
	for _, r := range f.readers {
		if len(r.chunks) == 0 || r.isContent() {
			n++
		}
	}
	return n
}

// isContent says that a reader has left, and not because it failed.
func (r *feedReader) isContent() bool {
	select {
	case <-r.left:
		return r.lane.failed() == nil
	default:
		return false
	}
}

// finish says what stands behind the last chunk.
func (r *feedReader) finish(err error) {
	r.mu.Lock()
	r.end = err
	r.mu.Unlock()
	close(r.chunks)
}

// Read implements io.Reader. It ends with io.EOF, errBehind, or what is wrong
// with the source.
func (r *feedReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if !r.more() {
			r.mu.Lock()
			defer r.mu.Unlock()
			return 0, r.end
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// more goes on to the next chunk.
func (r *feedReader) more() bool {
	r.drop()
	k, ok := <-r.chunks
	if !ok {
		return false
	}
	r.now, r.rest = k, k.b
	return true
}

// drop lets go of the chunk that is being read.
func (r *feedReader) drop() {
	if r.now != nil {
		r.now.release()
	}
	r.now, r.rest = nil, nil
}

// skip reads the first bytes.
func (r *feedReader) skip(n uint64, idle *idle) error {
	for n > 0 {
		idle.moved(0)
		if len(r.rest) == 0 && !r.more() {
			_, err := r.Read(nil)
			return err
		}
		k := min(n, uint64(len(r.rest)))
		r.rest, n = r.rest[k:], n-k
	}
	return nil
}

// whole is a large content on its way to one replica.
type whole struct {
	it Item
	r  *feedReader
}

func (j *whole) send(ctx context.Context, l *lane, idle *idle) error {
	have, err := l.r.peer.Have(ctx, []archive.Digest{j.it.content.Digest})
	if err != nil || have[0] {
		return err
	}
	return l.c.putLarge(ctx, l.r, j.it, func(from uint64) (io.Reader, error) { return j.r, j.r.skip(from, idle) }, idle)
}

func (j *whole) bytes() uint64 { return j.it.content.Size }

// release leaves the feed, and lets go of what was not read.
func (j *whole) release() {
	j.r.leave()
	j.r.drop()
	go func() {
		for k := range j.r.chunks { // the feed ends it
			k.release()
		}
	}()
}
