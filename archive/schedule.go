package archive

import (
	"fmt"
	"strings"
	"time"

	"github.com/adhocore/gronx"
)

const every = "@every "

// Schedule says when update phases begin: a cron expression in UTC, or
// "@every D" counted from the Unix epoch, so that all replicas start together.
type Schedule string

// Check returns an ErrRoster if s is not a schedule.
func (s Schedule) Check() error {
	if d, ok, err := s.interval(); ok {
		if err != nil || d < time.Second || d%time.Second != 0 {
			return fmt.Errorf("%w: schedule %q: want @every and whole seconds", ErrRoster, string(s))
		}
		return nil
	}
	if len(strings.Fields(string(s))) != 5 || !gronx.IsValid(string(s)) {
		return fmt.Errorf("%w: schedule %q: want five cron fields or @every D", ErrRoster, string(s))
	}
	if s.Next(time.Unix(0, 0)).IsZero() {
		return fmt.Errorf("%w: schedule %q: never comes", ErrRoster, string(s))
	}
	return nil
}

func (s Schedule) interval() (time.Duration, bool, error) {
	rest, ok := strings.CutPrefix(string(s), every)
	if !ok {
		return 0, false, nil
	}
	d, err := time.ParseDuration(rest)
	return d, true, err
}

// Next returns the first scheduled time after t. It is the zero time for a
// schedule that Check refuses.
func (s Schedule) Next(t time.Time) time.Time {
	t = t.UTC()
	if d, ok, err := s.interval(); ok {
		if err != nil || d <= 0 {
			return time.Time{}
		}
		since := time.Duration(t.UnixNano())
		return t.Add(d - since%d)
	}
	next, err := gronx.NextTickAfter(string(s), t, false)
	if err != nil {
		return time.Time{}
	}
	return next
}

// Duration is a time.Duration whose text form is its String.
type Duration time.Duration

// MarshalText returns the String of the duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText parses what MarshalText returns.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%w: %v", ErrFormat, err)
	}
	*d = Duration(v)
	return nil
}

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }
