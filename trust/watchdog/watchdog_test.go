package watchdog

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestBootUpdatesBeforeService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t)
		w := d.watchdog(every(time.Hour))
		if got := w.State().Phase; got != PhaseStarting {
			t.Errorf("before Run: phase %q", got)
		}
		defer d.run(w)()
		s := w.State()
		if s.Phase != PhaseUpdate || s.Child != 10001 || len(d.begins) != 1 {
			t.Errorf("at boot: %+v, %d resets", s, len(d.begins))
		}
		d.pause(time.Second)
		s = w.State()
		if s.Phase != PhaseService || s.Child != 20001 || s.Phases != 1 || s.Last.IsZero() || s.LastError != "" {
			t.Errorf("after the phase: %+v", s)
		}
		if want := every(time.Hour).Next(d.now()); !s.Next.Equal(want) {
			t.Errorf("next = %v, want %v", s.Next, want)
		}
	})
}

func TestFreshDeviceIsNotReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t)
		defer d.run(d.watchdog(every(time.Hour), func(c *Config) { c.Fresh = true }))()
		d.pause(time.Minute)
		if d.nReset != 0 || len(d.updates) != 1 || len(d.services) != 1 {
			t.Errorf("at boot: %d resets, %d updates, %d services", d.nReset, len(d.updates), len(d.services))
		}
		d.pause(time.Hour)
		if d.nReset != 1 || len(d.updates) != 2 {
			t.Errorf("at the tick: %d resets, %d updates", d.nReset, len(d.updates))
		}
	})
}

// A year of ticks with phases of all kinds: each tick is answered once, at its
// time, and update mode never lasts longer than the limit.
func TestYear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, grace = 10 * time.Minute, 10 * time.Second
		d := newWorld(t)
		d.update = func(n int) life {
			switch n % 5 {
			case 0:
				return life{after: time.Minute, status: 6}
			case 1:
				return life{stubborn: true} // hangs
			case 2:
				return life{after: time.Second, status: -1}
			}
			return life{after: 30 * time.Second}
		}
		d.serves = func(n int) life {
			if n%7 == 0 {
				return life{after: 3 * time.Hour, status: 2}
			}
			return life{stubborn: n%3 == 0}
		}
		w := d.watchdog(every(6*time.Hour), func(c *Config) { c.PhaseLimit, c.StopGrace = limit, grace })
		begin := d.now()
		stop := d.run(w)
		d.pause(365*24*time.Hour - time.Minute)
		stop()

		if got := len(d.begins); got != 1+365*4-1 {
			t.Errorf("%d phases in a year of %d ticks", got, 365*4-1)
		}
		if d.begins[0] != begin.Round(0) {
			t.Errorf("first phase at %v, want at once", d.begins[0])
		}
		for i, b := range d.begins[1:] {
			late := b.Sub(b.Truncate(6 * time.Hour))
			if late > grace {
				t.Errorf("phase %d began %v late", i+1, late)
			}
		}
		if got := w.State(); got.Phase != PhaseStopped || got.Child != 0 || got.Phases != uint64(len(d.begins)) {
			t.Errorf("at the end: %+v", got)
		}
		checkOpen(t, d, limit+grace)
	})
}

// checkOpen checks that each Reset was followed by a Lock within the limit.
func checkOpen(t *testing.T, d *world, limit time.Duration) {
	t.Helper()
	locks := d.locks
	for i, b := range d.begins {
		for len(locks) > 0 && locks[0].Before(b) {
			locks = locks[1:]
		}
		if len(locks) == 0 || locks[0].Sub(b) > limit {
			t.Errorf("phase %d was open for longer than %v", i, limit)
		}
	}
}

