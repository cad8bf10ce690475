package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

const (
	pollMin = 250 * time.Millisecond
	pollMax = 2 * time.Second
	// How often replicas are asked though no phase is due: an operator may run
	// one at any time.
	idleMin = 5 * time.Second
	idleMax = time.Minute
)

// Wait waits until every binding is decided: bound as asked, with a receipt in
// its Result, or bound to other content, with *ConflictError as its Err; the
// latter are joined in the error as well. It asks once at once, and then after
// each update phase that is due. When ctx ends first, the error says which name
// it was still waiting for, and unwraps to ctx's.
func (c *Client) Wait(ctx context.Context, bindings []archive.Binding) ([]Result, error) {
	w := &waiting{c: c, bindings: bindings, results: make([]Result, len(bindings))}
	for i := range bindings {
		w.open = append(w.open, i)
	}
	for delay := pollMin; ; delay = min(2*delay, pollMax) {
		due, err := w.poll(ctx)
		if err != nil {
			return w.results, err
		}
		if len(w.open) == 0 {
			return w.results, joinConflicts(w.conflicts)
		}
		wait := due.Sub(c.Now())
		if wait > 0 {
			delay = pollMin
		}
		if !pause(ctx, max(min(wait, idleFor(wait)), delay)) {
			return w.results, w.unfinished(ctx)
		}
	}
}

// idleFor returns how long not to ask, when the next phase is due in wait.
func idleFor(wait time.Duration) time.Duration { return min(max(wait/20, idleMin), idleMax) }

// waiting is one Wait under way.
type waiting struct {
	c         *Client
	bindings  []archive.Binding
	results   []Result
	open      []int // indexes of what is undecided
	conflicts []*ConflictError
	last      error // why the last poll decided nothing
}

// poll asks for all that is undecided. It returns when it is worth asking
// again: a zero time for soon.
func (w *waiting) poll(ctx context.Context) (due time.Time, err error) {
	var names []archive.Name
	for _, i := range w.open {
		names = append(names, w.bindings[i].Name)
	}
	results, err := w.c.Get(ctx, names...)
	if err != nil {
		if ctx.Err() == nil || w.last == nil {
			w.last = err
		}
		return time.Time{}, lasting(err)
	}
	var left []int
	for k, res := range results {
		i := w.open[k]
		w.results[i] = w.judge(i, res)
		var absent *AbsentError
		if errors.As(res.Err, &absent) || errors.Is(res.Err, ErrStale) {
			left = append(left, i)
			w.last = res.Err
		}
		if absent != nil {
			due = absent.Due
		}
	}
	w.open = left
	return due, nil
}

// lasting returns err if waiting does not mend it.
func lasting(err error) error {
	var nq *NoQuorumError
	if errors.As(err, &nq) || errors.Is(err, ErrStale) || errors.Is(err, errOver) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// judge turns a name that is bound otherwise into a conflict.
func (w *waiting) judge(i int, res Result) Result {
	b := w.bindings[i]
	if res.Err == nil && res.Entry.Digest != b.Digest {
		c := &ConflictError{Name: b.Name, Want: b.Content, Bound: res.Entry, Record: res.Record}
		w.conflicts = append(w.conflicts, c)
		res.Err = c
	}
	return res
}

func (w *waiting) unfinished(ctx context.Context) error {
	n := w.bindings[w.open[0]].Name
	err := fmt.Errorf("%s: not bound yet: %w", n, ctx.Err())
	if w.last != nil {
		err = fmt.Errorf("%w (%w)", err, w.last)
	}
	return errors.Join(append([]error{err}, asErrors(w.conflicts)...)...)
}
