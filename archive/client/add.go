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

// linger is how long replicas that are still at it are waited for once a quorum
// has acknowledged: the more copies the better, but a dead one must cost little.
const linger = 250 * time.Millisecond

// Item is a name and the content to bind it to.
type Item struct {
	Name archive.Name
	// Open gives the bytes from their start. It is called several times, and
	// concurrently; they must be the same each time.
	Open func() (io.ReadCloser, error)
	// Content describes the bytes; if it is zero, they are read to find out.
	Content archive.Content
}

// AddResult says what became of an Add.
type AddResult struct {
	Status   string            // wire.AckPending, or wire.AckBound if nothing is left to do
	Due      time.Time         // when the update phase is scheduled that binds what is pending
	Bindings []archive.Binding // what 2f+1 replicas acknowledged, by name
	// Conflicts are the names that are proven to be bound to other content.
	Conflicts []*ConflictError
	// Failed says which replicas did not acknowledge, and why.
	Failed map[uint32]error
}

// HashItem reads r to its end and describes its bytes.
func (c *Client) HashItem(n archive.Name, r io.Reader) (archive.Content, error) {
	h := archive.NewContentHasher()
	buf := make([]byte, 256<<10)
	for done := uint64(0); ; {
		k, err := r.Read(buf)
		h.Write(buf[:k])
		done += uint64(k)
		c.tell(Progress{Stage: "hash", Name: n, Done: done})
		if err == io.EOF {
			return h.Content(), nil
		}
		if err != nil {
			return archive.Content{}, err
		}
	}
}

// Add uploads the contents of items to all replicas and submits the names under
// one signature for each thousand. It returns once 2f+1 replicas have
// acknowledged; doing it again is safe. What is proven to be bound otherwise
// comes back as *ConflictError, joined, beside what was acknowledged;
// *NoQuorumError, ErrDenied and ErrQuota say that it was not.
func (c *Client) Add(ctx context.Context, items []Item) (AddResult, error) {
	res := AddResult{Status: wire.AckBound, Failed: make(map[uint32]error)}
	w, err := c.writer()
	if err != nil {
		return res, err
	}
	items, err = c.prepare(ctx, w, items)
	if err != nil {
		return res, err
	}
	for batch := range slices.Chunk(items, archive.MaxBindings) {
		if err := c.addBatch(ctx, batch, &res); err != nil {
			return res, err
		}
	}
	res.Due = c.Roster.Schedule.Next(c.Now())
	return res, joinConflicts(res.Conflicts)
}

func joinConflicts(cs []*ConflictError) error {
	var errs []error
	for _, c := range cs {
		errs = append(errs, c)
	}
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

// prepare checks all names, describes all contents, and returns the items by
// ascending name.
func (c *Client) prepare(ctx context.Context, w archive.Writer, items []Item) ([]Item, error) {
	items = slices.Clone(items)
	slices.SortStableFunc(items, func(a, b Item) int { return cmp.Compare(a.Name, b.Name) })
	for i := range items {
		it := &items[i]
		if err := it.Name.Check(); err != nil {
			return nil, fmt.Errorf("%q: %w", it.Name, err)
		}
		if i > 0 && items[i-1].Name == it.Name {
			return nil, fmt.Errorf("%q: %w: stands twice", it.Name, archive.ErrName)
		}
		if err := w.Permitted(archive.Submission{Bindings: []archive.Binding{{Name: it.Name}}}); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDenied, err)
		}
		if err := c.describe(ctx, it); err != nil {
			return nil, fmt.Errorf("%s: %w", it.Name, err)
		}
	}
	return items, nil
}

// describe sets the item's content unless it is known.
func (c *Client) describe(ctx context.Context, it *Item) error {
	if it.Content.Digest.IsZero() {
		r, err := it.Open()
		if err != nil {
			return err
		}
		defer r.Close()
		if it.Content, err = c.HashItem(it.Name, &ctxReader{ctx, r}); err != nil {
			return err
		}
	}
	if limit := c.Roster.Limits.ContentSize; it.Content.Size > limit {
		return fmt.Errorf("%w: %d bytes, the archive takes at most %d", ErrQuota, it.Content.Size, limit)
	}
	return nil
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

// addBatch adds up to a thousand names. Those that turn out to be bound
// otherwise are left out, and the rest is submitted again.
func (c *Client) addBatch(ctx context.Context, items []Item, res *AddResult) error {
	for len(items) > 0 {
		a := c.newAdding(items)
		conflicts, err := a.run(ctx)
		res.Conflicts = append(res.Conflicts, conflicts...)
		if err != nil {
			return errors.Join(append([]error{err}, asErrors(res.Conflicts)...)...)
		}
		if len(conflicts) == 0 {
			a.report(res)
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

func (c *Client) newAdding(items []Item) *adding {
	a := &adding{c: c, items: items, acks: make(map[uint32]wire.Ack), errs: make(map[uint32]error)}
	a.sub = archive.Submission{Archive: c.Roster.ID(), Created: c.Now().UTC().Truncate(time.Second)}
	for _, it := range items {
		a.sub.Bindings = append(a.sub.Bindings, archive.Binding{Name: it.Name, Content: it.Content})
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
			late = time.After(linger)
		}
	}
	return nil, a.verdict(ctx)
}

// take counts one replica's reply, and reports whether it decides everything: a
// proven conflict does, or a source that is not what it was, or f+1 refusals.
func (a *adding) take(o offered) (over bool, conflicts []*ConflictError, err error) {
	if o.err == nil {
		a.acks[o.r.ID] = o.ack
		return false, nil, nil
	}
	a.errs[o.r.ID] = o.err
	if errors.Is(o.err, ErrChanged) || errors.Is(o.err, errSource) {
		return true, nil, o.err
	}
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
		if err == nil && entry.Digest != a.items[i].Content.Digest {
			cs = append(cs, &ConflictError{Name: c.Name, Want: a.items[i].Content, Bound: entry, Record: rec})
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
	return &NoQuorumError{Need: a.c.Roster.Quorum(), Got: len(a.acks), Replicas: a.errs}
}

// report adds what was acknowledged to res. It is bound only if f+1 say so.
func (a *adding) report(res *AddResult) {
	res.Bindings = append(res.Bindings, a.sub.Bindings...)
	for id, err := range a.errs {
		res.Failed[id] = err
	}
	bound := 0
	for _, ack := range a.acks {
		if ack.Status == wire.AckBound {
			bound++
		}
	}
	if bound <= a.c.Roster.F {
		res.Status = wire.AckPending
	}
}
