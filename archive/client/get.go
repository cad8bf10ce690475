package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

const (
	// lookups is how many requests for proofs one session has under way, and
	// lookupNames how many names are in each.
	lookups, lookupNames = 4, wire.MaxProofs
	// hints bounds for how many absent names of one Get replicas are asked
	// whether they are pending, and hintTime how long that may take.
	hints    = 16
	hintTime = 300 * time.Millisecond
	// reopenings bounds how often one Get or List follows the replicas to a
	// new epoch.
	reopenings = 8
)

// Result is what an archive says of a name.
type Result struct {
	Name    archive.Name
	Entry   archive.Entry
	Record  archive.EpochRecord // under which the entry is proven
	Receipt archive.Receipt     // proves the same offline
	Age     time.Duration       // of the record
	Overdue bool                // an update phase has been due since
	Profile trust.Profile       // the weakest device that the result rests on
	// Warnings tell of replicas that were reset out of turn or are behind.
	Warnings []string
	// Err is set, and the entry not, for a name that is not proven to be
	// bound: *AbsentError, ErrStale where an absence is not believed,
	// archive.ErrName.
	Err error
}

// Get looks up all names in one session: one round of attestations, then only
// proofs. Results stand in the order of names. The error is for what fails as a
// whole; what fails for one name stands in its Result.
func (c *Client) Get(ctx context.Context, names ...archive.Name) ([]Result, error) {
	results := make([]Result, len(names))
	var open []int // indexes of names without a result
	for i, n := range names {
		results[i] = Result{Name: n, Err: n.Check()}
		if results[i].Err == nil {
			open = append(open, i)
		}
	}
	for try := 0; len(open) > 0; try++ {
		left, err := c.getIn(ctx, results, open)
		if err != nil && (!errors.Is(err, errOver) || try == reopenings) {
			return nil, err
		}
		open = left
	}
	c.hintPending(ctx, results)
	return results, nil
}

// getIn looks up the names at the given indexes in one new session and returns
// those that are still without a result when the session is over.
func (c *Client) getIn(ctx context.Context, results []Result, open []int) ([]int, error) {
	lead := results[open[0]].Name
	s, err := c.open(ctx, wire.AnswerRequest{Name: lead})
	if err != nil {
		return open, err
	}
	defer s.close()
	proofs, err := s.proofs(ctx, results, open)
	if err != nil && !errors.Is(err, errOver) {
		return open, err
	}
	var left, stale []int
	for i, p := range proofs {
		if p.view == nil {
			left = append(left, open[i])
			continue
		}
		results[open[i]] = s.result(results[open[i]].Name, p)
		if errors.Is(results[open[i]].Err, ErrStale) {
			stale = append(stale, open[i])
		}
	}
	if len(stale) > 0 && s.better() {
		return append(left, stale...), errOver
	}
	return left, err
}

