package replica

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
)

// A traitor is a faulty replica: the parts of a real one, with its device and its
// keys, in which switches change what it says, serves, votes for and leaves
// behind. What a correct replica says to all it may say differently to each.
type traitor struct {
	*cluster
	id  uint32
	rnd *rand.Rand
	on  []*fault // in its next phase
	dev *seat

	// Of the phase under way.
	ctx    context.Context
	p      *phase
	honest http.Handler

	mu     sync.Mutex
	fired  map[string]int
	boards map[uint32]*falseBoard
	rec    archive.EpochRecord // that its attempt has made
	tick   uint64              // of the attempt

	// Kept from phase to phase.
	past  []item              // what it has said
	ahead map[[32]byte][]byte // joins made ahead, by instance
}

// falseBoard is what the traitor says to one peer.
type falseBoard struct {
	read int // items of the true board that were turned into said
	said []item
}

// seat is a traitor's device. It is held while a fault does with it what no
// correct replica does.
type seat struct {
	trust.MAS
	mu sync.Mutex
}

func (s *seat) Store(ctx context.Context, slots trust.Slots) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.MAS.Store(ctx, slots)
}

func (s *seat) Lookup(ctx context.Context, n trust.Nonce) (trust.Attestation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.MAS.Lookup(ctx, n)
}

func newTraitor(c *cluster, id uint32, rnd *rand.Rand, on ...*fault) *traitor {
	return &traitor{
		cluster: c, id: id, rnd: rnd, on: on, fired: make(map[string]int), ahead: make(map[[32]byte][]byte),
		dev: &seat{MAS: c.Replicas[id-1].MAS},
	}
}

// fire notes that a switch has done something.
func (x *traitor) fire(f string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fired[f]++
}

func (x *traitor) has(f string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.fired[f]
}

// update is an update phase of the traitor. It ends with its device locked: the
// watchdog is not faulty.
func (x *traitor) update(ctx context.Context, c Config, prepare func(*phase)) (Outcome, error) {
	c.MAS, c.Listen = x.dev, "127.0.0.1:0"
	for _, f := range x.on {
		if f.before != nil {
			f.before(x)
		}
	}
	return played(ctx, c, prepare, func(ctx context.Context, p *phase) (Outcome, error) {
		x.mu.Lock()
		x.ctx, x.p, x.honest, x.boards = ctx, p, p.handler(), make(map[uint32]*falseBoard)
		x.mu.Unlock()
		stop := liar(x.t, x.Replicas[x.id-1], x.Roster, x)
		defer stop()
		defer x.leave(p)
		return x.run(ctx)
	})
}

// played runs an update phase as Update does, of a phase that the test may change
// before it begins.
func played(ctx context.Context, c Config, prepare func(*phase), run func(context.Context, *phase) (Outcome, error)) (Outcome, error) {
	c, err := c.filled()
	if err != nil {
		return Outcome{}, err
	}
	limit, cancel := context.WithTimeout(ctx, c.Roster.Limits.Phase.Std())
	defer cancel()
	p, err := newPhase(limit, c)
	if err != nil {
		return Outcome{}, errors.Join(err, c.lock(ctx))
	}
	defer p.close()
	if prepare != nil {
		prepare(p)
	}
	out, err := run(limit, p)
	return out, errors.Join(err, c.lock(ctx))
}

// leave is what the traitor does last in a phase.
func (x *traitor) leave(p *phase) {
	p.board.know.Lock()
	said := slices.Clone(p.board.all)
	p.board.know.Unlock()
	x.past = append(x.past, said...)
	x.past = x.past[max(0, len(x.past)-100):]
	for _, f := range x.on {
		if f.leave != nil {
			f.leave(x)
		}
	}
}

// run is phase.run, with the traitor's attempt.
func (x *traitor) run(ctx context.Context) (Outcome, error) {
	if err := x.p.open(ctx); err != nil || x.p.isDone() {
		return x.p.outcome(0), err
	}
	for {
		out, err := x.attempt(ctx)
		if errors.Is(err, errMoveUp) {
			continue
		}
		if errors.Is(err, errCertified) {
			return x.p.overtaken(ctx)
		}
		return out, err
	}
}

// attempt is phase.attempt, with the traitor's engine.
func (x *traitor) attempt(ctx context.Context) (Outcome, error) {
	p := x.p
	tick, err := p.gather(ctx)
	if err != nil || tick == 0 {
		return p.outcome(0), err
	}
	a, err := p.enter(ctx, tick)
	if err != nil {
		return p.outcome(0), err
	}
	defer a.end()
	x.each(func(f *fault) {
		if f.joined != nil {
			f.joined(x, a)
		}
	})
	if err := a.propose(ctx); err != nil {
		return a.leave(ctx, err)
	}
	raw, err := x.agree(ctx, a)
	if err != nil {
		return a.leave(ctx, err)
	}
	block, err := a.decided(raw)
	if err != nil {
		return a.leave(ctx, err)
	}
	rec, err := a.apply(ctx, block)
	if err != nil {
		return a.leave(ctx, err)
	}
	x.mu.Lock()
	x.rec, x.tick = rec, tick
	x.mu.Unlock()
	cert, err := a.certify(ctx, rec)
	if err != nil {
		return a.leave(ctx, err)
	}
	if err := p.advance(ctx, rec, cert); err != nil {
		return p.outcome(tick), err
	}
	a.linger(ctx, rec, replicasOf(block))
	return p.outcome(tick), nil
}

func (x *traitor) each(do func(*fault)) {
	for _, f := range x.on {
		do(f)
	}
}

