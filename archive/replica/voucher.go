package replica

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
)

// vouch accepts the first join of a peer in this attempt, no other, and sets
// out to hold its body.
func (a *attempt) vouch(x *peer, j consensus.Join) {
	first := false
	a.know.update(func() {
		if _, ok := a.joins[x.ID]; !ok {
			a.joins[x.ID] = j
			a.goOn()
			first = true
		}
	})
	if !first {
		return
	}
	if !j.Answers(a.ID, a.asked[x.ID]) {
		a.log.Debug("join does not answer our challenge", "peer", x.ID)
		return
	}
	a.work.run(func(ctx context.Context) {
		if err := a.vouchFor(ctx, x, j); err != nil && ctx.Err() == nil {
			a.log.Warn("no voucher", "peer", x.ID, "err", err)
		}
	})
}

// vouchFor fetches and checks the body, and signs that it is on our disk.
func (a *attempt) vouchFor(ctx context.Context, x *peer, j consensus.Join) error {
	if err := a.hold(ctx, j.Manifest, a.sources(x.ID)); err != nil {
		return err
	}
	digest := j.Digest()
	err := a.durable("voucher", func() error { return a.dir.once(fmt.Sprintf("%s%d", fileVouched, x.ID), digest[:]) })
	if err != nil {
		return err
	}
	v := consensus.SignVoucher(a.key, a.inst, a.ID, x.ID, digest)
	a.board.publish(itemVoucher, v.Bytes())
	return nil
}

// takeVoucher keeps a peer's voucher for our own proposal.
func (a *attempt) takeVoucher(x *peer, b []byte) error {
	v, err := consensus.ParseVoucher(b)
	if err != nil {
		return err
	}
	a.know.Lock()
	join := a.own.Digest()
	a.know.Unlock()
	if v.Instance != a.inst || v.Replica != a.ID || v.Voter != x.ID || v.Join != join {
		return nil // of another attempt, or not for us
	}
	if err := v.Verify(ed25519Public(x.Key)); err != nil {
		return err
	}
	a.know.update(func() { a.vouchers[x.ID] = v })
	return nil
}

// certifyProposal waits for Q vouchers and publishes our proposal certificate.
func (a *attempt) certifyProposal(ctx context.Context) {
	q := a.Roster.Quorum()
	if a.know.wait(ctx, func() (bool, error) { return len(a.vouchers) >= q, nil }) != nil {
		return
	}
	a.know.Lock()
	voters := slices.Sorted(maps.Keys(a.vouchers))[:q]
	c := consensus.ProposalCertificate{Join: a.own}
	for _, id := range voters {
		c.Vouchers = append(c.Vouchers, a.vouchers[id])
	}
	a.know.Unlock()
	if err := a.keepProposal(c); err != nil {
		a.log.Error("own proposal certificate", "err", err)
		return
	}
	a.board.publish(itemProposal, c.Bytes())
}

// takeProposal keeps a peer's proposal certificate.
func (a *attempt) takeProposal(x *peer, b []byte) error {
	c, err := consensus.ParseProposalCertificate(b)
	if err != nil {
		return err
	}
	if c.Join.Manifest.Instance != a.inst {
		return nil
	}
	if c.Replica() != x.ID {
		return fmt.Errorf("proposal of replica %d: %w", c.Replica(), archive.ErrIntegrity)
	}
	return a.keepProposal(c)
}

func (a *attempt) keepProposal(c consensus.ProposalCertificate) error {
	if err := c.Check(a.inst, a.Roster.Quorum(), a.members); err != nil {
		return err
	}
	st, err := checkJoin(a.Roster, a.base, a.tick, c.Join)
	if err != nil {
		return err
	}
	vote, _ := committedAfter(a.base, st)
	if vote.Tick >= a.tick {
		return fmt.Errorf("proposal of replica %d: %w: committed at tick %d", c.Replica(), archive.ErrIntegrity, vote.Tick)
	}
	a.know.update(func() {
		a.proposals[c.Replica()] = proposal{c, vote}
	})
	return nil
}

// proposal is a certified proposal with the vote that its replica had committed
// for this epoch before; the zero vote: none.
type proposal struct {
	consensus.ProposalCertificate
	committed trust.Vote
}

// committedAfter returns the vote that a device shows as committed for the
// epoch after base.
func committedAfter(base archive.EpochRecord, st trust.Statement) (trust.Vote, bool) {
	if v := st.Slots.Committed; v.Epoch == uint64(base.Epoch)+1 {
		return v, true
	}
	return trust.Vote{}, false
}
