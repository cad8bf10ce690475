package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// errSource reports that an item's bytes cannot be read.
var errSource = errors.New("read source")

// errIdle is the cause when a replica has made no progress for too long.
var errIdle = errors.New("no progress")

// idle ends a context when nothing has moved for a while.
type idle struct {
	limit time.Duration
	timer *time.Timer
}

func withIdle(ctx context.Context, limit time.Duration) (context.Context, *idle, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	i := &idle{limit, time.AfterFunc(limit, func() { cancel(errIdle) })}
	return ctx, i, func() { i.timer.Stop(); cancel(nil) }
}

// moved starts the wait anew, with extra added.
func (i *idle) moved(extra time.Duration) { i.timer.Reset(i.limit + extra) }

// offer brings to one replica what the sending has not brought there, and then
// the submission. It goes on trying while it makes progress now and then.
func (a *adding) offer(ctx context.Context, r *replica) (ack wire.Ack, err error) {
	lane := a.sent.lane(r)
	sent := lane.wait(ctx)
	if errors.Is(sent, errIdle) {
		return ack, a.plain(sent)
	}
	ctx, idle, cancel := withIdle(ctx, a.c.Timeout)
	defer cancel()
	if sent != nil {
		if err := a.catchUp(ctx, r, idle); err != nil {
			return ack, a.plain(causeOf(ctx, err))
		}
	}
	err = retry(ctx, func(ctx context.Context) error {
		ack, err = r.peer.Add(ctx, a.sub)
		return err
	})
	if err == nil {
		r.late.Store(false)
		lane.broughtAll(bytesOf(a.items))
	}
	return ack, a.plain(causeOf(ctx, err))
}

func bytesOf(items []Item) (n uint64) {
	for _, it := range items {
		n += it.content.Size
	}
	return n
}

// causeOf adds to an error that no progress was the reason.
func causeOf(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errIdle) {
		err = errors.Join(errIdle, err)
	}
	return err
}

// isSource reports whether an error is not the replica's fault.
func isSource(err error) bool { return errors.Is(err, ErrChanged) || errors.Is(err, errSource) }

// plain says in plain words that a replica did not answer.
func (a *adding) plain(err error) error {
	var both interface{ Unwrap() []error }
	if !errors.Is(err, errIdle) {
		return err
	}
	if errors.As(err, &both) && len(both.Unwrap()) == 2 {
		return inTime(both.Unwrap()[1], a.c.Timeout)
	}
	return inTime(context.DeadlineExceeded, a.c.Timeout)
}

// catchUp brings the contents of all items to a replica that has fallen behind,
// from their sources again.
func (a *adding) catchUp(ctx context.Context, r *replica, idle *idle) error {
	return retry(ctx, func(ctx context.Context) error {
		missing, err := a.missing(ctx, r)
		if err != nil {
			return err
		}
		idle.moved(0)
		small := a.c.newParcel(r.spare)
		defer small.release()
		for _, it := range missing {
			if it.content.Size < slabSize {
				err = small.addAgain(ctx, r, it, idle)
			} else {
				err = a.upload(ctx, r, it, idle)
			}
			if err != nil {
				return err
			}
		}
		return small.sendAll(ctx, r, idle)
	})
}

// missing returns the items whose contents a replica does not hold, each content
// once.
func (a *adding) missing(ctx context.Context, r *replica) ([]Item, error) {
	var all []Item
	var digests []archive.Digest
	once := make(map[archive.Digest]bool)
	for _, it := range a.items {
		if d := it.content.Digest; !once[d] {
			once[d] = true
			all, digests = append(all, it), append(digests, d)
		}
	}
	have, err := r.peer.Have(ctx, digests)
	if err != nil {
		return nil, err
	}
	var missing []Item
	for i, it := range all {
		if !have[i] {
			missing = append(missing, it)
		}
	}
	return missing, nil
}

