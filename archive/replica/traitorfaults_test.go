package replica

import (
	"bytes"
	"context"
	"crypto/ed25519"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
)

// A fault is one switch of a traitor. Each of its parts may be nil; each says by
// traitor.fire that it has done something.
type fault struct {
	name string

	before func(x *traitor)                            // before the phase
	first  func(x *traitor) []item                     // said to each peer before all else; holds mu
	say    func(x *traitor, to uint32, it item) []item // said in place of an item; holds mu
	answer func(x *traitor, w http.ResponseWriter, r *http.Request) bool
	joined func(x *traitor, a *attempt)
	engine func(x *traitor, a *attempt, all []consensus.Config) []consensus.Config
	leave  func(x *traitor) // before the device is locked

	// What it takes to fire.
	leads  bool // it is the first leader
	behind bool // a correct replica is an epoch behind, its tree gone
	cut    bool // an attempt at the same epoch was cut off before
	phases int  // how many phases; 0: one
}

// faults are all switches.
var faults = slices.Concat([]*fault{
	{name: "silent", answer: silent, engine: noEngine},
	{name: "slow", answer: late},
	{name: "drops its pending Adds", before: dropPending},

	{name: "equal votes for two values", engine: votesForTwo},
	{name: "two proposals in the engine", engine: proposesTwo, leads: true},
	{name: "leaves a victim's proposal out", engine: leavesOut, leads: true},
	{name: "a vector of 2f", engine: proposesFew, leads: true},
	{name: "proposals of repeated signers in the engine", engine: proposes("proposals of repeated signers in the engine", repeatedVoucher), leads: true},
	{name: "proposals of foreign signers in the engine", engine: proposes("proposals of foreign signers in the engine", foreignVoucher), leads: true},
	{name: "garbage in the engine", engine: proposesGarbage, leads: true},

	{name: "two proposals", say: twoJoins},
	{name: "a proposal too large", say: hugeJoin},
	{name: "joins at two ticks", answer: lateForVictim, say: twoTicks, engine: noEngine},
	{name: "joins and says no more", say: onlyJoins, engine: noEngine},
	{name: "forged vouchers", say: forgedVoucher},
	{name: "withheld vouchers", say: withhold("withheld vouchers", itemVoucher)},
	{name: "repeated signers", say: repeatedSigners},
	{name: "foreign signers", say: foreignSigners},
	{name: "wrong chunk bytes", answer: wrongPieces},
	{name: "endless bodies", answer: endlessPieces},
	{name: "endless board", answer: endlessBoard},
	{name: "a new run in each answer", answer: newRuns},
	{name: "a block that nobody decided", say: undecided},
	{name: "blocks that nobody decided, early", joined: claimsEarly, say: twoClaims, engine: noEngine},

	{name: "a wrong root", say: wrongRoot},
	{name: "a vote withheld at the last step", say: withhold("a vote withheld at the last step", itemCommit, itemCertificate)},
	{name: "votes for two records", say: twoRecords},
	{name: "an old vote for a new record", say: oldVote, phases: 2},

	{name: "a garbage committed slot left behind", leave: leavesCommitted, phases: 2},
	{name: "a garbage head left behind", leave: leavesHead, phases: 2},
	{name: "a used up tick left behind", leave: leavesTick, phases: 2},
	{name: "garbage phase data left behind", leave: leavesPhase, phases: 2},
	{name: "a join made ahead", joined: joinAhead, say: showAhead, cut: true},
	{name: "an old instance replayed", first: replay, phases: 2},

	{name: "lies about its epoch", first: falseEpoch},
	{name: "lies about its records", answer: falseRecords, behind: true},
	{name: "lies about its tree", answer: falseTree, behind: true},

	{name: "a forged hello", answer: forgedHello},
	{name: "a malformed hello", answer: malformedHello},
	{name: "a malformed board", answer: malformedBoard},
	{name: "a malformed carried record", first: malformedCarry},
}, malformed(map[byte]string{
	itemBase: "base", itemHello: "shown hello", itemJoin: "join", itemVoucher: "voucher", itemProposal: "proposal",
	itemBlock: "block", itemPrepare: "prepare vote", itemReady: "ready", itemCommit: "commit vote", itemCertificate: "certificate",
}))

