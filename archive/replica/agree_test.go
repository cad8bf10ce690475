package replica

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/soft"
)

// forge makes blocks with the devices themselves, right ones and wrong ones.
type forge struct {
	*archivetest.Archive
	t    *testing.T
	base archive.EpochRecord
}

func newForge(t *testing.T) *forge {
	a := archivetest.NewRoster(t, 4)
	for _, r := range a.Replicas {
		if err := soft.Reset(filepath.Join(r.Dir, "mas")); err != nil {
			t.Fatal(err)
		}
	}
	return &forge{a, t, archive.Genesis(a.Roster)}
}

// slots returns what a correct replica's slots hold when it joins at tick.
func (f *forge) slots(id uint32, tick uint64) trust.Slots {
	return trust.Slots{
		Head: f.base.Head(), Epoch: uint64(f.base.Epoch), Tick: tick,
		Boot: f.Replicas[id-1].Statement(f.t).Counts, Archive: f.Roster.ID(),
	}
}

func (f *forge) store(id uint32, s trust.Slots) {
	f.t.Helper()
	if err := f.Replicas[id-1].MAS.Store(f.t.Context(), s); err != nil {
		f.t.Fatal(err)
	}
}

func (f *forge) attest(id uint32, n trust.Nonce) trust.Attestation {
	f.t.Helper()
	att, err := f.Replicas[id-1].MAS.Lookup(f.t.Context(), n)
	if err != nil {
		f.t.Fatal(err)
	}
	return att
}

// proposal makes the proposal certificate of a replica whose slots are as they
// are now; change may spoil the manifest before it is attested.
func (f *forge) proposal(id uint32, tick uint64, change ...func(*consensus.Manifest)) consensus.ProposalCertificate {
	f.t.Helper()
	counts := f.Replicas[id-1].Statement(f.t).Counts
	m := consensus.Manifest{Instance: instanceOn(f.base, tick), Replica: id, Time: 1_800_000_000 + int64(id), Reset: counts.Reset, Restart: counts.Restart}
	for _, c := range change {
		c(&m)
	}
	j := consensus.Join{Manifest: m}
	j.Attestation = f.attest(id, j.Nonce())
	return f.vouched(j)
}

func (f *forge) vouched(j consensus.Join) consensus.ProposalCertificate {
	p := consensus.ProposalCertificate{Join: j}
	for _, r := range f.Replicas[:f.Roster.Quorum()] {
		p.Vouchers = append(p.Vouchers, consensus.SignVoucher(r.AgreementKey, j.Manifest.Instance, r.ID, j.Manifest.Replica, j.Digest()))
	}
	return p
}

// block makes the block of the given replicas at tick; committed says what their
// slots hold as committed.
func (f *forge) block(tick uint64, committed map[uint32]trust.Vote, ids ...uint32) consensus.Block {
	f.t.Helper()
	b := consensus.Block{Instance: instanceOn(f.base, tick)}
	for _, id := range ids {
		s := f.slots(id, tick)
		s.Committed = committed[id]
		f.store(id, s)
		b.Proposals = append(b.Proposals, f.proposal(id, tick))
	}
	return b
}

// record returns the record that a block built at tick makes, of an empty tree.
func (f *forge) record(tick uint64, b consensus.Block) archive.EpochRecord {
	rec := shell(f.base, tick, b)
	rec.Root, rec.Names = f.base.Root, f.base.Names
	return rec
}

// carried makes the prepare certificate of rec at tick.
func (f *forge) carried(tick uint64, rec archive.EpochRecord, origin consensus.Block, voters ...uint32) *consensus.Carried {
	f.t.Helper()
	c := &consensus.Carried{Tick: tick, Record: rec.Bytes(), Block: origin.Bytes()}
	for _, id := range voters {
		f.store(id, f.slots(id, tick))
		c.Prepare = append(c.Prepare, consensus.Attested{Replica: id, Attestation: f.attest(id, archive.PrepareNonce(rec.InstanceAt(tick), rec.Head()))})
	}
	return c
}

func (f *forge) vote(tick uint64, rec archive.EpochRecord) trust.Vote {
	return trust.Vote{Epoch: uint64(rec.Epoch), Tick: tick, Record: rec.Head()}
}

// want checks a block of tick; the empty reason is that it is right.
func (f *forge) want(name string, tick uint64, b consensus.Block, reason string) {
	f.t.Helper()
	f.wantBytes(name, tick, b.Bytes(), reason)
}

func (f *forge) wantBytes(name string, tick uint64, raw []byte, reason string) {
	f.t.Helper()
	_, err := checkBlock(f.Roster, f.base, tick, raw)
	switch {
	case reason == "" && err != nil:
		f.t.Errorf("%s: %v", name, err)
	case reason != "" && (err == nil || !strings.Contains(err.Error(), reason)):
		f.t.Errorf("%s: got %v, want %q", name, err, reason)
	}
}

