package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
)

// Outcome says what an update phase came to at one replica.
type Outcome struct {
	Epoch    archive.Epoch  // the epoch that its device now attests
	Head     archive.Digest // and its record's digest
	Tick     uint64         // the attempt it took part in; 0: none
	Joined   []uint32       // the join set of the epoch's record
	Advanced bool           // it helped to certify the epoch in this phase
	CaughtUp bool           // it took the epoch over from its peers
	Steps    []Step         // how long its steps took, in order
}

// Step is a step of an update phase and how long it took.
type Step struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took"` // nanoseconds
}

// The steps by which a phase goes forward, as Outcome names them.
const (
	StepOpened    = "opened"              // the whole tree rehashed
	StepTick      = "tick chosen"         // 2f+1 peers heard
	StepJoined    = "joined"              // own proposal frozen and attested
	StepProposals = "proposals certified" // 2f+1 hold each
	StepDecided   = "block decided"
	StepApplied   = "applied" // to the tree, on disk
	StepPrepared  = "prepared"
	StepCommitted = "committed"
	StepStored    = "head stored"
	StepLingered  = "lingered" // for peers to have the certificate
)

var (
	// ErrTooFew reports that fewer than 2f+1 replicas came to the update
	// phase. No epoch was made, and nothing is lost.
	ErrTooFew = errors.New("too few replicas joined")
	// ErrLocked reports a device that is not in update mode: only the watchdog,
	// or a reset, opens an update phase.
	ErrLocked = errors.New("the trusted device is in service mode; an update phase begins with its reset")

	errCertified = errors.New("peers have certified the epoch")
	errMoveUp    = errors.New("peers are at a later attempt")
)

// Update runs the update phase of one replica (talk, slide "Operation of
// Bonafide"), from a device in update mode to a device that is locked: on
// success, on failure and at the phase's deadline. It serves peers on the
// replica's service address while it runs.
func Update(ctx context.Context, c Config) (Outcome, error) {
	c, err := c.filled()
	if err != nil {
		return Outcome{}, err
	}
	limit, cancel := context.WithTimeout(ctx, c.Roster.Limits.Phase.Std())
	defer cancel()
	p, err := newPhase(limit, c)
	if err != nil {
		return Outcome{}, errors.Join(fmt.Errorf("update: %w", err), c.lock(ctx))
	}
	defer p.close()
	out, err := p.run(limit)
	out.Steps = p.steps
	if err != nil {
		err = fmt.Errorf("update: %w", p.explain(limit, err))
	}
	return out, errors.Join(err, c.lock(ctx))
}

// run is the update phase.
func (p *phase) run(ctx context.Context) (Outcome, error) {
	if err := p.open(ctx); err != nil { // 1. the tree gives the root of the record that head names
		return Outcome{}, err
	}
	if p.isDone() {
		return p.outcome(0), nil
	}
	for {
		out, err := p.attempt(ctx)
		if errors.Is(err, errMoveUp) {
			p.log.Info("moving up to a later attempt")
			continue
		}
		if errors.Is(err, errCertified) {
			return p.overtaken(ctx)
		}
		return out, err
	}
}

// attempt is one tick of the update phase: 2f+1 proposals, one block, one epoch.
func (p *phase) attempt(ctx context.Context) (Outcome, error) {
	tick, err := p.gather(ctx) // 2. hellos of 2f+1 replicas give the tick; 3. catch up first with those ahead
	if err != nil || tick == 0 {
		return p.outcome(0), err
	}
	a, err := p.enter(ctx, tick) // store the tick, 4. freeze our proposal, attest to both: the join
	if err != nil {
		return p.outcome(0), err
	}
	defer a.end()
	if err := a.propose(ctx); err != nil { // 5. vouchers: 2f+1 replicas hold each proposal
		return a.leave(ctx, err)
	}
	raw, err := a.agree(ctx) // 6. 2f+1 proposals, one block
	if err != nil {
		return a.leave(ctx, err)
	}
	block, err := a.decided(raw) // 7. checked by the same rule once more, oneself
	if err != nil {
		return a.leave(ctx, err)
	}
	rec, err := a.apply(ctx, block) // 8. old names keep their entry
	if err != nil {
		return a.leave(ctx, err)
	}
	cert, err := a.certify(ctx, rec) // 9. prepare, commit: 2f+1 attestations
	if err != nil {
		return a.leave(ctx, err)
	}
	if err := p.advance(ctx, rec, cert); err != nil { // the point of commitment; lock
		return p.outcome(a.tick), err
	}
	a.linger(ctx, rec, replicasOf(block)) // 10. until the join set holds the certificate
	out := p.outcome(a.tick)
	out.Advanced = true
	return out, nil
}