func silent(x *traitor, _ http.ResponseWriter, r *http.Request) bool {
	x.fire("silent")
	<-r.Context().Done()
	return true
}

func noEngine(*traitor, *attempt, []consensus.Config) []consensus.Config { return nil }

func late(x *traitor, _ http.ResponseWriter, r *http.Request) bool {
	x.fire("slow")
	pause(r.Context(), 300*time.Millisecond)
	return false
}

func dropPending(x *traitor) {
	path := filepath.Join(x.Replicas[x.id-1].Dir, storeDir, pendingFile)
	if os.Remove(path) == nil {
		x.fire("drops its pending Adds")
	}
}

// split makes two engines of one, each of which reaches one of two parties.
func split(x *traitor, c consensus.Config) (one, two consensus.Config) {
	one, two = c, c
	two.Dir += "-2"
	one.Members, two.Members = slices.Clone(c.Members), slices.Clone(c.Members)
	for i, m := range c.Members {
		switch {
		case m.ID == x.id: // where nobody dials: it dials itself
			one.Members[i].Address, two.Members[i].Address = archivetest.FreeAddress(x.t), archivetest.FreeAddress(x.t)
		case x.one(m.ID):
			two.Members[i].Address = nowhere
		default:
			one.Members[i].Address = nowhere
		}
	}
	return one, two
}

// nowhere is an address at which nobody listens.
const nowhere = "127.0.0.1:1"

// votesForTwo votes for every block before some, and for none before others.
func votesForTwo(x *traitor, _ *attempt, all []consensus.Config) []consensus.Config {
	if len(all) != 1 {
		return all
	}
	one, two := split(x, all[0])
	two.Check = func([]byte) error {
		x.fire("equal votes for two values")
		return errors.New("refused by the test")
	}
	return []consensus.Config{one, two}
}

// proposesTwo proposes one block to some, and to others one of fewer proposals.
func proposesTwo(x *traitor, a *attempt, all []consensus.Config) []consensus.Config {
	if len(all) != 1 {
		return all
	}
	one, two := split(x, all[0])
	two.Propose = func(ctx context.Context) ([]byte, error) {
		b, err := candidateOf(ctx, a)
		if err == nil && len(b.Proposals) > a.Roster.Quorum() {
			x.fire("two proposals in the engine")
			b.Proposals = b.Proposals[1:]
		}
		return b.Bytes(), err
	}
	return []consensus.Config{one, two}
}

// candidateOf is the block that a correct leader would propose.
func candidateOf(ctx context.Context, a *attempt) (b consensus.Block, err error) {
	err = a.wait(ctx, func() (ok bool, _ error) { b, ok = a.candidate(); return ok, nil })
	b.Proposals = slices.Clone(b.Proposals)
	return b, err
}

// leading has the engines propose what change makes of a correct leader's block,
// and accept it. Where change does nothing it returns false.
func leading(name string, change func(x *traitor, a *attempt, b *consensus.Block) bool) func(*traitor, *attempt, []consensus.Config) []consensus.Config {
	return func(x *traitor, a *attempt, all []consensus.Config) []consensus.Config {
		for i := range all {
			all[i].Check = func([]byte) error { return nil }
			all[i].Propose = func(ctx context.Context) ([]byte, error) {
				b, err := candidateOf(ctx, a)
				if err == nil && change(x, a, &b) {
					x.fire(name)
				}
				return b.Bytes(), err
			}
		}
		return all
	}
}

var leavesOut = leading("leaves a victim's proposal out", func(x *traitor, a *attempt, b *consensus.Block) bool {
	if len(b.Proposals) <= a.Roster.Quorum() {
		return false
	}
	victim := x.all(x.id)[0]
	n := len(b.Proposals)
	b.Proposals = slices.DeleteFunc(b.Proposals, func(p consensus.ProposalCertificate) bool { return p.Replica() == victim })
	return len(b.Proposals) < n
})

var proposesFew = leading("a vector of 2f", func(_ *traitor, a *attempt, b *consensus.Block) bool {
	b.Proposals = b.Proposals[:2*a.Roster.F]
	return true
})

func proposesGarbage(x *traitor, _ *attempt, all []consensus.Config) []consensus.Config {
	for i := range all {
		all[i].Check = func([]byte) error { return nil }
		all[i].Propose = func(context.Context) ([]byte, error) {
			x.fire("garbage in the engine")
			return []byte("garbage"), nil
		}
	}
	return all
}

