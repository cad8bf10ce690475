// Package watchdog keeps an archive's time: it opens update mode on schedule,
// ends it on time whatever happens, and runs the update and the service process
// as its children, never both at once.
//
// The watchdog parses nothing that comes from a network. What it is asked to
// do, it does in one order: stop the service child, reset the trusted device,
// run the update child under a hard limit, lock the device, start the service
// child again. A service child never starts before a Lock has succeeded.
//
// No child outlives the watchdog, also when the watchdog is killed: see [Start].
package watchdog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"sync"
	"time"
)

// ErrStopped is returned by Trigger when Run has ended, so that no update phase
// will come.
var ErrStopped = errors.New("watchdog stopped")

// Phases as State names them.
const (
	PhaseStarting = "starting"
	PhaseUpdate   = "update"
	PhaseService  = "service"
	PhaseStopped  = "stopped"
)

// Schedule says when update phases begin. Next returns the first tick after t,
// or the zero time if there is none; it depends on nothing but t.
type Schedule interface {
	Next(t time.Time) time.Time
}

// Device is what the watchdog does to the trusted device. Both calls must
// return soon after their context ends, and may be repeated. A Lock that finds
// the device gone brings it back first, or the replica waits for ever.
type Device interface {
	Reset(ctx context.Context) error // opens update mode
	Lock(ctx context.Context) error  // ends it
}

// Config is what a watchdog is made of. Schedule, Device, Update and Service
// are required.
type Config struct {
	Schedule Schedule
	Device   Device

	// Update and Service make the command of a new child. The watchdog puts
	// it into a process group of its own. The context ends with the child.
	Update, Service func(ctx context.Context) *exec.Cmd

	// Over lists the exit statuses by which an update child says that its
	// phase is over. With any other end it has died, and is started again
	// within the phase. Nil means 0 (done) and 6 (no quorum).
	Over []int

	// Fresh says that the device has just been reset, as by the boot of the
	// machine, so that the first phase begins without another Reset.
	Fresh bool

	// Locked says that an update phase has been since the last reset of the
	// device, or is left to others, so that Run begins with the service phase.
	// It locks the device first all the same.
	Locked bool

	PhaseLimit time.Duration // hard end of an update phase, reset included; default 10 min
	StopGrace  time.Duration // between SIGTERM and SIGKILL, and for the last Lock; default 10 s
	LockLimit  time.Duration // for one attempt to lock; default 30 s

	BackoffMin, BackoffMax time.Duration // between restarts; default 200 ms and 1 min

	// Now is the wall clock that the schedule is read by; default time.Now.
	// All waiting is by monotonic time.
	Now func() time.Time

	Log *slog.Logger // default: discard

	// OnChange, if set, is called with each new state, by the goroutine
	// that called Run, which waits for its return.
	OnChange func(State)

	// Alive, if set, is called by that goroutine at least every minute of a
	// service phase.
	Alive func()
}

// State is what a watchdog is doing.
type State struct {
	Phase     string    // one of the Phase constants
	Child     int       // process id of the running child, 0 if none runs
	Last      time.Time // when the last update phase ended, well or not; zero before the first
	Next      time.Time // the next tick; zero if there is none
	LastError string    // what last went wrong; empty again after a phase that went well
	Phases    uint64    // how many update phases have ended, well or not
}

// Watchdog runs the phases of one replica.
type Watchdog struct {
	cfg   Config
	start func(*exec.Cmd) (process, error)
	wake  chan struct{} // one pending wish for a phase

	// next, ran and old are owned by Run.
	next time.Time // the tick waited for
	ran  time.Time // the newest tick that a phase has answered
	old  process   // killed, but not seen to end

	mu      sync.Mutex // guards all below
	state   State
	asked   *phase // wished for, not begun
	current *phase // begun, not ended
	stopped bool
}

// phase is an update phase as those see it who wait for its end.
type phase struct {
	done chan struct{}
	err  error // owned by Run until done is closed
}

