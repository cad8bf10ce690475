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

const (
	// uploads is how many contents go to one replica at once.
	uploads = 4
	// syncRate is how slow a replica's disk may be, in bytes a second.
	syncRate = 20 << 20
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

// offer brings all contents and then the submission to one replica. It goes on
// trying while it makes progress now and then.
func (a *adding) offer(ctx context.Context, r *replica) (ack wire.Ack, err error) {
	ctx, idle, cancel := withIdle(ctx, a.c.Timeout)
	defer cancel()
	if err := a.uploadAll(ctx, r, idle); err != nil {
		return ack, a.plain(ctx, err)
	}
	err = retry(ctx, func(ctx context.Context) error {
		ack, err = r.peer.Add(ctx, a.sub)
		return err
	})
	return ack, a.plain(ctx, err)
}

// plain says in plain words that a replica did not answer.
func (a *adding) plain(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errIdle) {
		return inTime(err, a.c.Timeout)
	}
	return err
}

func (a *adding) uploadAll(ctx context.Context, r *replica, idle *idle) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next := make(chan Item)
	failed := make(chan error, 1) // the first one stays
	var wg sync.WaitGroup
	for range min(uploads, len(a.items)) {
		wg.Go(func() {
			for it := range next {
				if err := a.upload(ctx, r, it, idle); err != nil {
					select {
					case failed <- err:
					default:
					}
					cancel()
				}
			}
		})
	}
	sent := make(map[archive.Digest]bool)
	for _, it := range a.items {
		if !sent[it.Content.Digest] && ctx.Err() == nil {
			sent[it.Content.Digest] = true
			next <- it
		}
	}
	close(next)
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return ctx.Err()
	}
}

// upload brings one content to a replica, unless that has it.
func (a *adding) upload(ctx context.Context, r *replica, it Item, idle *idle) error {
	up := archive.SignUpload(a.c.Key, a.c.Roster.ID(), it.Content)
	return retry(ctx, func(ctx context.Context) error {
		has, err := r.peer.HasContent(ctx, it.Content.Digest)
		if err != nil {
			return err
		}
		idle.moved(0)
		if has {
			return nil
		}
		src, err := openSource(it)
		if err != nil {
			return err
		}
		defer src.close()
		src.moved = func(done uint64, end bool) {
			extra := time.Duration(0)
			if end {
				extra = time.Duration(done/syncRate) * time.Second
			}
			idle.moved(extra)
			a.c.tell(Progress{Stage: "upload", Name: it.Name, Replica: r.ID, Done: done, Total: it.Content.Size})
		}
		err = r.peer.PutContent(ctx, up, int64(it.Content.Size), src)
		if own := src.failed(); own != nil {
			return own // not the replica's fault
		}
		return err
	})
}

// source reads an item's bytes again, and gives out the last of them only if
// the whole is what it was when it was hashed.
type source struct {
	r     io.ReadCloser
	want  archive.Content
	moved func(done uint64, end bool)

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
	return &source{r: r, want: it.Content, hash: sha256.New()}, nil
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
	s.moved(s.done, s.end == io.EOF)
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
