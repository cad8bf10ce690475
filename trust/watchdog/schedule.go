package watchdog

import "time"

const (
	// recheck bounds how long a step of the wall clock goes unnoticed.
	recheck = time.Minute

	// slack is the step back of the wall clock up to which a tick that has
	// been answered is not taken for a new one.
	slack = time.Minute
)

// now reads the wall clock without its monotonic part, which would hide steps.
func (w *Watchdog) now() time.Time { return w.cfg.Now().Round(0) }

// untilTick reports whether the tick has come, and if not how long to wait
// before asking again. However many ticks have passed at once, as when the
// clock stepped forward or the machine slept, they are one.
func (w *Watchdog) untilTick() (left time.Duration, due bool) {
	now := w.now()
	w.sooner(now)
	if w.next.IsZero() {
		return recheck, false
	}
	if !now.Before(w.next) {
		return 0, true
	}
	return min(w.next.Sub(now), recheck), false
}

// sooner takes an earlier tick than the one waited for, which there is when the
// clock has stepped back.
func (w *Watchdog) sooner(now time.Time) {
	n := w.after(now)
	if n.IsZero() || !w.next.IsZero() && !n.Before(w.next) {
		return
	}
	w.next = n
	w.change(func(s *State) { s.Next = n })
}

// skipTo counts the ticks up to now as answered by the phase that is running.
func (w *Watchdog) skipTo(now time.Time) {
	if !w.next.IsZero() && !now.Before(w.next) {
		w.ran = w.next
	}
	w.next = w.after(now)
}

// after returns the first tick after now that no phase has answered.
func (w *Watchdog) after(now time.Time) time.Time {
	if w.ran.After(now) && w.ran.Sub(now) < slack {
		now = w.ran
	}
	return w.cfg.Schedule.Next(now).Round(0)
}
