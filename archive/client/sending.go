package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

const (
	// slabSize is how many bytes of contents go to a replica in one request.
	// What is larger goes by itself.
	slabSize = archive.MaxUploadsSize
	// readSlabs bounds the memory for contents on their way: two for each of the
	// groups, which fills one while another is sent. spareSlabs is for contents
	// that are read again for one replica.
	readSlabs, spareSlabs = 6, 1
	// abreast is how many requests of one sending a replica gets at once.
	abreast = 2
	// maxIndulgence is how long, in all, one replica may hold up those that keep
	// pace.
	maxIndulgence = 2 * time.Second
)

// indulgence is maxIndulgence, or less where those that are held up would be idle
// for too long.
func (c *Client) indulgence() time.Duration { return min(maxIndulgence, c.Timeout/4) }

// errBehind reports a replica that does not keep pace with the others.
var errBehind = errors.New("slower than the others")

// slabs are the buffers for contents on their way. A nil one is not made yet.
type slabs chan []byte

func newSlabs(n int) slabs {
	s := make(slabs, n)
	for range n {
		s <- nil
	}
	return s
}

// sending brings the contents of up to a thousand items to all replicas while it
// reads them: each source is read once into memory, or if it is large, once to
// know its digest and once more for all replicas together.
type sending struct {
	c     *Client
	began time.Time
	lanes []*lane
}

// lane is the way to one replica.
type lane struct {
	c    *Client
	r    *replica
	ctx  context.Context
	stop context.CancelCauseFunc
	jobs chan job
	done chan struct{} // closed when all jobs are

	mu   sync.Mutex
	todo int           // jobs under way or waiting
	held time.Duration // how long it has held up others
	has  uint64        // bytes of the items that the replica has
	err  error         // why it sends nothing any more
}

// job is something to send.
type job interface {
	send(ctx context.Context, l *lane, idle *idle) error
	bytes() uint64 // of its items
	release()      // once for each lane
}

func (c *Client) newSending(ctx context.Context) *sending {
	s := &sending{c: c, began: time.Now()}
	for _, r := range c.replicas {
		// Each item makes at most one job.
		l := &lane{c: c, r: r, jobs: make(chan job, archive.MaxBindings+1), done: make(chan struct{})}
		l.ctx, l.stop = context.WithCancelCause(ctx)
		if r.late.Load() {
			l.fail(errBehind)
		}
		s.lanes = append(s.lanes, l)
		go l.run()
	}
	return s
}

// run sends what comes, until the lane is closed.
func (l *lane) run() {
	defer close(l.done)
	defer l.stop(nil)
	var wg sync.WaitGroup
	for range abreast {
		wg.Go(func() {
			for j := range l.jobs {
				l.do(j)
			}
		})
	}
	wg.Wait()
}

func (l *lane) do(j job) {
	defer j.release()
	defer l.count(-1)
	if l.failed() != nil {
		return
	}
	ctx, idle, cancel := withIdle(l.ctx, l.c.Timeout)
	defer cancel()
	err := j.send(ctx, l, idle)
	if err == nil {
		l.brought(j.bytes())
	} else if !isSource(err) { // who reads the source says so
		l.fail(causeOf(ctx, err))
	}
}

// brought tells that the replica has n bytes more.
func (l *lane) brought(n uint64) {
	l.mu.Lock()
	l.has += n
	l.mu.Unlock()
	l.c.tell(Progress{Stage: "hold", Replica: l.r.ID, Done: n})
}

// broughtAll tells of what is left of so many bytes.
func (l *lane) broughtAll(n uint64) {
	l.mu.Lock()
	left := n - min(n, l.has)
	l.mu.Unlock()
	if left > 0 {
		l.brought(left)
	}
}

func (l *lane) count(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.todo += n
}

// fail makes the lane send nothing any more.
func (l *lane) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	if errors.Is(err, errBehind) || errors.Is(err, errIdle) {
		l.r.late.Store(true)
	}
	l.stop(err)
}

func (l *lane) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// close says that nothing more comes.
func (s *sending) close() {
	for _, l := range s.lanes {
		close(l.jobs)
	}
}

// lane returns the lane of a replica.
func (s *sending) lane(r *replica) *lane {
	i := slices.IndexFunc(s.lanes, func(l *lane) bool { return l.r == r })
	return s.lanes[i]
}

