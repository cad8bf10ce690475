package wire

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// ErrSlow says that a peer sent or took too little for too long.
var ErrSlow = errors.New("no progress")

// stride is how many bytes count as progress.
const stride = 64 << 10

// progress cancels a transfer that does not advance by a stride within each
// timeout.
type progress struct {
	timeout time.Duration
	last    time.Duration // after the end, for the reply; zero: timeout
	cancel  context.CancelCauseFunc
	ctx     context.Context
	timer   *time.Timer

	mu    sync.Mutex
	since int // bytes since the timer was set
}

func watch(ctx context.Context, timeout time.Duration) (context.Context, *progress) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &progress{timeout: timeout, cancel: cancel, ctx: ctx}
	w.timer = time.AfterFunc(timeout, func() { cancel(ErrSlow) })
	return ctx, w
}

// moved counts n more bytes.
func (w *progress) moved(n int, ended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since += n; w.since < stride && !ended {
		return
	}
	w.since = 0
	w.timer.Reset(w.timeout)
	if ended && w.last > 0 {
		w.timer.Reset(w.last)
	}
}

// end stops the watch and returns err, or why it cancelled.
func (w *progress) end(err error) error {
	w.timer.Stop()
	if err != nil && errors.Is(context.Cause(w.ctx), ErrSlow) {
		err = ErrSlow
	}
	w.cancel(context.Canceled)
	return err
}

// watchedReader tells the watch of every byte read.
type watchedReader struct {
	r io.Reader
	w *progress
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.w.moved(n, err == io.EOF)
	if err != nil && err != io.EOF && errors.Is(context.Cause(r.w.ctx), ErrSlow) {
		err = ErrSlow
	}
	return n, err
}

// watchedBody is a watched download; closing it ends the watch.
type watchedBody struct {
	watchedReader
	body io.Closer
}

func (b *watchedBody) Close() error {
	err := b.body.Close()
	b.w.end(nil)
	return err
}
