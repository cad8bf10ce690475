package watchdog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"
)

// errLimit is the cause of a phase context that ran into the hard limit.
var errLimit = errors.New("over its time limit")

// update is one update phase: open update mode, run the update child, and lock
// whatever happened. It returns the error of the phase, which goes to those who
// wait for it and into the state too, and that of the lock.
func (w *Watchdog) update(ctx context.Context) (err, locked error) {
	p := w.begin()
	w.skipTo(w.now())
	w.change(func(s *State) { s.Phase, s.Next = PhaseUpdate, w.next })
	err = w.limited(ctx)
	locked = w.lock(ctx)
	w.skipTo(w.now())
	w.finish(p, errors.Join(err, locked))
	return err, locked
}

// limited is the part of a phase that the hard limit cuts off.
func (w *Watchdog) limited(ctx context.Context) error {
	limit, cancel := context.WithTimeoutCause(ctx, w.cfg.PhaseLimit, errLimit)
	defer cancel()
	if err := w.reset(limit); err != nil {
		return fmt.Errorf("reset the device: %w", err)
	}
	if err := w.child(limit); err != nil {
		w.cfg.Log.Warn("update phase", "err", err)
		return fmt.Errorf("update phase: %w", err)
	}
	return nil
}

// reset opens update mode, trying again until the phase is over.
func (w *Watchdog) reset(limit context.Context) error {
	if w.cfg.Fresh {
		w.cfg.Fresh = false
		return nil
	}
	back := w.backoff()
	for {
		err := w.cfg.Device.Reset(limit)
		if err == nil {
			return nil
		}
		w.trouble("reset the device", err)
		if !sleep(limit, back.next()) {
			return err
		}
	}
}

// child runs update children, one after the death of another, until one says
// that the phase is over or the limit ends it. It returns nil after status 0.
func (w *Watchdog) child(limit context.Context) error {
	back := w.backoff()
	for {
		over, err := w.attempt(limit)
		if over {
			return err
		}
		if limit.Err() != nil {
			return context.Cause(limit)
		}
		w.trouble("update child", err)
		if !sleep(limit, back.next()) {
			return context.Cause(limit)
		}
	}
}

// attempt runs one update child to its end or that of the phase. It reports
// whether the child said that the phase is over.
func (w *Watchdog) attempt(limit context.Context) (over bool, err error) {
	p, end, err := w.launch(limit, w.cfg.Update)
	if err != nil {
		return false, err
	}
	defer end()
	select {
	case <-p.Done():
		return slices.Contains(w.cfg.Over, p.Status()), p.Err()
	case <-limit.Done():
	}
	if context.Cause(limit) == errLimit {
		w.kill(p)
	} else {
		w.stop(p)
	}
	return false, context.Cause(limit)
}

// lock ends update mode. It tries until it succeeds or, after ctx has ended,
// until the grace is over too.
func (w *Watchdog) lock(ctx context.Context) error {
	hold, cancel := outlive(ctx, w.cfg.StopGrace)
	defer cancel()
	back := w.backoff()
	for {
		err := w.lockOnce(hold)
		if err == nil {
			return nil
		}
		w.trouble("lock the device", err)
		if !sleep(hold, back.next()) {
			return fmt.Errorf("device left unlocked: %w", err)
		}
	}
}

func (w *Watchdog) lockOnce(ctx context.Context) error {
	once, cancel := context.WithTimeout(ctx, w.cfg.LockLimit)
	defer cancel()
	return w.cfg.Device.Lock(once)
}

// stop ends a child politely, then for good.
func (w *Watchdog) stop(p process) {
	p.Signal(syscall.SIGTERM)
	if !ends(p, w.cfg.StopGrace) {
		w.kill(p)
	}
}

// kill ends a child and its group. It does not wait long for the kernel: the
// device must be locked on time even then. The next launch waits the rest.
func (w *Watchdog) kill(p process) {
	p.Kill()
	if !ends(p, w.cfg.StopGrace) {
		w.cfg.Log.Error("child does not end", "pid", p.Pid())
		w.old = p
	}
}

// ends waits for the end of p, for at most d.
func ends(p process, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.Done():
		return true
	case <-t.C:
		return false
	}
}

// sleep waits for d and reports whether ctx still holds then.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// outlive returns a context that ends the grace after ctx does.
func outlive(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		sleep(out, grace)
		cancel()
	})
	return out, func() { stop(); cancel() }
}

// backoff is the growing pause between attempts.
type backoff struct{ min, max, d time.Duration }

func (w *Watchdog) backoff() *backoff {
	return &backoff{min: w.cfg.BackoffMin, max: max(w.cfg.BackoffMin, w.cfg.BackoffMax)}
}

// next returns how long to wait now: twice as long as before, up to max.
func (b *backoff) next() time.Duration {
	b.d = min(max(2*b.d, b.min), b.max)
	return b.d
}

// ran forgets the failures before a child that ran for longer than any pause.
func (b *backoff) ran(d time.Duration) {
	if d > b.max {
		b.d = 0
	}
}
