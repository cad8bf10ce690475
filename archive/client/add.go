package client

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

const (
	// linger is how long replicas that are still at it are waited for once a
	// quorum has acknowledged, beside half of the time so far: the more copies
	// the better, but a dead one must cost little.
	linger = 250 * time.Millisecond
	// groups is how many submissions are under way at a time, so that reading,
	// sending and syncing go on side by side.
	groups = 3
)

// Item is a name and the content to bind it to.
type Item struct {
	Name archive.Name
	// Open gives the bytes from their start. It may be called several times,
	// and concurrently; they must be the same each time. If what it returns
	// has a method Stat, as a file has, it is called to see that nothing has
	// changed while the bytes were read.
	Open func() (io.ReadCloser, error)

	content archive.Content // once it is known
}

// Outcome is what came of one item.
type Outcome struct {
	archive.Binding
	Status string // wire.AckPending or wire.AckBound, or empty: not added
	Err    error  // why it was not added
}

// AddResult says what became of an Add.
type AddResult struct {
	Status   string            // wire.AckPending, or wire.AckBound if nothing is left to do
	Due      time.Time         // when the update phase is scheduled that binds what is pending
	Bindings []archive.Binding // of Add: what 2f+1 replicas acknowledged, by name
	// Conflicts are the names that are proven to be bound to other content.
	Conflicts []*ConflictError
	// Failed says which replicas did not acknowledge, and why.
	Failed map[uint32]error
}

// Add reads the contents of items, brings them to all replicas and submits the
// names under one signature for each thousand. It returns once 2f+1 replicas
// have acknowledged; doing it again is safe. What is proven to be bound otherwise
// comes back as *ConflictError, joined, beside what was acknowledged;
// *NoQuorumError, ErrDenied and ErrQuota say that it was not. If an item cannot be
// read, no name of its thousand is submitted.
func (c *Client) Add(ctx context.Context, items []Item) (AddResult, error) {
	var all []archive.Binding
	res, err := c.addAll(ctx, items, true, func(o Outcome) {
		if o.Err == nil {
			all = append(all, o.Binding)
		}
	})
	res.Bindings = all
	if err == nil {
		err = joinConflicts(res.Conflicts)
	}
	return res, err
}

// AddEach is Add for any number of items, in memory that does not grow with
// their bytes. It tells each what came of every item, by name; one that cannot be
// read, or conflicts, keeps no other from being added. What ends it all it
// returns: items that it has not told of then are to be added again.
func (c *Client) AddEach(ctx context.Context, items []Item, each func(Outcome)) (AddResult, error) {
	return c.addAll(ctx, items, false, each)
}

func (c *Client) addAll(ctx context.Context, items []Item, strict bool, each func(Outcome)) (AddResult, error) {
	res := AddResult{Status: wire.AckBound, Failed: make(map[uint32]error)}
	w, err := c.writer()
	if err != nil {
		return res, err
	}
	if items, err = sorted(w, items); err != nil {
		return res, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for g := range c.startGroups(ctx, items, strict) {
		done := <-g
		res.take(done, each)
		if done.err != nil {
			return res, errors.Join(append([]error{done.err}, asErrors(res.Conflicts)...)...)
		}
	}
	res.Due = c.Roster.Schedule.Next(c.Now())
	return res, ctx.Err()
}

// sorted checks all names and returns the items by ascending name.
func sorted(w archive.Writer, items []Item) ([]Item, error) {
	items = slices.Clone(items)
	slices.SortStableFunc(items, func(a, b Item) int { return cmp.Compare(a.Name, b.Name) })
	for i, it := range items {
		if err := it.Name.Check(); err != nil {
			return nil, fmt.Errorf("%q: %w", it.Name, err)
		}
		if i > 0 && items[i-1].Name == it.Name {
			return nil, fmt.Errorf("%q: %w: stands twice", it.Name, archive.ErrName)
		}
		if err := w.Permitted(archive.Submission{Bindings: []archive.Binding{{Name: it.Name}}}); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDenied, err)
		}
	}
	return items, nil
}

// MayAdd returns what Add returns of items for their names and the roster alone.
func (c *Client) MayAdd(items []Item) error {
	w, err := c.writer()
	if err != nil {
		return err
	}
	_, err = sorted(w, items)
	return err
}