func TestUpdateChildEnds(t *testing.T) {
	const limit = time.Minute
	tests := []struct {
		name    string
		update  func(n int) life
		edit    func(*Config)
		starts  int
		open    time.Duration
		wantErr string
	}{
		{"done", func(int) life { return life{after: 5 * time.Second} }, nil, 1, 5 * time.Second, ""},
		{"no quorum", func(int) life { return life{after: 5 * time.Second, status: 6} }, nil, 1, 5 * time.Second, "exit status 6"},
		{"status named over", func(int) life { return life{after: time.Second, status: 7} },
			func(c *Config) { c.Over = []int{0, 7} }, 1, time.Second, "exit status 7"},
		{"dies twice", func(n int) life {
			if n <= 2 {
				return life{after: time.Second, status: -1}
			}
			return life{after: time.Second}
		}, nil, 3, 3*time.Second + 600*time.Millisecond, ""},
		{"panics for ever", func(int) life { return life{after: 10 * time.Second, status: 2} }, nil, 6, limit, "over its time limit"},
		{"hangs", func(int) life { return life{stubborn: true} }, nil, 1, limit, "over its time limit"},
		{"hangs in the kernel", func(int) life { return life{stubborn: true, undying: time.Minute} }, nil, 1, limit + 10*time.Second, "over its time limit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newWorld(t)
				d.update = tt.update
				w := d.watchdog(never{}, func(c *Config) { c.PhaseLimit = limit })
				if tt.edit != nil {
					tt.edit(&w.cfg)
				}
				defer d.run(w)()
				err := w.Trigger(t.Context())
				if got := text(err); (tt.wantErr == "") != (err == nil) || !strings.Contains(got, tt.wantErr) {
					t.Errorf("Trigger: got %v, want %q", err, tt.wantErr)
				}
				if got := w.State().LastError; got != text(err) {
					t.Errorf("LastError = %q, want %q", got, err)
				}
				if len(d.updates) != tt.starts || d.nReset != 1 {
					t.Errorf("%d update children and %d resets, want %d and 1", len(d.updates), d.nReset, tt.starts)
				}
				if got := d.locks[0].Sub(d.begins[0]); got != tt.open {
					t.Errorf("open for %v, want %v", got, tt.open)
				}
				d.pause(2 * time.Minute)
				if len(d.services) != 1 {
					t.Errorf("%d service children, want 1", len(d.services))
				}
			})
		})
	}
}

func TestLockIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t)
		d.lock = func(n int) error {
			if n <= 20 {
				return errors.New("device busy")
			}
			return nil
		}
		w := d.watchdog(never{})
		defer d.run(w)()
		d.pause(5 * time.Minute)
		if len(d.services) != 0 || !strings.Contains(w.State().LastError, "device busy") {
			t.Errorf("unlocked: %d services, %+v", len(d.services), w.State())
		}
		if err := w.Trigger(t.Context()); err != nil {
			t.Errorf("Trigger: %v", err)
		}
		d.pause(0)
		if d.nLock != 21 || len(d.services) != 1 {
			t.Errorf("%d locks, %d services, want 21 and 1", d.nLock, len(d.services))
		}
	})
}

func TestStopLeavesNoOpenDevice(t *testing.T) {
	for _, broken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			d := newWorld(t)
			d.update = func(int) life { return life{stubborn: true} }
			if broken {
				d.lock = func(int) error { return errors.New("device gone") }
			}
			ctx, cancel := context.WithCancel(t.Context())
			w := d.watchdog(never{})
			done := make(chan error, 1)
			go func() { done <- w.Run(ctx) }()
			d.pause(time.Second)
			cancel()
			err := <-done
			if broken && (err == nil || !strings.Contains(err.Error(), "device left unlocked: device gone")) {
				t.Errorf("Run with a broken device: %v", err)
			}
			if !broken && (err != nil || !d.locked) {
				t.Errorf("Run: %v, locked = %v", err, d.locked)
			}
			if d.alive != nil || len(d.services) != 0 {
				t.Errorf("after Run: child %v, %d services", d.alive, len(d.services))
			}
		})
	}
}

func TestResetIsRetriedWithinThePhase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t)
		d.locked = true
		d.reset = func(n int) error {
			if n <= 3 {
				return errors.New("no answer")
			}
			return nil
		}
		w := d.watchdog(never{})
		defer d.run(w)()
		if err := w.Trigger(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.reset = func(int) error { return errors.New("no answer") }
		err := w.Trigger(t.Context())
		if err == nil || !strings.Contains(err.Error(), "reset the device: no answer") {
			t.Errorf("Trigger: %v", err)
		}
		if d.pause(0); len(d.updates) != 1 || w.State().Phase != PhaseService {
			t.Errorf("%d update children, phase %q", len(d.updates), w.State().Phase)
		}
	})
}

func TestServiceRestartsWithBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t)
		d.serves = func(n int) life {
			switch {
			case n < 20:
				return life{after: time.Millisecond, status: -1}
			case n == 20:
				return life{after: 2 * time.Minute} // ends well, but unasked
			}
			return life{}
		}
		w := d.watchdog(never{}, func(c *Config) { c.BackoffMin, c.BackoffMax = time.Second, time.Minute })
		defer d.run(w)()
		d.pause(time.Hour)
		if len(d.services) != 21 {
			t.Fatalf("%d service children, want 21", len(d.services))
		}
		want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60}
		for i, s := range want {
			if got := d.services[i+1].Sub(d.services[i]).Truncate(time.Second); got != s*time.Second {
				t.Errorf("restart %d after %v, want %v", i+1, got, s*time.Second)
			}
		}
		if got := d.services[20].Sub(d.services[19]); got != 2*time.Minute+time.Second {
			t.Errorf("restart after a long life took %v, want the shortest pause", got)
		}
		if d.nLock != 1+20 {
			t.Errorf("%d locks, want one for the phase and one for each restart", d.nLock)
		}
		if got := w.State().LastError; !strings.Contains(got, "service child: exit status 0 unasked") {
			t.Errorf("LastError = %q", got)
		}
	})
}

// Ticks that pass while a phase runs are answered by it.
func TestLongPhaseSwallowsTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t)
		d.update = func(n int) life {
			if n == 2 {
				return life{after: 3*time.Hour + time.Minute}
			}
			return life{after: time.Second}
		}
		w := d.watchdog(every(time.Hour), func(c *Config) { c.PhaseLimit = 4 * time.Hour })
		defer d.run(w)()
		d.pause(5*time.Hour + 30*time.Minute) // ticks at 1 (to 4:01) and 5
		if len(d.begins) != 3 {
			t.Errorf("%d phases, want boot, tick 1 and tick 5: %v", len(d.begins), d.begins)
		}
	})
}

func TestClockSteps(t *testing.T) {
	midnight := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where a bubble begins
	at := func(h, m int) time.Time {
		return midnight.Add(time.Duration(h)*time.Hour + time.Duration(m)*time.Minute)
	}
	tests := []struct {
		name  string
		after time.Duration // when the clock steps
		by    time.Duration
		until time.Duration
		want  []time.Time // wall times of the phases after boot, to the minute
	}{
		{"steady", 90 * time.Minute, 0, 150 * time.Minute, []time.Time{at(1, 0), at(2, 0)}},
		{"forward over many ticks", 90 * time.Minute, 5*time.Hour + 20*time.Minute, 150 * time.Minute,
			[]time.Time{at(1, 0), at(6, 50), at(7, 0)}},
		{"back a day", 90 * time.Minute, -24 * time.Hour, 150 * time.Minute,
			[]time.Time{at(1, 0), at(-22, 0)}},
		{"back over an answered tick", 90 * time.Minute, -40 * time.Minute, 150 * time.Minute,
			[]time.Time{at(1, 0), at(1, 0)}},
		{"back a little, while a tick is answered", time.Hour + 500*time.Millisecond, -20 * time.Second, 130 * time.Minute,
			[]time.Time{at(1, 0), at(2, 0)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newWorld(t)
				defer d.run(d.watchdog(every(time.Hour)))()
				d.pause(tt.after)
				d.step(tt.by)
				d.pause(tt.until - tt.after)
				got := d.begins[1:]
				if len(got) != len(tt.want) {
					t.Fatalf("phases at %v, want %v", got, tt.want)
				}
				for i := range got {
					if late := got[i].Sub(tt.want[i]); late < 0 || late > time.Minute {
						t.Errorf("phase %d at %v, want %v", i, got[i], tt.want[i])
					}
				}
			})
		})
	}
}

func TestTrigger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t)
		d.update = func(int) life { return life{after: 10 * time.Second} }
		w := d.watchdog(every(time.Hour))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		d.pause(20 * time.Minute)

		results := make(chan error, 3)
		for range 3 { // one phase for all three, the last joining it half-way
			go func() { results <- w.Trigger(t.Context()) }()
			d.pause(4 * time.Second)
		}
		for range 3 {
			if err := <-results; err != nil {
				t.Errorf("Trigger: %v", err)
			}
		}
		if len(d.begins) != 2 || d.begins[1] != d.begins[0].Add(20*time.Minute) {
			t.Errorf("phases at %v", d.begins)
		}

		brief, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if err := w.Trigger(brief); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Trigger that cannot wait: %v", err)
		}
		d.pause(time.Minute)
		if len(d.begins) != 3 {
			t.Errorf("the phase of a caller who left ran %d times, want once", len(d.begins)-2)
		}
		cancel()
		<-done
		if err := w.Trigger(t.Context()); err != ErrStopped {
			t.Errorf("Trigger after Run: %v", err)
		}
	})
}

// A Trigger that comes before Run is answered by the first phase, or by the
// end of Run.
func TestTriggerBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t)
		w := d.watchdog(never{})
		result := make(chan error, 1)
		go func() { result <- w.Trigger(t.Context()) }()
		synctest.Wait()
		defer d.run(w)()
		if err := <-result; err != nil {
			t.Error(err)
		}
		d.pause(time.Hour)
		if len(d.begins) != 1 {
			t.Errorf("%d phases, want 1", len(d.begins))
		}
	})
}

func TestOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var phases []string
		d := newWorld(t)
		w := d.watchdog(every(time.Hour), func(c *Config) {
			c.OnChange = func(s State) {
				if n := len(phases); n == 0 || phases[n-1] != s.Phase {
					phases = append(phases, s.Phase)
				}
			}
		})
		stop := d.run(w)
		d.pause(90 * time.Minute)
		stop()
		if got, want := strings.Join(phases, " "), "update service update service stopped"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestNewRefusesHalfAConfig(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("New accepted an empty Config")
		}
	}()
	New(Config{})
}

// A watchdog that leaves update phases to others locks before it serves, and
// opens none by itself.
func TestLockedDeviceIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t)
		d.lock = func(n int) error {
			if n < 3 {
				return errors.New("busy")
			}
			return nil
		}
		alive := 0
		stop := d.run(d.watchdog(never{}, func(c *Config) { c.Locked, c.Alive = true, func() { alive++ } }))
		d.pause(24 * time.Hour)
		stop()
		if d.nReset != 0 || len(d.updates) != 0 || len(d.services) != 1 {
			t.Errorf("%d resets, %d updates, %d services", d.nReset, len(d.updates), len(d.services))
		}
		if d.nLock < 3 || !d.locked {
			t.Errorf("locked %v after %d attempts", d.locked, d.nLock)
		}
		if alive < 24*60 {
			t.Errorf("a sign of life %d times in a day", alive)
		}
	})
}

func TestLockedDeviceIsResetAtTheTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t)
		w := d.watchdog(every(time.Hour), func(c *Config) { c.Locked = true })
		defer d.run(w)()
		if s := w.State(); s.Phase != PhaseService || !s.Next.Equal(every(time.Hour).Next(d.now())) {
			t.Errorf("at the start: %+v", s)
		}
		d.pause(time.Hour)
		if d.nReset != 1 || len(d.updates) != 1 {
			t.Errorf("at the tick: %d resets, %d updates", d.nReset, len(d.updates))
		}
	})
}

// One phase alone ends locked and on time, whatever the child does.
func TestOnceEndsLocked(t *testing.T) {
	tests := []struct {
		name string
		life life
		good bool
	}{
		{"well", life{after: time.Second}, true},
		{"no quorum", life{after: time.Second, status: 6}, false},
		{"ignores SIGTERM", life{stubborn: true}, false},
		{"survives SIGKILL for a while", life{stubborn: true, undying: time.Hour}, false},
		{"dies over and over", life{after: time.Second, status: -1}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newWorld(t)
				d.update = func(int) life { return tt.life }
				began := d.now()
				w := d.watchdog(never{}, func(c *Config) { c.Fresh = true })
				if err := w.Once(t.Context()); (err == nil) != tt.good {
					t.Errorf("Once: %v", err)
				}
				if took := d.now().Sub(began); !d.locked || took > 10*time.Minute+20*time.Second {
					t.Errorf("after %v: locked %v", took, d.locked)
				}
				if d.nReset != 0 || len(d.services) != 0 {
					t.Errorf("%d resets, %d services", d.nReset, len(d.services))
				}
				d.pause(2 * time.Hour) // what does not die at once
			})
		})
	}
}