// proposes has the leader's block spoilt in the vouchers of one proposal.
func proposes(name string, spoil func(*traitor, *consensus.ProposalCertificate)) func(*traitor, *attempt, []consensus.Config) []consensus.Config {
	return leading(name, func(x *traitor, _ *attempt, b *consensus.Block) bool {
		spoil(x, &b.Proposals[0])
		return true
	})
}

func repeatedVoucher(_ *traitor, p *consensus.ProposalCertificate) {
	p.Vouchers = slices.Clone(p.Vouchers)
	p.Vouchers[1] = p.Vouchers[0]
}

func foreignVoucher(_ *traitor, p *consensus.ProposalCertificate) {
	_, key, _ := ed25519.GenerateKey(nil)
	p.Vouchers = slices.Clone(p.Vouchers)
	v := p.Vouchers[0]
	p.Vouchers[0] = consensus.SignVoucher(key, v.Instance, v.Voter, v.Replica, v.Join)
}

// replaceJoin has the traitor's device attest another join than its own.
func (x *traitor) replaceJoin(it item, change func(*consensus.Manifest)) (item, bool) {
	j, err := consensus.ParseJoin(it.payload)
	if it.kind != itemJoin || err != nil {
		return it, false
	}
	change(&j.Manifest)
	if j.Attestation, err = x.dev.Lookup(x.ctx, j.Nonce()); err != nil {
		return it, false
	}
	return item{itemJoin, j.Bytes()}, true
}

func twoJoins(x *traitor, to uint32, it item) []item {
	if x.one(to) {
		return []item{it}
	}
	other, ok := x.replaceJoin(it, func(m *consensus.Manifest) { m.Time++; m.Size, m.Pieces = 0, nil })
	if ok {
		x.fired["two proposals"]++
	}
	return []item{other}
}

func hugeJoin(x *traitor, _ uint32, it item) []item {
	other, ok := x.replaceJoin(it, func(m *consensus.Manifest) {
		m.Size, m.Pieces = 0, nil
		for i := range uint32(consensus.MaxPieces) {
			p := consensus.Piece{Size: consensus.MaxPiece}
			binary.BigEndian.PutUint32(p.Digest[:], i)
			m.Pieces, m.Size = append(m.Pieces, p), m.Size+consensus.MaxPiece
		}
	})
	if ok {
		x.fired["a proposal too large"]++
	}
	return []item{other}
}

func forgedVoucher(x *traitor, _ uint32, it item) []item {
	if v, err := consensus.ParseVoucher(it.payload); it.kind == itemVoucher && err == nil {
		x.fired["forged vouchers"]++
		v.Signature[0] ^= 1
		it.payload = v.Bytes()
	}
	return []item{it}
}

func withhold(name string, kinds ...byte) func(*traitor, uint32, item) []item {
	return func(x *traitor, _ uint32, it item) []item {
		if slices.Contains(kinds, it.kind) {
			x.fired[name]++
			return nil
		}
		return []item{it}
	}
}

func repeatedSigners(x *traitor, _ uint32, it item) []item {
	return spoiltSigners(x, "repeated signers", it, repeatedVoucher, func(c *archive.Certificate, _ archive.EpochRecord) { c.Votes[1] = c.Votes[0] })
}

func foreignSigners(x *traitor, _ uint32, it item) []item {
	return spoiltSigners(x, "foreign signers", it, foreignVoucher, func(c *archive.Certificate, rec archive.EpochRecord) {
		_, key, _ := ed25519.GenerateKey(nil)
		st := trust.Statement{Mode: trust.ModeUpdate, Counter: uint64(rec.Epoch) - 1, Counts: trust.Counts{Reset: 2}, Safe: true, Slots: trust.Slots{
			Archive: rec.Archive, Head: rec.Previous, Epoch: uint64(rec.Epoch) - 1, Tick: c.Tick,
			Committed: trust.Vote{Epoch: uint64(rec.Epoch), Tick: c.Tick, Record: rec.Head()},
		}}
		c.Votes[0].Attestation = trust.EncodeSoftware(key, st, archive.CommitNonce(rec.InstanceAt(c.Tick), rec.Head()))
	})
}