func TestCheckBlockForm(t *testing.T) {
	f := newForge(t)
	b := f.block(1, nil, 1, 2, 3)
	f.want("right", 1, b, "")
	f.want("all four", 1, f.block(1, nil, 1, 2, 3, 4), "")
	f.wantBytes("trailing byte", 1, append(b.Bytes(), 0), "malformed")
	f.want("another tick", 2, b, "another instance")
	few := b
	few.Proposals = b.Proposals[:2]
	f.want("too few", 1, few, "fewer than 3")
	twice := b
	twice.Proposals = []consensus.ProposalCertificate{b.Proposals[0], b.Proposals[1], b.Proposals[1]}
	f.wantBytes("one replica twice", 1, twice.Bytes(), "replica 2 after 2")

	spoilt := func(name, reason string, spoil func(*consensus.ProposalCertificate)) {
		x := b
		x.Proposals = slices.Clone(b.Proposals)
		p := x.Proposals[2]
		p.Vouchers = slices.Clone(p.Vouchers)
		p.Join.Attestation = slices.Clone(p.Join.Attestation)
		spoil(&p)
		x.Proposals[2] = p
		f.want(name, 1, x, reason)
	}
	spoilt("a voucher short", "vouchers, not 3", func(p *consensus.ProposalCertificate) { p.Vouchers = p.Vouchers[:2] })
	spoilt("a voucher by another key", "signature does not verify", func(p *consensus.ProposalCertificate) {
		p.Vouchers[0] = consensus.SignVoucher(f.Writer, p.Join.Manifest.Instance, 1, 3, p.Join.Digest())
	})
	spoilt("attestation of another manifest", "does not verify", func(p *consensus.ProposalCertificate) {
		j := p.Join
		j.Manifest.Time++
		*p = f.vouched(j)
	})
	spoilt("attestation of another device", "does not verify", func(p *consensus.ProposalCertificate) {
		j := p.Join
		j.Attestation = f.attest(1, j.Nonce())
		*p = f.vouched(j)
	})
}

func TestCheckBlockDevices(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		slots        func(*trust.Slots)
		manifest     func(*consensus.Manifest)
		device       func(*archivetest.Replica) error
	}{
		{name: "right"},
		{name: "tick not stored", reason: "tick slot 0", slots: func(s *trust.Slots) { s.Tick = 0 }},
		{name: "tick beyond", reason: "tick slot 6", slots: func(s *trust.Slots) { s.Tick = 6 }},
		{name: "another head", reason: "not on top", slots: func(s *trust.Slots) { s.Head[0]++ }},
		{name: "another epoch", reason: "not on top", slots: func(s *trust.Slots) { s.Epoch++ }},
		{name: "another archive", reason: "not on top", slots: func(s *trust.Slots) { s.Archive[0]++ }},
		{name: "joined in another boot", reason: "another boot", slots: func(s *trust.Slots) { s.Boot.Reset++ }},
		{name: "another boot's counts", reason: "another boot", manifest: func(m *consensus.Manifest) { m.Restart++ }},
		{name: "counter ahead", reason: "not on top", device: func(r *archivetest.Replica) error { return r.MAS.Advance(t.Context()) }},
		{name: "service mode", reason: "service mode", device: func(r *archivetest.Replica) error { return r.MAS.Lock(t.Context()) }},
	} {
		f := newForge(t)
		b := f.block(5, nil, 1, 2)
		s := f.slots(3, 5)
		if tt.slots != nil {
			tt.slots(&s)
		}
		f.store(3, s)
		if tt.device != nil {
			if err := tt.device(f.Replicas[2]); err != nil {
				t.Fatal(err)
			}
		}
		var change []func(*consensus.Manifest)
		if tt.manifest != nil {
			change = append(change, tt.manifest)
		}
		b.Proposals = append(b.Proposals, f.proposal(3, 5, change...))
		f.want(tt.name, 5, b, tt.reason)
	}
}