// wait returns nil once the replica has got everything, or why it will not.
func (l *lane) wait(ctx context.Context) error {
	select {
	case <-l.done:
		return l.failed()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// slab takes a buffer, and drops replicas that keep it from being free while a
// quorum of others has nothing to do.
func (s *sending) slab(ctx context.Context) ([]byte, error) {
	const look = 100 * time.Millisecond
	for {
		t := time.NewTimer(look)
		select {
		case b := <-s.c.slabs:
			t.Stop()
			return b, nil
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-t.C:
			s.heldUp(look)
		}
	}
}

func (s *sending) heldUp(d time.Duration) {
	idle := 0
	for _, l := range s.lanes {
		if l.keepsPace() {
			idle++
		}
	}
	if idle < s.c.Roster.Quorum() {
		return
	}
	for _, l := range s.lanes {
		if l.holdsUp(d) > s.c.indulgence() {
			l.fail(errBehind)
		}
	}
}

func (l *lane) keepsPace() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err == nil && l.todo == 0
}

// holdsUp counts for how long the lane has held up the others.
func (l *lane) holdsUp(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || l.todo == 0 {
		return 0
	}
	l.held += d
	return l.held
}

// readAll reads all items and sends what they hold. It returns those that are
// described now, and why the others are not; strict ends at the first of those.
func (s *sending) readAll(ctx context.Context, items []Item, strict bool) (good []Item, bad []Outcome) {
	p := s.c.newParcel(s.c.slabs)
	for _, it := range items {
		var err error
		if p, err = s.read(ctx, p, &it); err == nil {
			good = append(good, it)
			continue
		}
		if ctx.Err() != nil {
			break
		}
		bad = append(bad, Outcome{Binding: archive.Binding{Name: it.Name}, Err: err})
		if strict {
			break
		}
	}
	s.ship(p)
	return good, bad
}

// read reads one item into the parcel, or a new one if that is full.
func (s *sending) read(ctx context.Context, p *parcel, it *Item) (*parcel, error) {
	r, err := it.Open()
	if err != nil {
		return p, err
	}
	defer r.Close()
	before := stamp(r)
	if p, err = s.fill(ctx, p, &ctxReader{ctx, r}); err != nil {
		return p, err
	}
	body := p.buf[p.used : p.used+p.fresh]
	if p.fresh == len(p.buf) {
		return p, s.readLarge(ctx, it, io.MultiReader(bytes.NewReader(body), &ctxReader{ctx, r}), r, before)
	}
	if stamp(r) != before {
		return p, ErrChanged
	}
	it.content = describe(body)
	if err := s.c.checkSize(it.content); err != nil {
		return p, err
	}
	s.c.tell(Progress{Stage: "read", Name: it.Name, Done: it.content.Size, Total: it.content.Size})
	p.keep(it.content)
	return p, nil
}

// fill reads r behind what the parcel holds, up to the end or a whole slab: what
// does not fit goes into a new parcel, and the old one on its way.
func (s *sending) fill(ctx context.Context, p *parcel, r io.Reader) (*parcel, error) {
	p.fresh = 0
	if p.buf == nil {
		if err := p.take(ctx, s); err != nil {
			return p, err
		}
	}
	for {
		n, err := io.ReadFull(r, p.buf[p.used+p.fresh:])
		p.fresh += n
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return p, nil
		case err != nil:
			return p, err
		case p.used == 0:
			return p, nil
		}
		next := s.c.newParcel(s.c.slabs)
		if err := next.take(ctx, s); err != nil {
			return p, err
		}
		next.fresh = copy(next.buf, p.buf[p.used:])
		s.ship(p)
		p = next
	}
}

// ship gives a parcel to all lanes that still send.
func (s *sending) ship(p *parcel) {
	var live []*lane
	for _, l := range s.lanes {
		if l.failed() == nil && len(p.contents) > 0 {
			live = append(live, l)
		}
	}
	p.lanes(len(live))
	for _, l := range live {
		l.count(1)
		l.jobs <- p
	}
}

// readLarge reads an item to its end to know what it is, and then once more for
// all replicas.
func (s *sending) readLarge(ctx context.Context, it *Item, all io.Reader, r io.Reader, before version) (err error) {
	if it.content, err = s.c.hash(it.Name, before.size, all); err != nil {
		return err
	}
	if stamp(r) != before {
		return ErrChanged
	}
	if err := s.c.checkSize(it.content); err != nil {
		return err
	}
	return s.stream(ctx, *it)
}

// hash reads r to its end and describes its bytes.
func (c *Client) hash(n archive.Name, total uint64, r io.Reader) (archive.Content, error) {
	h := archive.NewContentHasher()
	buf := make([]byte, 256<<10)
	for done := uint64(0); ; {
		k, err := r.Read(buf)
		h.Write(buf[:k])
		done += uint64(k)
		if k > 0 {
			c.tell(Progress{Stage: "read", Name: n, Done: done, Total: max(total, done)})
		}
		if err == io.EOF {
			return h.Content(), nil
		}
		if err != nil {
			return archive.Content{}, err
		}
	}
}

func describe(b []byte) archive.Content {
	h := archive.NewContentHasher()
	h.Write(b)
	return h.Content()
}

func (c *Client) checkSize(x archive.Content) error {
	if limit := c.Roster.Limits.ContentSize; x.Size > limit {
		return fmt.Errorf("%w: %d bytes, the archive takes at most %d", ErrQuota, x.Size, limit)
	}
	return nil
}

// version is what changes with the bytes of a file.
type version struct {
	size uint64
	at   time.Time
}

// stamp returns the version of what is read, if it is a file.
func stamp(r io.Reader) version {
	f, ok := r.(interface{ Stat() (fs.FileInfo, error) })
	if !ok {
		return version{}
	}
	fi, err := f.Stat()
	if err != nil {
		return version{}
	}
	return version{uint64(fi.Size()), fi.ModTime()}
}