// spoiltSigners spoils the signers of proposal certificates and of certificates.
func spoiltSigners(x *traitor, name string, it item, vouchers func(*traitor, *consensus.ProposalCertificate), votes func(*archive.Certificate, archive.EpochRecord)) []item {
	switch it.kind {
	case itemProposal:
		if p, err := consensus.ParseProposalCertificate(it.payload); err == nil {
			x.fired[name]++
			vouchers(x, &p)
			it.payload = p.Bytes()
		}
	case itemCertificate:
		n := binary.BigEndian.Uint32(it.payload)
		rec, cert, err := archive.VerifyRecord(x.Roster, it.payload[4:4+n], it.payload[4+n:])
		if err == nil {
			x.fired[name]++
			votes(&cert, rec)
			it.payload = append(it.payload[:4+n:4+n], cert.Bytes()...)
		}
	}
	return []item{it}
}

func wrongPieces(x *traitor, w http.ResponseWriter, r *http.Request) bool {
	if !strings.HasPrefix(r.URL.Path, pathPiece) {
		return false
	}
	x.fire("wrong chunk bytes")
	rec := httptest.NewRecorder()
	x.honest.ServeHTTP(rec, r)
	b := rec.Body.Bytes()
	if len(b) > 0 {
		b[len(b)/2] ^= 1
	}
	w.Write(b)
	return true
}

func endlessPieces(x *traitor, w http.ResponseWriter, r *http.Request) bool {
	if !strings.HasPrefix(r.URL.Path, pathPiece) {
		return false
	}
	x.fire("endless bodies")
	endless(w, r, nil)
	return true
}

func endlessBoard(x *traitor, w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != pathBoard {
		return false
	}
	x.fire("endless board")
	w.Header().Set(headerRun, x.p.board.run)
	endless(w, r, nil)
	return true
}

// newRuns answers each hello, and each request for the board, as a process would
// that was started just now.
func newRuns(x *traitor, w http.ResponseWriter, r *http.Request) bool {
	to, err := wire.PeerID(r.TLS, x.Roster)
	if err != nil || r.URL.Path != pathHello && r.URL.Path != pathBoard {
		return false
	}
	x.fire("a new run in each answer")
	w = &renamed{w, anyRun()}
	if r.URL.Path == pathBoard {
		x.serveBoard(w, r, to)
	} else {
		x.honest.ServeHTTP(w, r)
	}
	return true
}

// renamed is a reply of another run.
type renamed struct {
	http.ResponseWriter
	run string
}

func (w *renamed) Write(b []byte) (int, error) {
	w.Header().Set(headerRun, w.run)
	return w.ResponseWriter.Write(b)
}

// undecided claims that another valid block was decided.
func undecided(x *traitor, _ uint32, it item) []item {
	b, err := consensus.ParseBlock(it.payload)
	if it.kind == itemBlock && err == nil && len(b.Proposals) > x.Roster.Quorum() {
		x.fired["a block that nobody decided"]++
		b.Proposals = b.Proposals[1:]
		it.payload = b.Bytes()
	}
	return []item{it}
}

// claimsEarly claims a block as soon as one can be made of four proposals.
func claimsEarly(x *traitor, a *attempt) {
	a.work.run(func(ctx context.Context) {
		var b consensus.Block
		err := a.wait(ctx, func() (ok bool, err error) { b, ok = a.candidate(); return ok && len(b.Proposals) == x.Roster.N(), nil })
		if err == nil {
			x.p.board.publish(itemBlock, b.Bytes())
		}
	})
}

// twoClaims claims one block before one peer and another before another, and says no
// more than what it takes to make blocks.
func twoClaims(x *traitor, to uint32, it item) []item {
	b, err := consensus.ParseBlock(it.payload)
	i := slices.Index(x.all(x.id), to)
	switch {
	case slices.Contains([]byte{itemBase, itemHello, itemJoin, itemVoucher}, it.kind):
		return []item{it}
	case it.kind != itemBlock || err != nil || len(b.Proposals) < x.Roster.N() || i > 1:
		return nil
	}
	x.fired["blocks that nobody decided, early"]++
	b.Proposals = slices.Delete(b.Proposals, i, i+1)
	return []item{{itemBlock, b.Bytes()}}
}

