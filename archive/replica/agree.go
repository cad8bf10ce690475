package replica

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
)

// checkBlock says whether raw is a block of the attempt at tick on base: its
// one encoding, at least Q proposals of distinct replicas with their vouchers,
// each with its device's attestation, and the rule for committed records. It is
// pure: what one correct replica accepts, all accept.
func checkBlock(r *archive.Roster, base archive.EpochRecord, tick uint64, raw []byte) (consensus.Block, error) {
	b, err := consensus.ParseBlock(raw)
	if err != nil {
		return b, fmt.Errorf("block: %w", err)
	}
	if err := b.Check(instanceOn(base, tick), r.Quorum(), membersOf(r)); err != nil {
		return b, fmt.Errorf("block: %w", err)
	}
	var votes []trust.Vote
	for _, p := range b.Proposals {
		st, err := checkJoin(r, base, tick, p.Join)
		if err != nil {
			return b, fmt.Errorf("block: %w", err)
		}
		if v, ok := committedAfter(base, st); ok {
			votes = append(votes, v)
		}
	}
	if err := checkRule(r, base, tick, votes, b.Carried); err != nil {
		return b, fmt.Errorf("block: %w", err)
	}
	return b, nil
}

// check is checkBlock for this attempt, once for each block that is right.
func (a *attempt) check(raw []byte) (consensus.Block, error) {
	d := archive.DigestOf(raw)
	a.know.Lock()
	b, ok := a.right[d]
	a.know.Unlock()
	if ok {
		return b, nil
	}
	b, err := checkBlock(a.Roster, a.base, a.tick, raw)
	if err == nil {
		a.know.update(func() { a.right[d] = b })
	}
	return b, err
}

var errRule = fmt.Errorf("committed record not honoured: %w", archive.ErrIntegrity)

// checkRule is the rule for committed records: where the join set shows any of
// this epoch, the block carries the one with the highest tick, and its prepare
// certificate; where it shows none, the block carries none.
func checkRule(r *archive.Roster, base archive.EpochRecord, tick uint64, votes []trust.Vote, c *consensus.Carried) error {
	if len(votes) == 0 {
		if c != nil {
			return fmt.Errorf("%w: one carried that nobody committed", errRule)
		}
		return nil
	}
	if c == nil {
		return fmt.Errorf("%w: none carried", errRule)
	}
	record := [32]byte(archive.DigestOf(c.Record))
	for _, v := range votes {
		switch {
		case v.Tick >= tick:
			return fmt.Errorf("%w: committed at tick %d in an attempt at %d", errRule, v.Tick, tick)
		case v.Tick > c.Tick:
			return fmt.Errorf("%w: one of tick %d carried, %d committed", errRule, c.Tick, v.Tick)
		case v.Tick == c.Tick && v.Record != record:
			return fmt.Errorf("%w: another record carried", errRule)
		}
	}
	if !slices.ContainsFunc(votes, func(v trust.Vote) bool { return v.Tick == c.Tick }) {
		return fmt.Errorf("%w: nobody committed at tick %d", errRule, c.Tick)
	}
	_, err := checkCarried(r, base, *c)
	return err
}

// checkCarried checks that c shows a record of the epoch after base, Q votes
// that prepared it at c.Tick, and the block that first built it.
func checkCarried(r *archive.Roster, base archive.EpochRecord, c consensus.Carried) (archive.EpochRecord, error) {
	rec, err := archive.ParseRecord(c.Record)
	if err != nil {
		return rec, fmt.Errorf("carried: %w", err)
	}
	if rec.Tick == 0 || rec.Tick > c.Tick || archive.DigestOf(c.Block) != rec.Block {
		return rec, fmt.Errorf("carried record %w: tick %d carried from %d, or another block", archive.ErrIntegrity, rec.Tick, c.Tick)
	}
	origin, err := checkBlock(r, base, rec.Tick, c.Block)
	if err != nil {
		return rec, fmt.Errorf("carried: %w", err)
	}
	want := shell(base, rec.Tick, origin)
	want.Root, want.Names = rec.Root, rec.Names
	if origin.Carried != nil || want.Head() != rec.Head() {
		return rec, fmt.Errorf("carried record %w: not the one its block makes", archive.ErrIntegrity)
	}
	return rec, checkPrepared(r, rec, c)
}

