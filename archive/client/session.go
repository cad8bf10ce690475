package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

// patience is how long a head that is not surely the newest waits for a later
// one.
const patience = 200 * time.Millisecond

// session is one round of attestations over one nonce, and the head that f+1
// replicas agree on. A MAS does not change without a reset, so that head serves
// all names that are looked up in the session. Not for concurrent use, except
// for prove and its kind.
type session struct {
	c      *Client
	ctx    context.Context
	cancel context.CancelFunc
	before mark // newest accepted before this session

	nonce   trust.Nonce
	replies chan reply
	waiting int // replicas that have neither answered nor failed for good
	answers []*archive.Verified
	errs    map[uint32]error

	rec  archive.EpochRecord
	head archive.Digest
}

// reply is what came of asking one replica.
type reply struct {
	r   *replica
	v   *archive.Verified
	err error
}

// open asks all replicas q under a fresh nonce and returns once f+1 valid
// answers, by distinct replicas, show one head. The caller closes the session.
func (c *Client) open(ctx context.Context, q wire.AnswerRequest) (*session, error) {
	before, err := c.seen.load()
	if err != nil {
		return nil, err
	}
	if q.Nonce, err = c.nonce(); err != nil {
		return nil, err
	}
	s := &session{c: c, before: before, nonce: q.Nonce, errs: make(map[uint32]error)}
	s.ctx, s.cancel = context.WithTimeout(ctx, c.Timeout)
	s.askAll(q)
	if err := s.settle(); err != nil {
		s.close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	return s, nil
}

// close lets go of the replicas that have not answered.
func (s *session) close() { s.cancel() }

func (s *session) askAll(q wire.AnswerRequest) {
	s.waiting = len(s.c.replicas)
	s.replies = make(chan reply, s.waiting)
	for _, r := range s.c.replicas {
		go func() { s.replies <- s.ask(r, q) }()
	}
}

// ask returns r's answer once it verifies, or why there is none.
func (s *session) ask(r *replica, q wire.AnswerRequest) reply {
	var v *archive.Verified
	err := retry(s.ctx, func(ctx context.Context) error {
		a, err := r.peer.Answer(ctx, q)
		if err != nil {
			return err
		}
		v, err = checkAnswer(s.c.Roster, r.ID, q, a)
		return err
	})
	if err != nil {
		return reply{r: r, err: inTime(err, s.c.Timeout)}
	}
	return reply{r: r, v: v}
}

// checkAnswer verifies an answer by itself, and that it decides what was asked.
func checkAnswer(r *archive.Roster, id uint32, q wire.AnswerRequest, a archive.Answer) (*archive.Verified, error) {
	v, err := a.Verify(r, id, q.Nonce)
	if err != nil {
		return nil, err
	}
	if q.Range != nil {
		_, _, err = page(v.View, q.Range.From, q.Range.To)
	} else {
		_, _, err = archive.Lookup(v.View, q.Name)
	}
	return v, err
}

// settle takes answers until f+1 agree on a head that is not older than what
// was accepted before, and accepts it. If that head is not surely the newest it
// gives the other replicas a moment to show a later one.
func (s *session) settle() error {
	var late <-chan time.Time
	for {
		group := s.best()
		enough := len(group) > s.c.Roster.F
		switch {
		case enough && (s.fresh(group[0]) || !s.mayBeat(group[0].Record.Epoch)):
			return s.accept(group[0])
		case enough && late == nil:
			late = time.After(patience)
		case !enough && !s.hope():
			return s.failure()
		}
		if !s.receive(late) {
			if enough {
				return s.accept(group[0])
			}
			return s.failure()
		}
	}
}

// fresh reports whether nothing speaks for an epoch later than v's.
func (s *session) fresh(v *archive.Verified) bool {
	for _, o := range s.answers {
		if o.Record.Epoch > v.Record.Epoch {
			return false
		}
	}
	return s.c.Now().Before(v.Record.Due(s.c.Roster.Schedule))
}

// mayBeat reports whether f+1 answers may still agree on an epoch later than e.
func (s *session) mayBeat(e archive.Epoch) bool {
	most := 0
	for _, v := range s.answers {
		if v.Record.Epoch > e {
			most = max(most, len(s.group(v.Head)))
		}
	}
	return most+s.waiting > s.c.Roster.F
}

// better waits for f+1 answers that agree on an epoch later than the session's.
// If they come it accepts that epoch, so that no later session takes less.
func (s *session) better() bool {
	for {
		if g := s.best(); len(g) > s.c.Roster.F && g[0].Record.Epoch > s.rec.Epoch {
			return s.accept(g[0]) == nil
		}
		if !s.mayBeat(s.rec.Epoch) || !s.receive(nil) {
			return false
		}
	}
}

// receive waits for one more reply, takes all that are there, and reports
// whether there was any before limit.
func (s *session) receive(limit <-chan time.Time) bool {
	if s.waiting == 0 {
		return false
	}
	select {
	case p := <-s.replies:
		s.take(p)
	case <-limit:
		return false
	}
	for s.waiting > 0 {
		select {
		case p := <-s.replies:
			s.take(p)
		default:
			return true
		}
	}
	return true
}

func (s *session) take(p reply) {
	s.waiting--
	if p.err != nil {
		s.errs[p.r.ID] = p.err
		return
	}
	s.answers = append(s.answers, p.v)
}

// group returns the answers that show head, by ascending replica.
func (s *session) group(head archive.Digest) []*archive.Verified {
	var g []*archive.Verified
	for _, v := range s.answers {
		if v.Head == head {
			g = append(g, v)
		}
	}
	slices.SortFunc(g, func(a, b *archive.Verified) int { return cmp.Compare(a.Replica, b.Replica) })
	return g
}

// best returns the group to believe: f+1 or more, of the highest epoch. If
// there is none, it returns the largest that may still become one.
func (s *session) best() (best []*archive.Verified) {
	need := s.c.Roster.F + 1
	for _, v := range s.answers {
		if v.Record.Epoch < s.before.epoch {
			continue
		}
		g := s.group(v.Head)
		switch {
		case best == nil, len(best) < need && len(g) > len(best):
			best = g
		case len(g) >= need && v.Record.Epoch > best[0].Record.Epoch:
			best = g
		}
	}
	return best
}

// hope reports whether f+1 answers may still agree.
func (s *session) hope() bool { return len(s.best())+s.waiting > s.c.Roster.F }

// accept makes v's head the session's, unless it contradicts what is known.
func (s *session) accept(v *archive.Verified) error {
	for _, o := range s.answers {
		if o.Record.Epoch == v.Record.Epoch && o.Head != v.Head {
			return fmt.Errorf("epoch %d %w: replicas %d and %d prove different records", v.Record.Epoch, ErrIntegrity, v.Replica, o.Replica)
		}
	}
	s.rec, s.head = v.Record, v.Head
	s.c.prefer(s.sources()...)
	return s.c.seen.raise(mark{s.rec.Epoch, s.head})
}

// sources returns the replicas that showed the session's head, in the order of
// their answers.
func (s *session) sources() []*replica {
	var rs []*replica
	for _, v := range s.answers {
		if v.Head == s.head {
			rs = append(rs, s.c.replica(v.Replica))
		}
	}
	return rs
}

func (c *Client) replica(id uint32) *replica {
	for _, r := range c.replicas {
		if r.ID == id {
			return r
		}
	}
	panic("client: answer of a replica that was not asked")
}

// failure says why there is nothing to believe.
func (s *session) failure() error {
	old, newest := 0, archive.Epoch(0)
	for _, v := range s.answers {
		if v.Record.Epoch < s.before.epoch {
			old++
			newest = max(newest, v.Record.Epoch)
		}
		s.errs[v.Replica] = fmt.Errorf("is at epoch %d", v.Record.Epoch)
	}
	if old > s.c.Roster.F {
		return fmt.Errorf("%w: replicas are at epoch %d, epoch %d was accepted before", ErrStale, newest, s.before.epoch)
	}
	return &NoQuorumError{Need: s.c.Roster.F + 1, Got: len(s.best()), Replicas: s.errs}
}

// undisturbed waits until f+1 of the answers that show the session's head come
// from replicas that joined its epoch and have not been reset since.
func (s *session) undisturbed() error {
	for {
		n := 0
		for _, v := range s.group(s.head) {
			if v.Undisturbed() {
				n++
			}
		}
		if n > s.c.Roster.F {
			return nil
		}
		if n+s.waiting <= s.c.Roster.F || !s.receive(nil) {
			return fmt.Errorf("%w: %d of %d needed replicas have gone undisturbed since epoch %d", ErrStale, n, s.c.Roster.F+1, s.rec.Epoch)
		}
	}
}

// current reports why an absence as of the session's epoch is not believed, or
// nil. It is called when the absence is used.
func (s *session) current() error {
	if err := s.undisturbed(); err != nil {
		return err
	}
	for _, v := range s.answers {
		if v.Record.Epoch > s.rec.Epoch {
			return fmt.Errorf("%w: replica %d proves that there is an epoch %d, others are at %d", ErrStale, v.Replica, v.Record.Epoch, s.rec.Epoch)
		}
	}
	if s.overdue() {
		return fmt.Errorf("%w: epoch %d, and an update has been due since %s", ErrStale, s.rec.Epoch, s.due().Format("2006-01-02T15:04:05Z"))
	}
	return nil
}

// errOver reports that replicas have moved on from the session's head.
var errOver = errors.New("replicas have moved on to another epoch")

// shown is a proof that has been verified under the session's head.
type shown struct {
	proof tree.Proof
	view  *tree.View
}

// prove asks the replicas, whoever is quickest, for proofs under the session's
// head, until one gives what ask finds to be right.
func prove[T any](ctx context.Context, s *session, ask func(context.Context, *replica) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, s.c.Timeout)
	defer cancel()
	got, r, err := first(ctx, s.c.preferred(), func(ctx context.Context, r *replica) (T, error) {
		got, err := ask(ctx, r)
		return got, inTime(err, s.c.Timeout)
	}, func(T) {})
	if err != nil {
		return got, s.overIf(err)
	}
	s.c.promote(r)
	return got, nil
}

// check verifies a proof of r's, and that it shows what good wants.
func (s *session) check(r *replica, p tree.Proof, good func(*tree.View) error) (shown, error) {
	view, err := archive.VerifyProof(s.rec, p)
	if err == nil {
		err = good(view)
	}
	if err != nil {
		s.c.demote(r)
		s.c.Log.Warn("replica gave a proof that does not verify", "replica", r.ID, "error", err)
		return shown{}, err
	}
	return shown{p, view}, nil
}

// overIf returns errOver if some replica no longer holds the session's head.
func (s *session) overIf(err error) error {
	if errors.Is(err, &wire.Error{Code: wire.CodeStaleHead}) || errors.Is(err, ErrUpdating) {
		return fmt.Errorf("%w: %w", errOver, err)
	}
	return err
}

// promote puts r first unless it is.
func (c *Client) promote(r *replica) {
	c.mu.Lock()
	already := c.order[0] == r
	c.mu.Unlock()
	if !already {
		c.prefer(r)
	}
}

// page returns the complete names of a view from `from` up to next.
func page(v *tree.View, from, to []byte) ([]tree.Pair, []byte, error) {
	pairs, next, err := v.Page(from, to)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrIntegrity, err)
	}
	return pairs, next, nil
}