func wrongRoot(x *traitor, _ uint32, it item) []item {
	return []item{x.falseBallot("a wrong root", it)}
}

func twoRecords(x *traitor, to uint32, it item) []item {
	if !x.one(to) {
		return []item{it}
	}
	return []item{x.falseBallot("votes for two records", it)}
}

// oldVote gives the attestation of an old vote for a new one.
func oldVote(x *traitor, _ uint32, it item) []item {
	b, err := parseBallot(it.payload)
	if err != nil || it.kind != itemPrepare && it.kind != itemCommit {
		return []item{it}
	}
	for _, was := range x.past {
		if o, err := parseBallot(was.payload); was.kind == it.kind && err == nil {
			x.fired["an old vote for a new record"]++
			b.attestation = o.attestation
			it.payload = b.Bytes()
			break
		}
	}
	return []item{it}
}

func leavesCommitted(x *traitor) {
	x.fire("a garbage committed slot left behind")
	x.keep(func(s *trust.Slots) {
		s.Committed = trust.Vote{Epoch: s.Epoch + 1, Tick: 3}
		crand.Read(s.Committed.Record[:])
	})
}

func leavesHead(x *traitor) {
	x.fire("a garbage head left behind")
	x.keep(func(s *trust.Slots) { crand.Read(s.Head[:]) })
}

func leavesTick(x *traitor) {
	x.fire("a used up tick left behind")
	x.keep(func(s *trust.Slots) { s.Tick = 1<<64 - 1 })
}

// leavesPhase leaves files of an attempt at the next epochs.
func leavesPhase(x *traitor) {
	st := x.Replicas[x.id-1].Statement(x.t)
	for e := range archive.Epoch(2) {
		d := phaseDir(filepath.Join(x.Replicas[x.id-1].Dir, storeDir, "phase")).tick(archive.Epoch(st.Slots.Epoch)+1+e, 1)
		if os.MkdirAll(d.engine(), 0o700) == nil {
			x.fire("garbage phase data left behind")
		}
		for _, f := range []string{fileBoot, fileJoin, fileBlock, fileRecord, filePrepare, fileChallenges, "vouched-1", "engine/x"} {
			b := make([]byte, 3000)
			crand.Read(b)
			os.WriteFile(filepath.Join(string(d), f), b, 0o600)
		}
	}
}

// victim is the one that is shown another tick than the rest.
func (x *traitor) victim() uint32 { return x.all(x.id)[0] }

// lateForVictim keeps the victim from joining before the traitor has.
func lateForVictim(x *traitor, _ http.ResponseWriter, r *http.Request) bool {
	if to, err := wire.PeerID(r.TLS, x.Roster); r.URL.Path == pathHello && err == nil && to == x.victim() {
		x.p.know.update(func() { x.p.challenges[to] = [32]byte{1} }) // not to be waited for
		x.p.board.know.wait(r.Context(), func() (bool, error) {
			return slices.ContainsFunc(x.p.board.all, func(it item) bool { return it.kind == itemJoin }), nil
		})
	}
	return false
}

func onlyJoins(x *traitor, _ uint32, it item) []item {
	if slices.Contains([]byte{itemBase, itemHello, itemJoin}, it.kind) {
		return []item{it}
	}
	x.fired["joins and says no more"]++
	return nil
}

// twoTicks joins at the tick with all but the victim, at the next with that one, and
// then says no more.
func twoTicks(x *traitor, to uint32, it item) []item {
	j, err := consensus.ParseJoin(it.payload)
	if it.kind != itemJoin || err != nil || to != x.victim() {
		return onlyJoins(x, to, it)
	}
	tick := x.Replicas[x.id-1].Statement(x.t).Slots.Tick + 1
	j.Manifest.Instance = instanceOn(x.p.base, tick)
	if j.Attestation, err = x.with(j.Nonce(), func(s *trust.Slots) { s.Tick = tick }); err != nil {
		return nil
	}
	x.fired["joins at two ticks"]++
	return []item{{itemJoin, j.Bytes()}}
}