// checkPrepared checks a prepare certificate.
func checkPrepared(r *archive.Roster, rec archive.EpochRecord, c consensus.Carried) error {
	if len(c.Prepare) != r.Quorum() {
		return fmt.Errorf("prepare certificate %w: %d votes, want %d", archive.ErrIntegrity, len(c.Prepare), r.Quorum())
	}
	for i, v := range c.Prepare {
		if i > 0 && c.Prepare[i-1].Replica >= v.Replica {
			return fmt.Errorf("prepare certificate %w: votes not by distinct replicas in order", archive.ErrIntegrity)
		}
		if err := archive.CheckPrepare(r, rec, c.Tick, archive.Attested{Replica: v.Replica, Attestation: v.Attestation}); err != nil {
			return fmt.Errorf("prepare certificate: %w", err)
		}
	}
	return nil
}

// ownCarry returns what shows the record that our own committed slot names, if
// it names one of this epoch.
func (a *attempt) ownCarry() (*consensus.Carried, error) {
	v, ok := committedAfter(a.base, a.statement)
	if !ok || v.Tick >= a.tick {
		return nil, nil
	}
	b, err := a.phase.dir.tick(a.base.Epoch+1, v.Tick).read(filePrepare)
	if err != nil {
		return nil, err
	}
	c, err := consensus.ParseCarried(b)
	if err != nil {
		return nil, err
	}
	if rec, err := checkCarried(a.Roster, a.base, c); err != nil || rec.Head() != archive.Digest(v.Record) || c.Tick != v.Tick {
		return nil, fmt.Errorf("prepare certificate of another record: %w", err)
	}
	return &c, nil
}

// takeCarry keeps a record that some replica has committed, with its proof.
func (a *attempt) takeCarry(b []byte) error {
	c, err := consensus.ParseCarried(b)
	if err != nil {
		return err
	}
	rec, err := checkCarried(a.Roster, a.base, c)
	if err != nil {
		return nil // of another epoch, perhaps; worthless in any case
	}
	v := trust.Vote{Epoch: uint64(rec.Epoch), Tick: c.Tick, Record: rec.Head()}
	a.know.update(func() { a.carries[v] = c })
	return nil
}

// candidate returns the block that this replica would propose: all proposals
// here, but those whose committed record cannot be shown, if they are Q. It
// wants know.
func (a *attempt) candidate() (consensus.Block, bool) {
	best := trust.Vote{}
	for _, p := range a.proposals {
		if _, shown := a.carries[p.committed]; shown && p.committed.Tick > best.Tick {
			best = p.committed
		}
	}
	b := consensus.Block{Instance: a.inst}
	for _, id := range slices.Sorted(maps.Keys(a.proposals)) {
		if p := a.proposals[id]; p.committed.Tick < best.Tick || p.committed == best {
			b.Proposals = append(b.Proposals, p.ProposalCertificate)
		}
	}
	if c, ok := a.carries[best]; ok {
		b.Carried = &c
	}
	return b, len(b.Proposals) >= a.Roster.Quorum()
}

// agree returns the block that the engine decides. If peers show that theirs
// have decided, and ours has not, theirs is taken: safety is the votes' affair.
func (a *attempt) agree(ctx context.Context) ([]byte, error) {
	began := time.Now()
	if b, err := a.dir.read(fileBlock); err == nil {
		return b, nil // decided before this process was restarted
	}
	engine, cancel := context.WithCancel(ctx)
	defer cancel()
	a.work.run(func(context.Context) {
		a.wait(engine, func() (bool, error) { return a.claimed() != nil, nil })
		cancel()
	})
	var block []byte
	err := a.durable("decision", func() (err error) { block, err = consensus.Agree(engine, a.engine()); return err })
	switch {
	case err == nil:
		a.step(StepDecided, began, "bytes", len(block))
		return block, nil
	case engine.Err() == nil:
		a.log.Warn("engine failed; waiting for the peers' decision", "err", err)
	}
	if err := a.wait(ctx, func() (bool, error) { block = a.claimed(); return block != nil, nil }); err != nil {
		return nil, fmt.Errorf("agree: %w", err)
	}
	a.step("block taken from peers", began, "bytes", len(block))
	return block, nil
}

