package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
)

// attempt is one tick. What comes from peers is guarded by phase.know.
type attempt struct {
	*phase
	base     archive.EpochRecord
	tick     uint64
	inst     [32]byte
	dir      tickDir
	own      consensus.Join
	company  int // how many replicas were here when we joined
	unfollow func()
	work     *tasks

	moved     atomic.Int64              // when the attempt last went on, Unix ns
	passed    time.Time                 // when a join at a later tick was seen first
	joins     map[uint32]consensus.Join // the first of each
	vouchers  map[uint32]consensus.Voucher
	proposals map[uint32]proposal
	carries   map[trust.Vote]consensus.Carried
	right     map[archive.Digest]consensus.Block // blocks that check
	claims    map[uint32]claim                   // what each peer's engine decided
	prepares  map[uint32]ballot
	readies   map[uint32]ballot
	commits   map[uint32]ballot
}

func (p *phase) newAttempt(tick uint64) *attempt {
	a := &attempt{
		phase: p, base: p.base, tick: tick, inst: instanceOn(p.base, tick), dir: p.dir.tick(p.base.Epoch+1, tick),
		joins: make(map[uint32]consensus.Join), vouchers: make(map[uint32]consensus.Voucher),
		proposals: make(map[uint32]proposal), carries: make(map[trust.Vote]consensus.Carried),
		right: make(map[archive.Digest]consensus.Block), claims: make(map[uint32]claim), prepares: make(map[uint32]ballot),
		readies: make(map[uint32]ballot), commits: make(map[uint32]ballot),
	}
	a.goOn()
	return a
}

// enter joins the attempt at tick: it Stores tick and boot before it says
// anything in it, freezes what it proposes, and attests to both.
func (p *phase) enter(ctx context.Context, tick uint64) (*attempt, error) {
	began := time.Now()
	a := p.newAttempt(tick)
	if tick <= p.spent() {
		return a, a.takeUp(ctx)
	}
	boot := p.statement.Counts
	if err := a.begin(); err != nil {
		return nil, fmt.Errorf("phase directory: %w", err)
	}
	slots := p.statement.Slots
	if !holdsHead(slots, p.base) {
		slots = trust.Slots{Head: p.base.Head(), Epoch: uint64(p.base.Epoch), Archive: p.id}
	}
	slots.Tick, slots.Boot = tick, boot
	if err := p.durable("tick", func() error { return p.storeSlots(ctx, slots) }); err != nil {
		return nil, err
	}
	manifest, err := a.freeze(ctx)
	if err != nil {
		return nil, fmt.Errorf("freeze pending submissions: %w", err)
	}
	a.start(ctx)
	if err := a.attest(ctx, manifest); err != nil {
		a.end()
		return nil, err
	}
	p.step(StepJoined, began, "tick", tick, "replicas", a.company, "bytes", manifest.Size)
	return a, nil
}

// begin empties the phase directory, unless an earlier process of this boot has
// done so for this tick.
func (a *attempt) begin() error {
	if a.tick == a.unsaid {
		return nil
	}
	if err := a.durable("attempt", func() error { return a.dir.begin(a.statement.Counts.String()) }); err != nil {
		return err
	}
	return a.durable("challenges", func() error { return a.dir.write(fileChallenges, a.encodeChallenges()) })
}

// attest makes the join: once for an attempt, whatever happens.
func (a *attempt) attest(ctx context.Context, m consensus.Manifest) error {
	a.awaitChallenges(ctx)
	j := consensus.Join{Manifest: m, Challenges: a.challengesToUs()}
	att, err := a.MAS.Lookup(ctx, j.Nonce())
	if err != nil {
		return fmt.Errorf("join attestation: %w", err)
	}
	j.Attestation = att
	if _, err := checkJoin(a.Roster, a.base, a.tick, j); err != nil {
		return fmt.Errorf("own %w", err)
	}
	if err := a.durable("join", func() error { return a.dir.once(fileJoin, j.Bytes()) }); err != nil {
		return err
	}
	a.announce(j)
	return nil
}

// announce publishes our join, and before it the record that our committed slot
// holds, so that whoever sees the slot can carry it over.
func (a *attempt) announce(j consensus.Join) {
	a.know.update(func() { a.own = j })
	if c, err := a.ownCarry(); err != nil {
		a.log.Warn("cannot show the record committed before", "err", err)
	} else if c != nil {
		a.takeCarry(c.Bytes())
		a.board.publish(itemCarry, c.Bytes())
	}
	a.know.update(func() { a.joins[a.ID] = j })
	a.board.publish(itemJoin, j.Bytes())
}

// awaitChallenges gives the peers that are here the time to greet us, so that
// they can vouch for our join.
func (a *attempt) awaitChallenges(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, a.Roster.Limits.Grace.Std())
	defer cancel()
	a.know.wait(ctx, func() (bool, error) {
		a.company = a.present()
		for id, h := range a.direct {
			if _, ok := a.challenges[id]; !ok && buildsOn(h.statement, a.base) {
				return false, nil
			}
		}
		return true, nil
	})
}

func (a *attempt) challengesToUs() (all []consensus.Challenge) {
	a.know.Lock()
	defer a.know.Unlock()
	for _, m := range a.members {
		if c, ok := a.challenges[m.ID]; ok {
			all = append(all, consensus.Challenge{Replica: m.ID, Nonce: c})
		}
	}
	return all
}

// encodeChallenges returns what we asked each peer, for a process that resumes
// the attempt.
func (p *phase) encodeChallenges() (b []byte) {
	for _, m := range p.members {
		c := p.asked[m.ID]
		b = append(binary.BigEndian.AppendUint32(b, m.ID), c[:]...)
	}
	return b
}

