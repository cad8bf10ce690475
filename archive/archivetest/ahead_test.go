package archivetest_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/soft"
)

// Votes that f replicas made ahead of an epoch's phase, and another f in it, are
// good votes, and one too few. The one that is missing can not be had later: the
// epoch counters have moved on, and no slot that is written takes them back.
func TestVotesAhead(t *testing.T) {
	t.Parallel()
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, map[archive.Name][]byte{"a": []byte("first")})
	before := a.Certify(t, map[archive.Name][]byte{"b": []byte("second")})
	evil := before
	evil.Previous, evil.Epoch, evil.Tick = before.Head(), before.Epoch+1, 1
	evil.Time, evil.Root = before.Time.Add(time.Second), tree.Hash(archive.DigestOf([]byte("a forged tree")))

	ahead := voteFor(t, a.Replicas[0], evil)  // at the end of its phase, which was the one before
	within := voteFor(t, a.Replicas[1], evil) // in the phase
	third := voteFor(t, a.Replicas[2], evil)  // likewise: one faulty replica more than may be
	for _, v := range []archive.Attested{ahead, within, third} {
		if err := archive.CheckCommit(a.Roster, evil, 1, v); err != nil {
			t.Fatalf("the attack is none: %v", err)
		}
	}
	if err := certify(a, evil, ahead, within, third); err != nil {
		t.Fatalf("the attack is none with 2f+1 faulty replicas: %v", err)
	}

	good := a.Certify(t, map[archive.Name][]byte{"c": []byte("third")})
	late := voteFor(t, a.Replicas[2], evil) // in the phase after
	if err := archive.CheckCommit(a.Roster, evil, 1, late); err == nil {
		t.Error("a vote for an epoch that is over counts")
	}
	other := late
	other.Replica = 4
	for name, votes := range map[string][]archive.Attested{
		"2f votes":               {ahead, within},
		"one of them twice":      {ahead, ahead, within},
		"one of them renumbered": {ahead, within, {Replica: 3, Attestation: within.Attestation}},
		"a late one":             {ahead, within, late},
		"a late one, renumbered": {ahead, within, other},
		"one for the true epoch": {ahead, within, a.Certificate.Votes[2]},
	} {
		if err := certify(a, evil, votes...); err == nil {
			t.Errorf("%s make a certificate", name)
		}
	}
	if err := a.Certificate.Verify(a.Roster, good); err != nil {
		t.Errorf("the true epoch: %v", err)
	}
}

func certify(a *archivetest.Archive, rec archive.EpochRecord, votes ...archive.Attested) error {
	return archive.Certificate{Tick: rec.Tick, Votes: votes}.Verify(a.Roster, rec)
}

// voteFor has the replica's device vote for rec as well as it can: reset, with the
// slots that fit, but with the counter as it stands.
func voteFor(t *testing.T, r *archivetest.Replica, rec archive.EpochRecord) archive.Attested {
	t.Helper()
	if err := soft.Reset(filepath.Join(r.Dir, "mas")); err != nil {
		t.Fatal(err)
	}
	err := r.MAS.Store(t.Context(), trust.Slots{
		Archive: rec.Archive, Head: rec.Previous, Epoch: uint64(rec.Epoch) - 1,
		Tick: rec.Tick, Boot: r.Statement(t).Counts,
		Committed: trust.Vote{Epoch: uint64(rec.Epoch), Tick: rec.Tick, Record: rec.Head()},
	})
	if err != nil {
		t.Fatal(err)
	}
	att, err := r.MAS.Lookup(t.Context(), archive.CommitNonce(rec.InstanceAt(rec.Tick), rec.Head()))
	if err != nil {
		t.Fatal(err)
	}
	return archive.Attested{Replica: r.ID, Attestation: att}
}