// New returns a watchdog that does nothing until Run. It panics if a required
// field of the configuration is missing.
func New(c Config) *Watchdog {
	if c.Schedule == nil || c.Device == nil || c.Update == nil || c.Service == nil {
		panic("watchdog: incomplete Config")
	}
	return &Watchdog{
		cfg:   c.withDefaults(),
		start: startProcess,
		wake:  make(chan struct{}, 1),
		state: State{Phase: PhaseStarting},
	}
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.PhaseLimit, 10*time.Minute)
	def(&c.StopGrace, 10*time.Second)
	def(&c.LockLimit, 30*time.Second)
	def(&c.BackoffMin, 200*time.Millisecond)
	def(&c.BackoffMax, time.Minute)
	if c.Over == nil {
		c.Over = []int{0, 6}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Run runs phase after phase until ctx ends, beginning with an update phase
// unless Locked is set: whatever happened before, update code runs before
// service code. It then stops the child, locks the device and returns nil, or an
// error if a device in update mode could not be locked. Of Run and Once, one may
// be called, once.
func (w *Watchdog) Run(ctx context.Context) error {
	defer w.end()
	err := w.first(ctx)
	for err == nil && ctx.Err() == nil {
		w.serve(ctx)
		if ctx.Err() != nil {
			return nil
		}
		_, err = w.update(ctx)
	}
	return err
}

// Once runs one update phase and returns nil if it went well and the device is
// locked.
func (w *Watchdog) Once(ctx context.Context) error {
	defer w.end()
	err, locked := w.update(ctx)
	return errors.Join(err, locked)
}

// first is what must have been before any service phase.
func (w *Watchdog) first(ctx context.Context) error {
	if w.cfg.Locked {
		w.skipTo(w.now())
		w.change(func(s *State) { s.Next = w.next })
		return w.lock(ctx)
	}
	_, err := w.update(ctx)
	return err
}

// Trigger asks for an update phase now and waits for its end, which is when the
// device is locked again. It returns nil if the phase went well. While a phase
// is running it waits for that one; callers at the same time share one phase.
func (w *Watchdog) Trigger(ctx context.Context) error {
	p, err := w.ask()
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// State returns what the watchdog is doing now.
func (w *Watchdog) State() State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

func (w *Watchdog) ask() (*phase, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return nil, ErrStopped
	}
	if w.current != nil {
		return w.current, nil
	}
	if w.asked == nil {
		w.asked = newPhase()
	}
	select {
	case w.wake <- struct{}{}:
	default: // it has been woken already
	}
	return w.asked, nil
}

func newPhase() *phase { return &phase{done: make(chan struct{})} }

// begin opens the phase that was asked for, or one that nobody waits for yet.
func (w *Watchdog) begin() *phase {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.wake:
	default:
	}
	if w.asked == nil {
		w.asked = newPhase()
	}
	w.current, w.asked = w.asked, nil
	return w.current
}

func (w *Watchdog) finish(p *phase, err error) {
	w.change(func(s *State) {
		s.Last, s.Next = w.now(), w.next
		s.Phases++
		s.LastError = text(err)
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current = nil
	p.err = err
	close(p.done)
}

// end releases who still waits for a phase that will not come.
func (w *Watchdog) end() {
	w.change(func(s *State) { s.Phase, s.Child = PhaseStopped, 0 })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	if w.asked != nil {
		w.asked.err = ErrStopped
		close(w.asked.done)
		w.asked = nil
	}
}

func (w *Watchdog) change(f func(*State)) {
	w.mu.Lock()
	f(&w.state)
	s := w.state
	w.mu.Unlock()
	if w.cfg.OnChange != nil {
		w.cfg.OnChange(s)
	}
}

// trouble records what went wrong and will be tried again.
func (w *Watchdog) trouble(doing string, err error) {
	w.cfg.Log.Warn(doing, "err", err)
	w.change(func(s *State) { s.LastError = fmt.Sprintf("%s: %v", doing, err) })
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