func (p *phase) decodeChallenges(b []byte) error {
	if len(b) != len(p.members)*(4+32) {
		return archive.ErrFormat
	}
	for ; len(b) > 0; b = b[36:] {
		if id := binary.BigEndian.Uint32(b); id != p.ID {
			p.asked[id] = [32]byte(b[4:36])
		}
	}
	return nil
}

// interrupted returns the tick of the attempt that an earlier process of this
// boot has joined, if it can be taken up again. The device vouches for that: in
// this boot, nobody else has had the disk.
func (p *phase) interrupted() uint64 {
	slots := p.statement.Slots
	if p.inDoubt || slots.Tick == 0 || slots.Tick == p.joined || slots.Boot != p.statement.Counts || !holdsHead(slots, p.base) {
		return 0
	}
	_, err := p.newAttempt(slots.Tick).said()
	if errors.Is(err, errUnsaid) {
		p.know.update(func() { p.unsaid = slots.Tick })
		return 0
	}
	if err != nil {
		p.log.Info("cannot take up the attempt", "tick", slots.Tick, "err", err)
		return 0
	}
	return slots.Tick
}

// takeUp continues the attempt of an earlier process, with the same join.
func (a *attempt) takeUp(ctx context.Context) error {
	j, err := a.said()
	if err != nil {
		return err
	}
	a.company, a.own = a.Roster.N(), j
	a.start(ctx)
	a.announce(j)
	return nil
}

// errUnsaid is returned for a tick that was stored in this boot without a join
// that anybody has seen: it can be joined still.
var errUnsaid = errors.New("not joined yet")

// said returns the join that an earlier process of this boot has made.
func (a *attempt) said() (j consensus.Join, err error) {
	boot, err := a.dir.read(fileBoot)
	if err != nil || string(boot) != a.statement.Counts.String() {
		return j, fmt.Errorf("joined in another boot: %w", err)
	}
	challenges, err := a.dir.read(fileChallenges)
	if err == nil {
		err = a.decodeChallenges(challenges)
	}
	if err != nil {
		return j, err
	}
	b, err := a.dir.read(fileJoin)
	if errors.Is(err, fs.ErrNotExist) {
		return j, errUnsaid
	}
	if err != nil {
		return j, err
	}
	if j, err = consensus.ParseJoin(b); err != nil {
		return j, err
	}
	if _, err := checkJoin(a.Roster, a.base, a.tick, j); err != nil {
		return j, err
	}
	if !consensus.MayResume(a.dir.engine()) {
		return j, consensus.ErrSpent
	}
	return j, nil
}

// start begins to follow the peers' boards for this attempt.
func (a *attempt) start(ctx context.Context) {
	a.joined = a.tick
	a.work = newTasks(ctx)
	a.unfollow = a.follow(ctx, a.take)
	a.work.run(a.watchTime)
}

// watchTime wakes who waits, so that they see for how long the attempt is idle.
func (a *attempt) watchTime(ctx context.Context) {
	for pause(ctx, max(retryPause, min(a.attemptLimit(), a.Roster.Limits.Grace.Std())/4)) == nil {
		a.know.update(func() {})
	}
}

// goOn notes that a step of the attempt was taken, or that another has joined it.
func (a *attempt) goOn() { a.moved.Store(time.Now().UnixNano()) }

// step is phase.step for a step of the attempt.
func (a *attempt) step(name string, began time.Time, attrs ...any) {
	a.goOn()
	a.phase.step(name, began, attrs...)
}

// end stops all that the attempt has under way.
func (a *attempt) end() {
	a.unfollow()
	a.work.stop()
}

// take takes from a peer's board what concerns this attempt.
func (a *attempt) take(ctx context.Context, x *peer, it item) error {
	switch it.kind {
	case itemJoin:
		j, err := a.takeJoin(x, it.payload)
		if err == nil && j.Manifest.Instance == a.inst {
			a.vouch(x, j)
		}
		return err
	case itemCarry:
		return a.takeCarry(it.payload)
	case itemVoucher:
		return a.takeVoucher(x, it.payload)
	case itemProposal:
		return a.takeProposal(x, it.payload)
	case itemBlock:
		return a.takeClaim(x, it.payload)
	case itemPrepare, itemReady, itemCommit:
		return a.takeBallot(x, it)
	}
	return a.takeEarly(ctx, x, it)
}

// wait waits like watch.wait, and ends when there is no more point in the attempt:
// peers have certified the epoch, or have gone on to a later tick while this one has no
// quorum, or it has one and comes to no end.
func (a *attempt) wait(ctx context.Context, cond func() (bool, error)) error {
	return a.know.wait(ctx, func() (bool, error) {
		if ok, err := cond(); ok || err != nil {
			return ok, err
		}
		return false, a.pointless()
	})
}

// pointless wants know.
func (a *attempt) pointless() error {
	switch {
	case a.newest.Epoch > a.base.Epoch:
		return errCertified
	case len(a.joins) < a.Roster.Quorum():
		a.follows()
	case a.idle() > a.attemptLimit():
		a.want(a.tick + 1)
	default:
		return nil
	}
	if a.live() > a.tick {
		return errMoveUp
	}
	return nil
}

// follows goes after a single peer to a later tick, once others have had a grace, from
// when that was seen and from when the attempt last went on, to join ours. It wants
// know.
func (a *attempt) follows() {
	grace := a.Roster.Limits.Grace.Std()
	switch {
	case a.reachedBy(1) <= a.tick:
	case a.passed.IsZero():
		a.passed = time.Now()
	case time.Since(a.passed) > grace && a.idle() > grace:
		a.want(a.tick)
	}
}

// idle is for how long the attempt has not gone on.
func (a *attempt) idle() time.Duration { return time.Since(time.Unix(0, a.moved.Load())) }
