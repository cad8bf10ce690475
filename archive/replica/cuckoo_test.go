package replica

import (
	"errors"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
)

// Replica 3 has no device of its own to show, and lets that of replica 2 answer
// for it, over the very nonces that it is asked for. It does not count: neither
// as present, nor in the join set, nor as a voter.
func TestBorrowedDevice(t *testing.T) {
	f := newForge(t)
	p := f.newTestPhase()
	f.store(2, f.slots(2, 1))
	own := hello{from: 3, to: 1, challenge: p.asked[3]}
	own.attestation = f.attest(2, archive.HelloNonce(f.Roster.ID(), 3, 1, own.challenge))
	if _, err := p.takeHello(own); !errors.Is(err, archive.ErrIntegrity) || p.present() != 1 {
		t.Errorf("hello: %v, %d present", err, p.present())
	}
	passedOn := f.hello(2, 3, [32]byte{1}) // device 2 answers replica 3, which shows it to us
	passedOn.from, passedOn.to = 3, 1
	if _, err := p.takeHello(passedOn); !errors.Is(err, archive.ErrIntegrity) || len(p.hellos) != 0 {
		t.Errorf("hello passed on: %v, %d known", err, len(p.hellos))
	}

	counts := f.Replicas[1].Statement(t).Counts
	j := consensus.Join{Manifest: consensus.Manifest{
		Instance: instanceOn(f.base, 1), Replica: 3, Time: 1_800_000_000, Reset: counts.Reset, Restart: counts.Restart}}
	j.Attestation = f.attest(2, j.Nonce())
	if _, err := p.takeJoin(&peer{Replica: f.Replicas[2].Replica}, j.Bytes()); !errors.Is(err, archive.ErrIntegrity) {
		t.Errorf("join: %v", err)
	}
	if _, err := checkJoin(f.Roster, f.base, 1, j); !errors.Is(err, archive.ErrIntegrity) {
		t.Errorf("join of a proposal: %v", err)
	}
	f.borrowedVotes(p.newAttempt(1))
}

// borrowedVotes casts the vote of replica 2's device as replica 2 and as 3.
func (f *forge) borrowedVotes(a *attempt) {
	t := f.t
	for _, id := range []uint32{1, 3, 4} {
		f.store(id, f.slots(id, 1))
	}
	rec := f.record(1, f.block(1, nil, 1, 2, 3))
	head, inst := rec.Head(), [32]byte(rec.InstanceAt(1))
	for _, id := range []uint32{1, 2} {
		s := f.slots(id, 1)
		s.Committed = f.vote(1, rec)
		f.store(id, s)
	}
	for kind, nonce := range map[byte]func(archive.Digest, archive.Digest) [32]byte{
		itemPrepare: func(i, h archive.Digest) [32]byte { return archive.PrepareNonce(i, h) },
		itemCommit:  func(i, h archive.Digest) [32]byte { return archive.CommitNonce(i, h) },
	} {
		check := func(v archive.Attested) error { return archive.CheckPrepare(f.Roster, rec, 1, v) }
		if kind == itemCommit {
			check = func(v archive.Attested) error { return archive.CheckCommit(f.Roster, rec, 1, v) }
		}
		lent := ballot{inst: inst, head: head, attestation: f.attest(2, nonce(inst, head))}
		a.ballots(kind)[2], a.ballots(kind)[3] = lent, lent
		if votes := a.tally(kind, head, check); len(votes) != 1 || votes[0].Replica != 2 {
			t.Errorf("item %d: counted %d votes", kind, len(votes))
		}
	}
}