// joinAhead has the device attest a join of the next tick.
func joinAhead(x *traitor, a *attempt) {
	j := consensus.Join{Manifest: a.own.Manifest, Challenges: a.challengesToUs()}
	j.Manifest.Instance, j.Manifest.Size, j.Manifest.Pieces = instanceOn(a.base, a.tick+1), 0, nil
	att, err := x.with(j.Nonce(), func(s *trust.Slots) { s.Tick = a.tick + 1; s.Committed = trust.Vote{} })
	if err == nil {
		j.Attestation = att
		x.mu.Lock()
		defer x.mu.Unlock()
		x.ahead[j.Manifest.Instance] = j.Bytes()
	}
}

// showAhead shows the join made ahead when its tick has come.
func showAhead(x *traitor, _ uint32, it item) []item {
	if j, err := consensus.ParseJoin(it.payload); it.kind == itemJoin && err == nil {
		if b, ok := x.ahead[j.Manifest.Instance]; ok {
			x.fired["a join made ahead"]++
			it.payload = b
		}
	}
	return []item{it}
}

func replay(x *traitor) []item {
	x.fired["an old instance replayed"] += len(x.past)
	return slices.Clone(x.past)
}

func falseEpoch(x *traitor) []item {
	x.fired["lies about its epoch"]++
	b := binary.BigEndian.AppendUint64(nil, uint64(x.p.base.Epoch)+1000)
	head := archive.DigestOf(b)
	return []item{{itemBase, append(b, head[:]...)}}
}

// falseRecords serves a history with another root in each record.
func falseRecords(x *traitor, w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != wire.PathHistory {
		return false
	}
	rec := httptest.NewRecorder()
	x.honest.ServeHTTP(rec, r)
	b := rec.Body.Bytes()
	if i := bytes.Index(b, []byte(`\nroot `)); i >= 0 {
		x.fire("lies about its records")
		at := i + len(`\nroot `)
		b[at] = "10"[b2i(b[at] == '1')]
	}
	w.WriteHeader(rec.Code)
	w.Write(b)
	return true
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// falseTree spoils what the traitor serves of its tree.
func falseTree(x *traitor, w http.ResponseWriter, r *http.Request) bool {
	if !slices.Contains([]string{wire.PathProof, wire.PathChanges, wire.PathTree}, r.URL.Path) {
		return false
	}
	x.fire("lies about its tree")
	rec := httptest.NewRecorder()
	x.honest.ServeHTTP(rec, r)
	b := rec.Body.Bytes()
	if len(b) > 0 {
		b[len(b)*2/3] ^= 1
	}
	w.WriteHeader(rec.Code)
	w.Write(b)
	return true
}

func forgedHello(x *traitor, w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != pathHello {
		return false
	}
	att, err := x.dev.Lookup(r.Context(), trust.Nonce{1})
	if err == nil {
		x.fire("a forged hello")
	}
	w.Header().Set(headerRun, x.p.board.run)
	w.Write(att)
	return true
}

func malformedHello(x *traitor, w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != pathHello {
		return false
	}
	x.fire("a malformed hello")
	w.Header().Set(headerRun, x.p.board.run)
	w.Write([]byte("garbage, and more of it"))
	return true
}

func malformedBoard(x *traitor, w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != pathBoard {
		return false
	}
	x.fire("a malformed board")
	w.Header().Set(headerRun, x.p.board.run)
	w.Write([]byte("garbage, and more of it"))
	return true
}

func malformedCarry(x *traitor) []item {
	x.fired["a malformed carried record"]++
	return []item{{itemCarry, []byte("garbage")}}
}

// malformed makes a switch for each kind of item: cut short, lengthened or with a
// byte flipped.
func malformed(kinds map[byte]string) (all []*fault) {
	for kind, what := range kinds {
		name := fmt.Sprintf("a malformed %s", what)
		all = append(all, &fault{name: name, say: func(x *traitor, _ uint32, it item) []item {
			if it.kind != kind {
				return []item{it}
			}
			x.fired[name]++
			switch i := x.rnd.IntN(len(it.payload)); x.rnd.IntN(3) {
			case 0:
				it.payload = it.payload[:i]
			case 1:
				it.payload = append(it.payload, byte(i))
			default:
				it.payload[i] ^= 1 << x.rnd.IntN(8)
			}
			return []item{it}
		}})
	}
	slices.SortFunc(all, func(a, b *fault) int { return strings.Compare(a.name, b.name) })
	return all
}