// upload brings one large content to a replica, from where an earlier upload has
// stopped.
func (a *adding) upload(ctx context.Context, r *replica, it Item, idle *idle) error {
	src, err := openSource(it)
	if err != nil {
		return err
	}
	defer src.close()
	err = a.c.putLarge(ctx, r, it, func(from uint64) (io.Reader, error) { return src, src.skip(ctx, from, idle) }, idle)
	if own := src.failed(); own != nil {
		return own // not the replica's fault
	}
	return err
}

// putLarge sends a large content, without the bytes that the replica has from an
// earlier upload.
func (c *Client) putLarge(ctx context.Context, r *replica, it Item, open func(from uint64) (io.Reader, error), idle *idle) error {
	up := archive.SignUpload(c.Key, c.Roster.ID(), it.content)
	from, err := r.peer.Partial(ctx, up.Digest, up.Writer)
	if err != nil {
		return err
	}
	if from > up.Size {
		from = 0
	}
	idle.moved(0)
	body, err := open(from)
	if err != nil {
		return err
	}
	body = &moving{r: body, done: from, size: up.Size, moved: func(done uint64, end bool) {
		idle.moved(syncTime(done, end))
		c.tell(Progress{Stage: "upload", Name: it.Name, Replica: r.ID, Done: done, Total: up.Size})
	}}
	if from > 0 {
		return r.peer.ResumeContent(ctx, up, from, body)
	}
	return r.peer.PutContent(ctx, up, int64(up.Size), body)
}

// syncTime is how long a replica may take to hash and sync what it has got.
func syncTime(done uint64, end bool) time.Duration {
	if !end {
		return 0
	}
	return time.Duration(done/wire.SyncRate) * time.Second
}

// moving tells of every byte that is read.
type moving struct {
	r          io.Reader
	done, size uint64
	moved      func(done uint64, end bool)
}

func (m *moving) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if m.done += uint64(n); n > 0 {
		m.moved(m.done, m.done == m.size)
	}
	return n, err
}

// source reads an item's bytes again, and gives out the last of them only if
// the whole is what it was when it was hashed.
type source struct {
	r    io.ReadCloser
	want archive.Content

	hash hash.Hash
	done uint64
	end  error // what the last read said

	mu  sync.Mutex
	err error // what ends the whole Add
}

func openSource(it Item) (*source, error) {
	r, err := it.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSource, err)
	}
	return &source{r: r, want: it.content, hash: sha256.New()}, nil
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if s.end != nil {
		return 0, s.end
	}
	left := s.want.Size - s.done
	if left == 0 {
		s.end = s.atEnd()
		return 0, s.end
	}
	n, err := s.r.Read(p[:min(uint64(len(p)), left)])
	s.hash.Write(p[:n])
	s.done += uint64(n)
	switch {
	case s.done == s.want.Size:
		s.end = s.atEnd()
	case err == io.EOF:
		s.end = s.fail(fmt.Errorf("%w: %d bytes, were %d", ErrChanged, s.done, s.want.Size))
	case err != nil:
		s.end = s.fail(fmt.Errorf("%w: %w", errSource, err))
	}
	if s.end != nil && s.end != io.EOF {
		return 0, s.end
	}
	return n, nil
}

// atEnd returns io.EOF if all that was read is what it should be and nothing
// follows.
func (s *source) atEnd() error {
	if archive.Digest(s.hash.Sum(nil)) != s.want.Digest {
		return s.fail(fmt.Errorf("%w: other bytes", ErrChanged))
	}
	var more [1]byte
	if n, err := io.ReadFull(s.r, more[:]); n > 0 || err != io.EOF {
		return s.fail(fmt.Errorf("%w: more than %d bytes", ErrChanged, s.want.Size))
	}
	return io.EOF
}

// skip reads the first bytes.
func (s *source) skip(ctx context.Context, n uint64, idle *idle) error {
	_, err := io.CopyN(io.Discard, &moving{r: &ctxReader{ctx, s}, moved: func(uint64, bool) { idle.moved(0) }}, int64(n))
	return err
}

func (s *source) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	return err
}

// failed returns why the source could not be read as it was.
func (s *source) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *source) close() { s.r.Close() }
