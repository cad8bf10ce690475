package replica

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
)

// maxBody bounds the body of one proposal. What does not fit waits for the next
// epoch.
const maxBody = 256 << 20

// freeze cuts the pending submissions, sorted by digest, into pieces on the disk
// and describes them. What is pending is revalidated: the disk was anybody's. An
// empty body is a proposal.
func (a *attempt) freeze(ctx context.Context) (consensus.Manifest, error) {
	m := consensus.Manifest{
		Instance: a.inst, Replica: a.ID, Time: a.Now().Unix(),
		Reset: a.statement.Counts.Reset, Restart: a.statement.Counts.Restart,
	}
	pending, err := a.pending()
	if err != nil {
		return m, err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(a.writeBody(ctx, w, pending)) }()
	err = consensus.Split(r, func(piece []byte) error {
		m.Size += uint64(len(piece))
		m.Pieces = append(m.Pieces, consensus.NewPiece(piece))
		return a.durable("piece", func() error { return a.phase.dir.putPiece(piece) })
	})
	r.Close()
	return m, errors.Join(err, a.store.closePending())
}

// pending opens the buffer of submissions: its file is made anew, and a damaged one
// set aside.
func (p *phase) pending() (b *Pending, err error) {
	err = p.durable("pending opened", func() (err error) { b, err = p.store.Pending(); return err })
	if err == nil && b.damage != nil {
		p.log.Warn("the pending buffer was damaged; kept what could be read of it", "because", b.damage)
	}
	return b, err
}

// writeBody writes the body: for each submission be32 length || submission. What
// is acknowledged fits; what the disk holds beyond that waits, each writer's own.
func (a *attempt) writeBody(ctx context.Context, w io.Writer, pending *Pending) error {
	buf, left := bufio.NewWriterSize(w, 1<<16), 0
	used := make(map[archive.KeyID]uint64)
	now, age := a.Now(), a.Roster.Limits.SubmissionAge.Std()
	err := pending.Each(func(s archive.Submission) error {
		if writer, err := s.Verify(a.Roster); err != nil || writer.Permitted(s) != nil || s.Fresh(now, age) != nil {
			return ctx.Err()
		}
		b := s.Bytes()
		if !pending.room.fits(used, s.Writer, 4+uint64(len(b))) {
			left++
			return ctx.Err()
		}
		used[s.Writer] += 4 + uint64(len(b))
		a.checked.add(archive.DigestOf(b))
		return errors.Join(writeSubmission(buf, b), ctx.Err())
	})
	if left > 0 {
		a.log.Warn("more is pending than one proposal holds; the rest waits for the next epoch", "submissions", left)
	}
	return errors.Join(err, buf.Flush())
}

func writeSubmission(w io.Writer, b []byte) error {
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(len(b)))
	if _, err := w.Write(n[:]); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}

// bodyScanner is a proposalBody that reads.
type bodyScanner struct {
	r    *bufio.Reader
	raw  []byte
	last archive.Digest
	any  bool
}

func newBodyScanner(r io.Reader) *bodyScanner {
	return &bodyScanner{r: bufio.NewReaderSize(r, 1<<16)}
}

// next implements proposalBody.
func (b *bodyScanner) next() ([]byte, archive.Digest, error) {
	var n [4]byte
	if _, err := io.ReadFull(b.r, n[:]); err != nil {
		return nil, b.last, err // io.EOF only where a submission may begin
	}
	size := binary.BigEndian.Uint32(n[:])
	if size > uint32(archive.MaxSubmission) {
		return nil, b.last, fmt.Errorf("body: %w: submission of %d bytes", archive.ErrFormat, size)
	}
	b.raw = slices.Grow(b.raw[:0], int(size))[:size]
	if _, err := io.ReadFull(b.r, b.raw); err != nil {
		return nil, b.last, fmt.Errorf("body: %w", io.ErrUnexpectedEOF)
	}
	d := archive.DigestOf(b.raw)
	if b.any && bytes.Compare(b.last[:], d[:]) >= 0 {
		return nil, b.last, fmt.Errorf("body: %w: submissions out of order", archive.ErrFormat)
	}
	b.last, b.any = d, true
	return b.raw, d, nil
}

// digestSet remembers which submissions have good signatures.
type digestSet struct {
	mu  sync.Mutex
	all map[archive.Digest]struct{}
}

func (s *digestSet) has(d archive.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.all[d]
	return ok
}

func (s *digestSet) add(d archive.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[archive.Digest]struct{})
	}
	s.all[d] = struct{}{}
}