func TestCheckBlockRule(t *testing.T) {
	f := newForge(t)
	first := f.block(1, nil, 1, 2, 3)
	rec1 := f.record(1, first)
	carry1 := f.carried(1, rec1, first, 1, 2, 3)
	v1 := f.vote(1, rec1)
	// another record, built at tick 2 by those who had not committed
	second := f.block(2, nil, 2, 3, 4)
	rec2 := f.record(2, second)
	carry2 := f.carried(2, rec2, second, 2, 3, 4)
	v2 := f.vote(2, rec2)
	carry1at2 := f.carried(2, rec1, first, 1, 2, 3) // the first record, prepared once more

	with := func(c *consensus.Carried, committed map[uint32]trust.Vote) consensus.Block {
		b := f.block(4, committed, 1, 2, 3)
		b.Carried = c
		return b
	}
	change := func(c *consensus.Carried, f func(*consensus.Carried)) *consensus.Carried {
		x := *c
		x.Prepare = slices.Clone(c.Prepare)
		f(&x)
		return &x
	}
	votes := func(v ...trust.Vote) map[uint32]trust.Vote {
		m := make(map[uint32]trust.Vote)
		for i := range v {
			m[uint32(i+1)] = v[i]
		}
		return m
	}
	none := trust.Vote{}
	otherEpoch := v1
	otherEpoch.Epoch = 9
	for _, tt := range []struct {
		name      string
		carried   *consensus.Carried
		committed map[uint32]trust.Vote
		reason    string
	}{
		{"nothing committed", nil, nil, ""},
		{"committed in another epoch", nil, votes(otherEpoch), ""},
		{"committed and carried", carry1, votes(v1), ""},
		{"two at one tick", carry1, votes(v1, v1), ""},
		{"the highest of two", carry2, votes(v1, v2), ""},
		{"carried over twice", carry1at2, votes(v1, f.vote(2, rec1), none), ""},
		{"committed, not carried", nil, votes(v1), "none carried"},
		{"carried, not committed", carry1, nil, "nobody committed"},
		{"the lower of two", carry1, votes(v1, v2), "one of tick 1 carried, 2 committed"},
		{"another than the committed", carry1, votes(f.vote(1, rec2)), "another record carried"},
		{"two records at one tick", carry2, votes(v2, f.vote(2, rec1)), "another record carried"},
		{"tick that nobody committed at", carry1at2, votes(v1), "nobody committed at tick 2"},
		{"committed at this very tick", carry1, votes(v1, f.vote(4, rec1)), "committed at tick 4"},
		{"prepare vote missing", change(carry1, func(c *consensus.Carried) { c.Prepare = c.Prepare[:2] }), votes(v1), "2 prepare votes"},
		{"prepare vote twice", change(carry1, func(c *consensus.Carried) { c.Prepare[1] = c.Prepare[0] }), votes(v1), "1 after 1"},
		{"prepare vote of another tick", change(carry1, func(c *consensus.Carried) { c.Prepare[0] = carry1at2.Prepare[0] }), votes(v1), "prepare vote of replica 1"},
		{"prepare vote for another record", change(carry2, func(c *consensus.Carried) { c.Prepare[0] = carry1at2.Prepare[1] }), votes(v2), "prepare vote of replica 2"},
		{"prepare vote by another", change(carry1, func(c *consensus.Carried) { c.Prepare[0].Attestation = carry1.Prepare[1].Attestation }), votes(v1), "prepare vote of replica 1"},
		{"another block's record", change(carry1, func(c *consensus.Carried) { c.Block = second.Bytes() }), votes(v1), "another block"},
	} {
		f.want(tt.name, 4, with(tt.carried, tt.committed), tt.reason)
	}

	// a record with Q prepare votes that its block does not make: votes can be
	// had from a quorum only if correct replicas build it, but let it be
	wrong := rec1
	wrong.Time = wrong.Time.Add(1)
	wrong.Joined = []uint32{1, 2, 4}
	forged := f.carried(1, wrong, first, 1, 2, 3)
	f.want("record with another join set", 4, with(forged, votes(f.vote(1, wrong))), "not the one its block makes")
	wrong = rec1
	wrong.Previous[0]++
	forged = f.carried(1, wrong, first, 1, 2, 3)
	f.want("record on another base", 4, with(forged, votes(f.vote(1, wrong))), "not the one its block makes")
}

