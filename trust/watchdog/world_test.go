package watchdog

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// world is a device and children made of timers, for a synctest bubble. It
// checks what must hold at every step: one child at a time, update children
// only unlocked, service children only locked.
type world struct {
	t      *testing.T
	update func(n int) life // the nth update child, from 1
	serves func(n int) life // the nth service child
	reset  func(n int) error
	lock   func(n int) error

	mu       sync.Mutex
	offset   time.Duration // of the wall clock
	locked   bool
	alive    *fake
	begins   []time.Time // wall time of each phase's Reset
	locks    []time.Time
	updates  []time.Time
	services []time.Time
	nReset   int
	nLock    int
}

// life is what a fake child does: it ends by itself after a time, if that is
// not 0, with a status; and may ignore signals.
type life struct {
	after    time.Duration
	status   int
	stubborn bool          // ignores SIGTERM
	undying  time.Duration // after Kill
}

func forever(int) life { return life{} }

func newWorld(t *testing.T) *world {
	return &world{
		t:      t,
		update: func(int) life { return life{after: time.Second} },
		serves: forever,
		reset:  func(int) error { return nil },
		lock:   func(int) error { return nil },
	}
}

func (d *world) watchdog(s Schedule, edit ...func(*Config)) *Watchdog {
	command := func(name string) func(context.Context) *exec.Cmd {
		return func(context.Context) *exec.Cmd { return &exec.Cmd{Path: name} }
	}
	c := Config{Schedule: s, Device: d, Update: command("update"), Service: command("service"), Now: d.now}
	for _, e := range edit {
		e(&c)
	}
	w := New(c)
	w.start = d.start
	return w
}

// run runs w until the test is over.
func (d *world) run(w *Watchdog) (stop func()) {
	ctx, cancel := context.WithCancel(d.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	synctest.Wait()
	return func() {
		d.t.Helper()
		cancel()
		if err := <-done; err != nil {
			d.t.Errorf("Run: %v", err)
		}
	}
}

func (d *world) now() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Now().Add(d.offset)
}

// pause lets a time pass in the bubble. What the test has read before it, and
// what it reads after, is ordered with what the others write.
func (d *world) pause(span time.Duration) {
	d.now()
	time.Sleep(span)
	synctest.Wait()
	d.now()
}

// step steps the wall clock.
func (d *world) step(by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.offset += by
}

func (d *world) wall() time.Time { return time.Now().Add(d.offset).Round(0) }

func (d *world) Reset(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nReset++
	if d.alive != nil {
		d.t.Errorf("Reset while %s runs", d.alive.name)
	}
	if err := d.reset(d.nReset); err != nil {
		return err
	}
	d.locked = false
	d.begins = append(d.begins, d.wall())
	return nil
}

func (d *world) Lock(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nLock++
	if err := errors.Join(ctx.Err(), d.lock(d.nLock)); err != nil {
		return err
	}
	d.locked = true
	d.locks = append(d.locks, d.wall())
	return nil
}

func (d *world) start(cmd *exec.Cmd) (process, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.alive != nil {
		d.t.Errorf("%s started while %s runs", cmd.Path, d.alive.name)
	}
	if d.locked != (cmd.Path == "service") {
		d.t.Errorf("%s started with locked = %v", cmd.Path, d.locked)
	}
	f := &fake{world: d, name: cmd.Path, done: make(chan struct{})}
	if cmd.Path == "service" {
		d.services = append(d.services, d.wall())
		f.life, f.pid = d.serves(len(d.services)), 20000+len(d.services)
	} else {
		d.updates = append(d.updates, d.wall())
		f.life, f.pid = d.update(len(d.updates)), 10000+len(d.updates)
	}
	d.alive = f
	if f.life.after > 0 {
		time.AfterFunc(f.life.after, func() { f.end(f.life.status) })
	}
	return f, nil
}

type fake struct {
	world  *world
	name   string
	pid    int
	life   life
	once   sync.Once
	done   chan struct{}
	status int
}

func (f *fake) end(status int) {
	f.once.Do(func() {
		f.world.mu.Lock()
		f.world.alive = nil
		f.world.mu.Unlock()
		f.status = status
		close(f.done)
	})
}

func (f *fake) Pid() int              { return f.pid }
func (f *fake) Done() <-chan struct{} { return f.done }
func (f *fake) Status() int           { return f.status }

func (f *fake) Err() error {
	if f.status == 0 {
		return nil
	}
	return fmt.Errorf("exit status %d", f.status)
}

func (f *fake) Signal(syscall.Signal) {
	if !f.life.stubborn {
		f.end(0)
	}
}

func (f *fake) Kill() {
	if f.life.undying > 0 {
		time.AfterFunc(f.life.undying, func() { f.end(-1) })
		return
	}
	f.end(-1)
}

// every is a schedule anchored at the Unix epoch.
type every time.Duration

func (e every) Next(t time.Time) time.Time {
	return time.Unix(0, 0).Add(t.Sub(time.Unix(0, 0)).Truncate(time.Duration(e))).Add(time.Duration(e)).UTC()
}

// never has no tick.
type never struct{}

func (never) Next(time.Time) time.Time { return time.Time{} }