// checkBody checks the form and signatures of a body whose pieces are all here.
// Age, rights and quota are the merge's, which judges for all replicas alike.
func (p *phase) checkBody(ctx context.Context, m consensus.Manifest) error {
	b := newBodyScanner(p.dir.body(m))
	for ctx.Err() == nil {
		raw, d, err := b.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && !p.checked.has(d) {
			err = p.checkSubmission(raw)
		}
		if err != nil {
			return err
		}
		p.checked.add(d)
	}
	return ctx.Err()
}

func (p *phase) checkSubmission(raw []byte) error {
	s, err := archive.ParseSubmission(raw)
	if err == nil {
		_, err = s.Verify(p.Roster)
	}
	return err
}

// hold brings all pieces of a body here, from whichever of the peers has them,
// and checks them. It tries until ctx ends, and orders from as it goes.
func (p *phase) hold(ctx context.Context, m consensus.Manifest, from []*peer) error {
	if m.Size > maxBody {
		return fmt.Errorf("body of %d bytes: %w", m.Size, archive.ErrFormat)
	}
	for _, piece := range m.Pieces {
		if err := p.holdPiece(ctx, piece, from); err != nil {
			return fmt.Errorf("body of replica %d: %w", m.Replica, err)
		}
	}
	if err := p.checkBody(ctx, m); err != nil {
		return fmt.Errorf("body of replica %d: %w", m.Replica, err)
	}
	return nil
}

// holdPiece asks the peers for a piece, in their order. One that fails goes to the
// end: a peer that hangs must not cost the time of every piece.
func (p *phase) holdPiece(ctx context.Context, piece consensus.Piece, from []*peer) error {
	for {
		if _, err := p.dir.piece(piece); err == nil {
			return nil
		}
		for range from {
			x := from[0]
			if p.fetchPiece(ctx, x, piece) == nil {
				break
			}
			copy(from, from[1:])
			from[len(from)-1] = x
		}
		if _, err := p.dir.piece(piece); err == nil {
			return nil
		}
		if err := pause(ctx, retryPause); err != nil {
			return fmt.Errorf("piece %x is nowhere: %w", piece.Digest[:8], err)
		}
	}
}

// sources returns the peers, with those given first.
func (p *phase) sources(first ...uint32) (all []*peer) {
	taken := make(map[uint32]bool)
	for _, id := range first {
		for _, x := range p.peers {
			if x.ID == id && !taken[id] {
				all, taken[id] = append(all, x), true
			}
		}
	}
	for _, x := range p.peers {
		if !taken[x.ID] {
			all = append(all, x)
		}
	}
	return all
}

// tasks are goroutines that end with what they belong to.
type tasks struct {
	ctx    context.Context
	cancel context.CancelFunc
	mu     sync.Mutex
	ended  bool
	all    sync.WaitGroup
}

func newTasks(ctx context.Context) *tasks {
	t := new(tasks)
	t.ctx, t.cancel = context.WithCancel(ctx)
	return t
}

func (t *tasks) run(f func(ctx context.Context)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended {
		t.all.Go(func() { f(t.ctx) })
	}
}

func (t *tasks) stop() {
	t.cancel()
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
	t.all.Wait()
}

// propose vouches for our own proposal and publishes its certificate as soon as
// Q replicas hold it. A replica whose proposal nobody vouches for still takes
// part in the agreement on those of the others.
func (a *attempt) propose(ctx context.Context) error {
	v := consensus.SignVoucher(a.key, a.inst, a.ID, a.ID, a.own.Digest())
	a.know.update(func() { a.vouchers[a.ID] = v })
	a.work.run(a.certifyProposal)
	return a.awaitProposals(ctx)
}

// awaitProposals returns once a block can be made of the proposals here: of
// all replicas that came, or at least of Q when the grace is over.
func (a *attempt) awaitProposals(ctx context.Context) error {
	began := time.Now()
	if err := a.wait(ctx, func() (bool, error) { _, ok := a.candidate(); return ok || a.claimed() != nil, nil }); err != nil {
		return fmt.Errorf("wait for proposals: %w", err)
	}
	grace, cancel := context.WithTimeout(ctx, a.Roster.Limits.Grace.Std())
	defer cancel()
	err := a.wait(grace, func() (bool, error) { return len(a.proposals) >= a.company || a.claimed() != nil, nil })
	if err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
		return fmt.Errorf("wait for proposals: %w", err)
	}
	a.know.Lock()
	defer a.know.Unlock()
	a.step(StepProposals, began, "proposals", len(a.proposals))
	return nil
}