// The candidate is always a block that checks, or none.
func TestCandidate(t *testing.T) {
	f := newForge(t)
	first := f.block(1, nil, 1, 2, 3)
	rec1 := f.record(1, first)
	carry1 := *f.carried(1, rec1, first, 1, 2, 3)
	v1 := f.vote(1, rec1)
	garbage := trust.Vote{Epoch: 1, Tick: 2, Record: [32]byte{7}}
	at0 := trust.Vote{Epoch: 1, Record: [32]byte{7}}
	for _, tt := range []struct {
		name      string
		committed map[uint32]trust.Vote
		shown     bool
		want      []uint32 // join set; nil: no block
		carries   bool
	}{
		{"nothing committed", nil, false, []uint32{1, 2, 3, 4}, false},
		{"committed and shown", map[uint32]trust.Vote{2: v1}, true, []uint32{1, 2, 3, 4}, true},
		{"committed, not shown", map[uint32]trust.Vote{2: v1}, false, []uint32{1, 3, 4}, false},
		{"one shown, one garbage", map[uint32]trust.Vote{2: v1, 4: garbage}, true, []uint32{1, 2, 3}, true},
		{"garbage below the shown", map[uint32]trust.Vote{2: v1, 4: at0}, true, []uint32{1, 2, 3, 4}, true},
		{"two not shown", map[uint32]trust.Vote{2: v1, 4: garbage}, false, nil, false},
		{"shown but not in the join set", nil, true, []uint32{1, 2, 3, 4}, false},
	} {
		p := &phase{Config: Config{Roster: f.Roster}, knowledge: &knowledge{}, base: f.base, members: membersOf(f.Roster)}
		a := p.newAttempt(3)
		for _, c := range f.block(3, tt.committed, 1, 2, 3, 4).Proposals {
			if err := a.keepProposal(c); err != nil {
				t.Fatal(err)
			}
		}
		if tt.shown {
			if err := a.takeCarry(carry1.Bytes()); err != nil {
				t.Fatal(err)
			}
		}
		b, ok := a.candidate()
		if ok != (tt.want != nil) {
			t.Errorf("%s: candidate %v", tt.name, ok)
			continue
		}
		if ok && (!slices.Equal(replicasOf(b), tt.want) || (b.Carried != nil) != tt.carries) {
			t.Errorf("%s: join set %v, carried %v", tt.name, replicasOf(b), b.Carried != nil)
		}
		if ok {
			f.want(tt.name, 3, b, "")
		}
	}
}

// Whoever has all agreement keys still makes no block without the devices.
func TestStolenAgreementKeys(t *testing.T) {
	f := newForge(t)
	b := f.block(1, nil, 1, 2, 3)
	j := b.Proposals[0].Join
	_, key, _ := ed25519.GenerateKey(nil)
	counts := f.Replicas[0].Statement(t).Counts
	j.Attestation = trust.EncodeSoftware(key, trust.Statement{Mode: trust.ModeUpdate, Slots: f.slots(1, 1), Counts: counts, Safe: true}, j.Nonce())
	b.Proposals[0] = f.vouched(j)
	f.want("attestation by a key of his own", 1, b, "does not verify")
}

// A device that was faulty in the phase before has attested a join ahead, and
// stolen agreement keys vouch for it: the block passes over what Q replicas have
// committed meanwhile, and passes the check. None that has committed prepares it.
func TestJoinMadeAhead(t *testing.T) {
	f := newForge(t)
	f.store(2, f.slots(2, 3))
	ahead := f.proposal(2, 3)
	first := f.block(1, nil, 1, 2, 4)
	vote := f.vote(1, f.record(1, first))
	if err := soft.Reset(filepath.Join(f.Replicas[1].Dir, "mas")); err != nil {
		t.Fatal(err)
	}
	b := f.block(3, map[uint32]trust.Vote{1: vote}, 3, 4)
	b.Proposals = slices.Insert(b.Proposals, 0, ahead)
	f.want("fresh over a committed record", 3, b, "")
	for _, id := range []uint32{1, 2} {
		if err := f.decide(id, 3, vote, b); !errors.Is(err, errRule) {
			t.Errorf("replica %d, which has committed: %v, want %v", id, err, errRule)
		}
	}
	if err := f.decide(3, 3, trust.Vote{}, b); err != nil {
		t.Errorf("replica 3, which has not committed: %v", err)
	}
}

// decide hands a decided block to a replica whose device holds a committed vote.
func (f *forge) decide(id uint32, tick uint64, committed trust.Vote, b consensus.Block) error {
	s := f.slots(id, tick)
	s.Committed = committed
	p := &phase{
		Config: Config{Roster: f.Roster, ID: id}, dir: phaseDir(f.t.TempDir()), base: f.base,
		statement: trust.Statement{Slots: s}, board: newBoard(rand.Reader),
	}
	a := p.newAttempt(tick)
	if err := a.dir.begin("boot"); err != nil {
		return err
	}
	_, err := a.decided(b.Bytes())
	return err
}

func TestPassesOver(t *testing.T) {
	ours, other := []byte("ours"), []byte("another")
	carried := func(tick uint64, rec []byte) *consensus.Carried { return &consensus.Carried{Tick: tick, Record: rec} }
	for _, tt := range []struct {
		name string
		own  uint64
		c    *consensus.Carried
		want bool
	}{
		{"fresh", 2, nil, true},
		{"ours", 2, carried(2, ours), false},
		{"ours, of a later tick", 2, carried(3, ours), false},
		{"ours, of an earlier tick", 2, carried(1, ours), true},
		{"another of a later tick", 2, carried(3, other), false},
		{"another of the same tick", 2, carried(2, other), true},
		{"committed in this very attempt", 4, nil, false},
		{"committed later", 5, carried(3, ours), true},
	} {
		own := trust.Vote{Epoch: 1, Tick: tt.own, Record: archive.DigestOf(ours)}
		if got := passesOver(consensus.Block{Carried: tt.c}, 4, own); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