// startGroups adds the items a thousand at a time, several thousands side by
// side, and gives what comes of each in their order.
func (c *Client) startGroups(ctx context.Context, items []Item, strict bool) <-chan chan group {
	out := make(chan chan group, groups-2) // one more waits to go in, another is waited for
	go func() {
		defer close(out)
		for batch := range slices.Chunk(items, archive.MaxBindings) {
			g := make(chan group, 1)
			go func() { g <- c.addGroup(ctx, batch, strict) }()
			select {
			case out <- g:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// group is what came of up to a thousand items.
type group struct {
	outcomes  []Outcome
	conflicts []*ConflictError
	failed    map[uint32]error // replicas
	pending   bool
	err       error
}

func (r *AddResult) take(g group, each func(Outcome)) {
	r.Conflicts = append(r.Conflicts, g.conflicts...)
	for id, err := range g.failed {
		r.Failed[id] = err
	}
	if g.pending {
		r.Status = wire.AckPending
	}
	for _, o := range g.outcomes {
		each(o)
	}
}

func joinConflicts(cs []*ConflictError) error {
	errs := asErrors(cs)
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// writer returns the roster's entry of this client's key.
func (c *Client) writer() (archive.Writer, error) {
	if len(c.Key) != ed25519.PrivateKeySize {
		return archive.Writer{}, fmt.Errorf("%w: no writer key", ErrDenied)
	}
	w, err := c.Roster.Admit(c.Roster.ID(), archive.KeyIDOf(c.Key.Public().(ed25519.PublicKey)))
	if err != nil {
		return w, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return w, nil
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// addGroup adds up to a thousand items, by ascending name.
func (c *Client) addGroup(ctx context.Context, items []Item, strict bool) (g group) {
	select {
	case c.places <- struct{}{}:
		defer func() { <-c.places }()
	case <-ctx.Done():
		g.err = ctx.Err()
		return g
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := c.newSending(ctx)
	items, unread := s.readAll(ctx, slices.Clone(items), strict)
	s.close()
	if g.outcomes = unread; strict && len(unread) > 0 {
		g.err = fmt.Errorf("%s: %w", unread[0].Name, unread[0].Err)
		return g
	}
	if g.err = ctx.Err(); g.err == nil {
		g.err = c.submit(ctx, s, items, &g)
	}
	slices.SortFunc(g.outcomes, func(a, b Outcome) int { return cmp.Compare(a.Name, b.Name) })
	return g
}

// submit submits the items. Those that turn out to be bound otherwise are left
// out, and the rest is submitted again.
func (c *Client) submit(ctx context.Context, s *sending, items []Item, g *group) error {
	for len(items) > 0 {
		a := c.newAdding(s, items)
		conflicts, err := a.run(ctx)
		if err != nil {
			return err
		}
		for _, e := range conflicts {
			g.conflicts = append(g.conflicts, e)
			g.outcomes = append(g.outcomes, Outcome{Binding: archive.Binding{Name: e.Name, Content: e.Want}, Err: e})
		}
		if len(conflicts) == 0 {
			a.report(g)
			return nil
		}
		items = without(items, conflicts)
	}
	return nil
}

func asErrors(cs []*ConflictError) (errs []error) {
	for _, c := range cs {
		errs = append(errs, c)
	}
	return errs
}

func without(items []Item, conflicts []*ConflictError) []Item {
	return slices.DeleteFunc(slices.Clone(items), func(it Item) bool {
		return slices.ContainsFunc(conflicts, func(c *ConflictError) bool { return c.Name == it.Name })
	})
}

// adding is one submission on its way to all replicas.
type adding struct {
	c     *Client
	sent  *sending
	items []Item
	sub   archive.Submission
	acks  map[uint32]wire.Ack
	errs  map[uint32]error
}

// offered is what came of one replica.
type offered struct {
	r   *replica
	ack wire.Ack
	err error
}

func (c *Client) newAdding(s *sending, items []Item) *adding {
	a := &adding{c: c, sent: s, items: items, acks: make(map[uint32]wire.Ack), errs: make(map[uint32]error)}
	a.sub = archive.Submission{Archive: c.Roster.ID(), Created: c.Now().UTC().Truncate(time.Second)}
	for _, it := range items {
		a.sub.Bindings = append(a.sub.Bindings, archive.Binding{Name: it.Name, Content: it.content})
	}
	a.sub.Sign(c.Key)
	return a
}

// run offers contents and submission to all replicas. It returns nil once 2f+1
// have acknowledged, or conflicts as soon as one is proven.
func (a *adding) run(ctx context.Context) ([]*ConflictError, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan offered, len(a.c.replicas))
	for _, r := range a.c.replicas {
		go func() {
			ack, err := a.offer(ctx, r)
			done <- offered{r, ack, err}
		}()
	}
	var late <-chan time.Time
	for range a.c.replicas {
		select {
		case o := <-done:
			if over, conflicts, err := a.take(o); over {
				return conflicts, err
			}
		case <-late:
			return nil, nil
		}
		if late == nil && len(a.acks) >= a.c.Roster.Quorum() {
			late = time.After(linger + time.Since(a.sent.began)/2)
		}
	}
	return nil, a.verdict(ctx)
}

// take counts one replica's reply, and reports whether it decides everything: a
// proven conflict does, or f+1 refusals.
func (a *adding) take(o offered) (over bool, conflicts []*ConflictError, err error) {
	if o.err == nil {
		a.acks[o.r.ID] = o.ack
		return false, nil, nil
	}
	a.errs[o.r.ID] = o.err
	var e *wire.Error
	if errors.As(o.err, &e) && e.Code == wire.CodeConflict {
		if conflicts = a.conflicts(e); len(conflicts) > 0 {
			return true, conflicts, nil
		}
		a.errs[o.r.ID] = fmt.Errorf("claims a conflict that it does not prove: %w", ErrIntegrity)
	}
	err = a.refusal()
	return err != nil, nil, err
}

// conflicts returns those that e proves. One valid proof suffices, from
// anybody: a name's entry never changes.
func (a *adding) conflicts(e *wire.Error) []*ConflictError {
	var cs []*ConflictError
	for _, c := range e.Conflicts[:min(len(e.Conflicts), wire.MaxProven)] {
		i, ok := slices.BinarySearchFunc(a.items, c.Name, func(it Item, n archive.Name) int { return cmp.Compare(it.Name, n) })
		if !ok || slices.ContainsFunc(cs, func(o *ConflictError) bool { return o.Name == c.Name }) {
			continue
		}
		entry, rec, err := e.Bound(a.c.Roster, c)
		if err == nil && entry.Digest != a.items[i].content.Digest {
			cs = append(cs, &ConflictError{Name: c.Name, Want: a.items[i].content, Bound: entry, Record: rec})
		}
	}
	return cs
}

// refusal returns ErrDenied or ErrQuota once f+1 replicas say so.
func (a *adding) refusal() error {
	for _, kind := range []struct {
		err   error
		codes []wire.Code
	}{{ErrDenied, []wire.Code{wire.CodeDenied}}, {ErrQuota, []wire.Code{wire.CodeQuota, wire.CodeTooLarge}}} {
		n := 0
		var last *wire.Error
		for _, err := range a.errs {
			var e *wire.Error
			if errors.As(err, &e) && slices.Contains(kind.codes, e.Code) {
				n, last = n+1, e
			}
		}
		if n > a.c.Roster.F {
			return fmt.Errorf("%w: %d replicas say: %s", kind.err, n, last.Message)
		}
	}
	return nil
}

// verdict is called when all replicas have replied.
func (a *adding) verdict(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if len(a.acks) >= a.c.Roster.Quorum() {
		return nil
	}
	for _, err := range a.errs {
		if isSource(err) { // the others hold what it was before
			return err
		}
	}
	return &NoQuorumError{Need: a.c.Roster.Quorum(), Got: len(a.acks), Replicas: a.errs}
}

// report says what was acknowledged. It is bound only if f+1 say so.
func (a *adding) report(g *group) {
	g.failed = a.errs
	bound := 0
	for _, ack := range a.acks {
		if ack.Status == wire.AckBound {
			bound++
		}
	}
	status := wire.AckBound
	if bound <= a.c.Roster.F {
		status, g.pending = wire.AckPending, true
	}
	for _, b := range a.sub.Bindings {
		g.outcomes = append(g.outcomes, Outcome{Binding: b, Status: status})
	}
}