// proofs returns a verified proof for each of the names, as far as the session
// lasts. The first name's came with the answers.
func (s *session) proofs(ctx context.Context, results []Result, open []int) ([]shown, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := make([]shown, len(open))
	lead := s.group(s.head)[0]
	out[0] = shown{lead.Proof, lead.View}
	names := make([]archive.Name, len(open))
	for i, k := range open {
		names[i] = results[k].Name
	}
	places := make(chan struct{}, lookups)
	var wg sync.WaitGroup
	for lo := 1; lo < len(open) && ctx.Err() == nil; lo += lookupNames {
		hi := min(lo+lookupNames, len(open))
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if err := s.lookup(ctx, names[lo:hi], out[lo:hi]); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return out, context.Cause(ctx)
}

// lookup puts a verified proof for each of the names into out, as far as the
// session lasts.
func (s *session) lookup(ctx context.Context, names []archive.Name, out []shown) error {
	for len(names) > 0 {
		got, err := prove(ctx, s, func(ctx context.Context, r *replica) ([]shown, error) { return s.lookupAt(ctx, r, names) })
		if err != nil {
			return err
		}
		n := copy(out, got)
		names, out = names[n:], out[n:]
	}
	return nil
}

// lookupAt returns r's proofs, verified, for the first of the names: for one at
// least.
func (s *session) lookupAt(ctx context.Context, r *replica, names []archive.Name) ([]shown, error) {
	proofs, err := r.peer.Proofs(ctx, s.head, names)
	if err != nil {
		return nil, err
	}
	out := make([]shown, len(proofs))
	for i, p := range proofs {
		out[i], err = s.check(r, p, func(v *tree.View) error {
			_, _, err := archive.Lookup(v, names[i])
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// result says what a verified proof shows of n: its entry, that it is absent,
// or why that is not believed.
func (s *session) result(n archive.Name, p shown) Result {
	res := Result{
		Name: n, Record: s.rec, Age: s.c.Now().Sub(s.rec.Time), Overdue: s.overdue(),
		Warnings: s.warnings(), Profile: s.profile(),
	}
	entry, present, err := archive.Lookup(p.view, n)
	switch {
	case err != nil:
		res.Err = err
	case !present:
		res.Err = s.absent(n)
	default:
		res.Entry = entry
		res.Receipt = archive.NewReceipt(n, s.nonce, s.group(s.head))
		res.Receipt.Proof = p.proof
	}
	return res
}

// absent returns the *AbsentError for n, if an absence is to be believed now.
func (s *session) absent(n archive.Name) error {
	if err := s.current(); err != nil {
		return err
	}
	return &AbsentError{Name: n, Record: s.rec, Due: s.due()}
}

func (s *session) due() time.Time { return s.rec.Due(s.c.Roster.Schedule) }

// overdue reports whether an update phase should have made a newer epoch.
func (s *session) overdue() bool { return !s.c.Now().Before(s.due()) }

// warnings tells what is odd about the answers, though they verify.
func (s *session) warnings() []string {
	var w []string
	say := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	for _, v := range s.sorted() {
		want, _ := v.Record.CountsOf(v.Replica)
		switch {
		case v.Record.Epoch < s.rec.Epoch:
			say("replica %d is behind: at epoch %d", v.Replica, v.Record.Epoch)
		case v.Record.Epoch > s.rec.Epoch:
			say("replica %d is ahead: at epoch %d", v.Replica, v.Record.Epoch)
		case !v.Record.HasJoined(v.Replica):
			say("replica %d did not join epoch %d and caught up later", v.Replica, s.rec.Epoch)
		case v.Statement.Counts != want:
			say("replica %d was reset out of turn since epoch %d: counts %s, were %s", v.Replica, s.rec.Epoch, v.Statement.Counts, want)
		}
	}
	if s.overdue() {
		say("an update phase has been due since %s; the archive is still at epoch %d", s.due().Format(time.RFC3339), s.rec.Epoch)
	}
	return w
}

// sorted returns all valid answers, by ascending replica.
func (s *session) sorted() []*archive.Verified {
	vs := slices.Clone(s.answers)
	slices.SortFunc(vs, func(a, b *archive.Verified) int { return int(a.Replica) - int(b.Replica) })
	return vs
}

// profile returns the weakest device among those that attest the head and those
// that certified it.
func (s *session) profile() trust.Profile {
	var ps []trust.Profile
	group := s.group(s.head)
	for _, v := range group {
		ps = append(ps, s.c.replica(v.Replica).MAS.Profile)
	}
	for _, v := range group[0].Certificate.Votes {
		ps = append(ps, s.c.replica(v.Replica).MAS.Profile)
	}
	return trust.Weakest(ps...)
}

// hintPending marks the absent names that wait for the next update phase.
func (c *Client) hintPending(ctx context.Context, results []Result) {
	ctx, cancel := context.WithTimeout(ctx, hintTime)
	defer cancel()
	asked := 0
	for i := range results {
		var absent *AbsentError
		if asked < hints && errors.As(results[i].Err, &absent) {
			absent.Pending = c.pending(ctx, absent.Name)
			asked++
		}
	}
}

// pending asks all replicas at once whether n is pending: a hint, which one yes
// suffices for.
func (c *Client) pending(ctx context.Context, n archive.Name) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	said := make(chan bool, len(c.replicas))
	for _, r := range c.replicas {
		go func() {
			p, err := r.peer.Pending(ctx, n)
			said <- err == nil && p.Pending
		}()
	}
	for range c.replicas {
		if <-said {
			return true
		}
	}
	return false
}
