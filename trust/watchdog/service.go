package watchdog

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// event is why a wait is over.
type event int

const (
	ended event = iota // what was waited for has come
	due                // an update phase must begin
	quit               // Run must end
)

// serve runs service children, one after the death of another, until an update
// phase is due or ctx ends. It is entered with the device locked, and locks
// again before each restart: the child's death may have been the device's too.
func (w *Watchdog) serve(ctx context.Context) {
	w.change(func(s *State) { s.Phase = PhaseService })
	back := w.backoff()
	for locked := true; ; locked = false {
		began := time.Now()
		ev, err := w.serveOnce(ctx, locked)
		if ev != ended {
			return
		}
		w.trouble("service child", err)
		back.ran(time.Since(began))
		if w.rest(ctx, back.next()) != ended {
			return
		}
	}
}

// serveOnce runs one service child. The event is ended if it died by itself or
// could not be started, of err; with any other it has been stopped.
func (w *Watchdog) serveOnce(ctx context.Context, locked bool) (event, error) {
	if !locked {
		if err := w.lockOnce(ctx); err != nil {
			return ended, fmt.Errorf("lock the device: %w", err)
		}
	}
	p, end, err := w.launch(ctx, w.cfg.Service)
	if err != nil {
		return ended, err
	}
	defer end()
	ev := w.wait(ctx, p.Done())
	if ev != ended {
		w.stop(p)
		return ev, nil
	}
	return ev, died(p)
}

// died says what a child that should have stayed has ended of.
func died(p process) error {
	if err := p.Err(); err != nil {
		return err
	}
	return fmt.Errorf("exit status 0 unasked")
}

// launch starts a child when the one before it is surely gone. The returned
// function must be called after its end.
func (w *Watchdog) launch(ctx context.Context, command func(context.Context) *exec.Cmd) (process, func(), error) {
	if w.old != nil {
		select {
		case <-w.old.Done():
			w.old = nil
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p, err := w.start(command(life))
	if err != nil {
		cancel()
		return nil, nil, err
	}
	w.cfg.Log.Info("child started", "pid", p.Pid(), "phase", w.State().Phase)
	w.change(func(s *State) { s.Child = p.Pid() })
	return p, func() {
		cancel()
		w.change(func(s *State) { s.Child = 0 })
	}, nil
}

// rest is a wait of d.
func (w *Watchdog) rest(ctx context.Context, d time.Duration) event {
	pause, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	defer cancel()
	return w.wait(ctx, pause.Done())
}

// wait returns ended when done is closed, due when a tick or a Trigger comes
// first, quit when ctx ends.
func (w *Watchdog) wait(ctx context.Context, done <-chan struct{}) event {
	for {
		left, now := w.untilTick()
		if now {
			return due
		}
		if w.cfg.Alive != nil {
			w.cfg.Alive()
		}
		t := time.NewTimer(left)
		select {
		case <-t.C:
			continue
		case <-done:
			t.Stop()
			return ended
		case <-w.wake:
			t.Stop()
			return due
		case <-ctx.Done():
			t.Stop()
			return quit
		}
	}
}