func (a *attempt) engine() consensus.Config {
	l := a.Roster.Limits
	return consensus.Config{
		Dir: a.dir.engine(), Instance: a.inst, Self: a.ID, Key: a.key, Members: a.members, Log: a.log,
		Timeouts: consensus.Timeouts{
			Propose: l.Propose.Std(), ProposeDelta: l.ProposeDelta.Std(),
			Vote: l.Vote.Std(), VoteDelta: l.VoteDelta.Std(),
		},
		Propose: func(ctx context.Context) (block []byte, err error) {
			err = a.wait(ctx, func() (bool, error) {
				b, ok := a.candidate()
				if ok {
					block = b.Bytes()
				}
				return ok, nil
			})
			return block, err
		},
		Check: func(block []byte) error {
			a.point("before vote in the engine")
			_, err := a.check(block)
			return err
		},
	}
}

// claim is a block that a peer says its engine has decided.
type claim struct {
	block []byte
	at    time.Time
}

// takeClaim keeps the first block that a peer says was decided.
func (a *attempt) takeClaim(x *peer, b []byte) error {
	block, err := consensus.ParseBlock(b)
	if err != nil {
		return err
	}
	a.know.Lock()
	had := contains(a.claims, x.ID)
	a.know.Unlock()
	if block.Instance != a.inst || had {
		return nil
	}
	if _, err := a.check(b); err != nil {
		return err
	}
	a.know.update(func() { a.claims[x.ID] = claim{slices.Clone(b), time.Now()} })
	a.work.run(func(ctx context.Context) { // wakes claimed when a lone claim has waited long enough
		if pause(ctx, a.claimPatience()+time.Millisecond) == nil {
			a.know.update(func() {})
		}
	})
	return nil
}

// claimPatience is how long our own engine, which begins within the grace, has to
// contradict a lone claim.
func (a *attempt) claimPatience() time.Duration {
	l := a.Roster.Limits
	return l.Grace.Std() + l.Propose.Std() + 2*l.Vote.Std()
}

// claimed returns the block that f+1 peers say was decided, or one peer has said
// for so long that our engine must have lost its company. It wants know.
func (a *attempt) claimed() []byte {
	count := make(map[archive.Digest]int)
	for _, c := range a.claims {
		d := archive.DigestOf(c.block)
		if count[d]++; count[d] > a.Roster.F || time.Since(c.at) > a.claimPatience() {
			return c.block
		}
	}
	return nil
}

// decided checks the block once more by the same rule, since the engine is not
// trusted for safety, keeps it, and pushes it to all. It goes on with none that
// passes over our own committed record.
func (a *attempt) decided(raw []byte) (consensus.Block, error) {
	block, err := a.check(raw)
	if err != nil {
		return block, err
	}
	if err := a.durable("block", func() error { return a.dir.once(fileBlock, raw) }); err != nil && !errors.Is(err, fs.ErrExist) {
		return block, fmt.Errorf("keep block: %w", err)
	}
	a.board.publish(itemBlock, raw)
	if own, ok := committedAfter(a.base, a.statement); ok && passesOver(block, a.tick, own) {
		return block, fmt.Errorf("block: %w: it passes over our own of tick %d", errRule, own.Tick)
	}
	return block, nil
}

// passesOver reports whether preparing a block of tick would pass over a
// replica's own committed record. The join set may leave it out, or show a join
// that the replica's device made while it was faulty, for which only stolen
// agreement keys vouch. But of any Q that prepare, a correct one has committed
// what Q committed before. At the vote's own tick the replica has prepared.
func passesOver(b consensus.Block, tick uint64, own trust.Vote) bool {
	c := b.Carried
	switch {
	case own.Tick == tick:
		return false
	case c == nil || c.Tick < own.Tick:
		return true
	}
	return c.Tick == own.Tick && archive.DigestOf(c.Record) != archive.Digest(own.Record)
}