// agree is attempt.agree with engines of the traitor's making: one, none, or two
// that know nothing of each other.
func (x *traitor) agree(ctx context.Context, a *attempt) (block []byte, err error) {
	engine, cancel := context.WithCancel(ctx)
	defer cancel()
	a.work.run(func(context.Context) {
		a.wait(engine, func() (bool, error) { return a.claimed() != nil, nil })
		cancel()
	})
	all := []consensus.Config{a.engine()}
	x.each(func(f *fault) {
		if f.engine != nil {
			all = f.engine(x, a, all)
		}
	})
	decided := make(chan []byte, len(all))
	var running sync.WaitGroup
	for _, c := range all {
		running.Go(func() {
			if b, err := consensus.Agree(engine, c); err == nil {
				decided <- b
			}
		})
	}
	running.Wait()
	select {
	case b := <-decided:
		return b, nil
	default:
	}
	err = a.wait(ctx, func() (bool, error) { block = a.claimed(); return block != nil, nil })
	return block, err
}

// ServeHTTP answers a peer.
func (x *traitor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	to, err := wire.PeerID(r.TLS, x.Roster)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	for _, f := range x.on {
		if f.answer != nil && f.answer(x, w, r) {
			return
		}
	}
	if r.URL.Path == pathBoard {
		x.serveBoard(w, r, to)
		return
	}
	x.honest.ServeHTTP(w, r)
}

// serveBoard is phase.serveBoard, with a board for each peer.
func (x *traitor) serveBoard(w http.ResponseWriter, r *http.Request, to uint32) {
	after, err := strconv.Atoi(r.FormValue("after"))
	if err != nil || after < 0 || r.FormValue("run") != x.p.board.run {
		after = 0
	}
	ctx, cancel := context.WithTimeout(r.Context(), maxPoll)
	defer cancel()
	for {
		said, read := x.sayTo(to)
		if len(said) > after {
			w.Header().Set(headerRun, x.p.board.run)
			w.Write(encodeBatch(said[after:]))
			return
		}
		if x.p.board.know.wait(ctx, func() (bool, error) { return len(x.p.board.all) > read, nil }) != nil {
			w.Header().Set(headerRun, x.p.board.run)
			return
		}
	}
}

// sayTo brings the board for a peer up to date. It returns what it says, and of
// how many true items that was made.
func (x *traitor) sayTo(to uint32) (said []item, read int) {
	x.p.board.know.Lock()
	all := slices.Clone(x.p.board.all)
	x.p.board.know.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	b, ok := x.boards[to]
	if !ok {
		b = new(falseBoard)
		x.boards[to] = b
		x.each(func(f *fault) {
			if f.first != nil {
				b.said = append(b.said, f.first(x)...)
			}
		})
	}
	for ; b.read < len(all); b.read++ {
		b.said = append(b.said, x.twist(to, all[b.read])...)
	}
	return slices.Clone(b.said), b.read
}

// twist returns what the traitor says to a peer in place of a true item.
func (x *traitor) twist(to uint32, it item) []item {
	items := []item{{it.kind, slices.Clone(it.payload)}}
	x.each(func(f *fault) {
		if f.say == nil {
			return
		}
		var out []item
		for _, it := range items {
			out = append(out, f.say(x, to, it)...)
		}
		items = out
	})
	return items
}

// one says whether a peer belongs to the first of the two parties between which
// the traitor distinguishes.
func (x *traitor) one(to uint32) bool {
	return slices.Index(x.all(x.id), to)%2 == 0
}

// falseRecord is the attempt's record with another root.
func (x *traitor) falseRecord() archive.EpochRecord {
	rec := x.rec
	rec.Root[0] ^= 1
	return rec
}

// falseBallot turns a ballot into one for the false record, for which the
// traitor's device vouches in the name of a fault. It wants mu.
func (x *traitor) falseBallot(name string, it item) item {
	if !slices.Contains([]byte{itemPrepare, itemReady, itemCommit}, it.kind) {
		return it
	}
	b, err := parseBallot(it.payload)
	rec := x.falseRecord()
	if err != nil || b.head != x.rec.Head() {
		return it
	}
	b.head = rec.Head()
	switch it.kind {
	case itemPrepare:
		b.attestation, err = x.dev.Lookup(x.ctx, archive.PrepareNonce(rec.InstanceAt(x.tick), b.head))
	case itemCommit:
		b.attestation, err = x.with(archive.CommitNonce(rec.InstanceAt(x.tick), b.head), func(s *trust.Slots) {
			s.Committed = trust.Vote{Epoch: uint64(rec.Epoch), Tick: x.tick, Record: b.head}
		})
	}
	if err != nil {
		return it
	}
	x.fired[name]++
	return item{it.kind, b.Bytes()}
}

// with has the device attest over n with slots that are changed for that long.
func (x *traitor) with(n trust.Nonce, change func(*trust.Slots)) (trust.Attestation, error) {
	x.dev.mu.Lock()
	defer x.dev.mu.Unlock()
	st := x.Replicas[x.id-1].Statement(x.t)
	slots := st.Slots
	change(&slots)
	if err := x.dev.MAS.Store(x.ctx, slots); err != nil {
		return nil, err
	}
	att, err := x.dev.MAS.Lookup(x.ctx, n)
	return att, errors.Join(err, x.dev.MAS.Store(context.WithoutCancel(x.ctx), st.Slots))
}

// keep changes the slots for good.
func (x *traitor) keep(change func(*trust.Slots)) {
	x.dev.mu.Lock()
	defer x.dev.mu.Unlock()
	slots := x.Replicas[x.id-1].Statement(x.t).Slots
	change(&slots)
	x.dev.MAS.Store(context.WithoutCancel(x.ctx), slots)
}
