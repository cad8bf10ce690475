package replica

import (
	"context"
	"crypto/rand"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
)

// voting returns replica 1 in the attempt at tick 3, with the record to vote on.
func (f *forge) voting() (*attempt, archive.EpochRecord) {
	f.t.Helper()
	block := f.block(3, nil, 1, 2, 3)
	p := f.newTestPhase()
	p.board, p.dir = newBoard(rand.Reader), phaseDir(f.t.TempDir())
	a := p.newAttempt(3)
	must(f.t, a.dir.begin("1.0"))
	must(f.t, a.dir.write(fileBlock, block.Bytes()))
	return a, f.record(3, block)
}

// prepareVote returns a replica's vote to prepare rec in the attempt.
func (f *forge) prepareVote(id uint32, a *attempt, rec archive.EpochRecord) ballot {
	f.t.Helper()
	return ballot{inst: a.inst, head: rec.Head(), attestation: f.attest(id, archive.PrepareNonce(rec.InstanceAt(a.tick), rec.Head()))}
}

// A replica's own ballot is one of the Q, not two.
func TestOwnVoteCountsOnce(t *testing.T) {
	f := newForge(t)
	a, rec := f.voting()
	over, cancel := context.WithCancel(t.Context())
	cancel() // nobody comes any more
	right := func(archive.Attested) error { return nil }
	for _, kind := range []byte{itemPrepare, itemReady, itemCommit} {
		for id := uint32(1); id <= 3; id++ {
			a.ballots(kind)[id] = ballot{inst: a.inst, head: rec.Head()}
			votes, err := a.quorum(over, kind, rec.Head(), right)
			if id < 3 && !errors.Is(err, context.Canceled) || id == 3 && (err != nil || len(votes) != 3) {
				t.Errorf("ballots %q of %d: %d votes, %v", kind, id, len(votes), err)
			}
		}
	}
}

// A replica commits nothing before it holds the prepare certificate, and 2f+1
// replicas have said that they do.
func TestCommitsOnlyPrepared(t *testing.T) {
	f := newForge(t)
	a, rec := f.voting()
	var stored int
	a.MAS = &device{f.Replicas[0].MAS, func(op string, s trust.Slots) error { stored++; return nil }}
	vote := func(step string, want int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if _, err := a.vote(ctx, rec); !errors.Is(err, context.DeadlineExceeded) || stored != want {
			t.Errorf("%s: stored %d times, want %d; %v", step, stored, want, err)
		}
	}
	vote("alone", 0)
	for _, id := range []uint32{2, 3} {
		a.readies[id] = ballot{inst: a.inst, head: rec.Head()}
	}
	a.prepares[2] = f.prepareVote(2, a, rec)
	vote("two votes of three", 0)
	a.prepares[3] = f.prepareVote(3, a, rec)
	delete(a.readies, 3)
	vote("held by two of three", 0)
	a.readies[3] = ballot{inst: a.inst, head: rec.Head()}
	vote("prepared", 1)
	if got := f.Replicas[0].Statement(t).Slots.Committed; got != f.vote(3, rec) {
		t.Errorf("committed %+v", got)
	}
}

// A replica stores the tick before it says anything in its attempt.
func TestTickStoredFirst(t *testing.T) {
	f := newForge(t)
	p := f.newTestPhase()
	p.board, p.dir = newBoard(rand.Reader), phaseDir(t.TempDir())
	var err error
	p.store, err = OpenStore(filepath.Join(f.Replicas[0].Dir, storeDir), f.Roster)
	must(t, err)
	defer p.store.Close()
	var stored []trust.Slots
	p.MAS = &device{f.Replicas[0].MAS, func(op string, s trust.Slots) error {
		stored = append(stored, s)
		if said := p.board.all; len(said) > 0 {
			t.Errorf("said %q before the tick was stored", said[0].kind)
		}
		return nil
	}}
	a, err := p.enter(t.Context(), 3)
	must(t, err)
	defer a.end()
	if len(stored) != 1 || stored[0].Tick != 3 || stored[0].Boot != p.statement.Counts {
		t.Errorf("stored %+v", stored)
	}
	if !slices.ContainsFunc(p.board.all, func(x item) bool { return x.kind == itemJoin }) {
		t.Error("no join was said")
	}
}

// What a peer asks to be attested is never attested as it is: in update mode it
// could be a vote.
func TestNoRawNonce(t *testing.T) {
	f := newForge(t)
	p := f.newTestPhase()
	a := p.newAttempt(1)
	rec := f.record(1, f.block(1, nil, 1, 2, 3))
	for _, nonce := range []trust.Nonce{
		archive.PrepareNonce(a.inst, rec.Head()), archive.CommitNonce(a.inst, rec.Head()), f.proposal(2, 1).Join.Nonce(),
	} {
		att, err := p.answerHello(t.Context(), 2, nonce)
		must(t, err)
		v := archive.Attested{Replica: 1, Attestation: att}
		if _, err := f.Roster.VerifyAttested(v, archive.HelloNonce(f.Roster.ID(), 1, 2, nonce)); err != nil {
			t.Error(err)
		}
		if _, err := f.Roster.VerifyAttested(v, nonce); !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("a challenge was attested as it is: %v", err)
		}
	}
}