// leave waits, after a step that this replica could not or would not take, for
// the others to certify the epoch without it.
func (a *attempt) leave(ctx context.Context, err error) (Outcome, error) {
	out := a.outcome(a.tick)
	if ctx.Err() != nil || errors.Is(err, errCertified) || errors.Is(err, errMoveUp) {
		return out, err
	}
	a.log.Error("cannot go on with this attempt; waiting for the others", "tick", a.tick, "err", err)
	waited := a.wait(ctx, func() (bool, error) { return false, nil })
	if errors.Is(waited, errCertified) || errors.Is(waited, errMoveUp) {
		return out, waited
	}
	return out, err
}

// phase is one replica in one update phase. know guards what comes from peers;
// the rest is owned by run.
type phase struct {
	Config
	log     *slog.Logger
	key     ed25519Key // agreement key
	id      archive.Digest
	members []consensus.Member
	store   *Store
	dir     phaseDir
	began   time.Time

	statement trust.Statement     // our device's, newest
	base      archive.EpochRecord // what our head names: the epoch we build on
	caughtUp  bool
	last      bool   // the head to be stored next ends the phase
	inDoubt   bool   // our device cannot vote on top of base
	joined    uint64 // tick of the attempt we are in, or were
	unsaid    uint64 // tick stored in this boot in which nothing was said yet
	trees     *lender
	checked   digestSet // submissions whose signatures are good
	grown     growth    // what the last attempt's tree was seen to be
	steps     []Step    // taken
	recording sync.Mutex
	helloing  map[uint32]chan struct{} // of each peer, a place for the hello being answered

	know watch
	*knowledge
	board   *board
	peers   []*peer
	serving *server
}

func newPhase(ctx context.Context, c Config) (p *phase, err error) {
	p = &phase{Config: c, log: c.Log, id: c.Roster.ID(), began: time.Now(), board: newBoard(c.Rand)}
	p.dir = phaseDir(filepath.Join(c.StoreDir(), "phase"))
	p.members, p.helloing = membersOf(c.Roster), places(c.Roster)
	if err := p.device(ctx); err != nil {
		return nil, err
	}
	if p.knowledge, err = newKnowledge(c); err != nil {
		return nil, err
	}
	err = p.durable("store", func() (err error) { p.store, err = OpenStore(c.StoreDir(), c.Roster); return err })
	if err != nil {
		return nil, err
	}
	p.trees = &lender{store: p.store}
	for _, client := range c.peers(p.key) {
		m, _ := c.Roster.Replica(client.ID())
		p.peers = append(p.peers, &peer{Replica: m, client: client})
	}
	if err := p.listen(ctx); err != nil {
		return nil, errors.Join(err, p.store.Close())
	}
	return p, nil
}

func replicasOf(b consensus.Block) (ids []uint32) {
	for _, p := range b.Proposals {
		ids = append(ids, p.Replica())
	}
	return ids
}

func membersOf(r *archive.Roster) []consensus.Member {
	var all []consensus.Member
	for _, m := range r.Replicas {
		all = append(all, consensus.Member{ID: m.ID, Address: m.Agreement, Key: ed25519Public(m.Key)})
	}
	return all
}

// close ends what the phase runs, and forgets the agreement key: all who had it
// had this one copy, but for the engine, which clears its own.
func (p *phase) close() {
	defer clear(p.key)
	p.serving.close()
	for _, peer := range p.peers {
		peer.client.Close()
	}
	if err := p.store.Close(); err != nil {
		p.log.Warn("close store", "err", err)
	}
}

// step notes and logs a step of the phase with how long it took.
func (p *phase) step(name string, began time.Time, attrs ...any) {
	took := time.Since(began)
	p.steps = append(p.steps, Step{name, took})
	p.log.Info(name, append([]any{"took", took.Round(time.Millisecond)}, attrs...)...)
}

func (p *phase) outcome(tick uint64) Outcome {
	return Outcome{Epoch: p.base.Epoch, Head: p.base.Head(), Tick: tick, Joined: p.base.Joined, CaughtUp: p.caughtUp}
}

// overtaken takes over an epoch that peers certified without us.
func (p *phase) overtaken(ctx context.Context) (Outcome, error) {
	p.last = true
	if err := p.catchUp(ctx); err != nil {
		return Outcome{}, err
	}
	return p.outcome(p.joined), nil
}

// explain says in a user's words why a phase that ran out of time made no epoch.
func (p *phase) explain(ctx context.Context, err error) error {
	if ctx.Err() == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("epoch %d was not certified within %s: %w", p.base.Epoch+1, p.Roster.Limits.Phase.Std(), err)
}

// lock ends update mode, whatever became of ctx.
func (c Config) lock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := c.durable("lock", func() error { return c.MAS.Lock(ctx) }); err != nil {
		return fmt.Errorf("lock device: %w", err)
	}
	return nil
}
