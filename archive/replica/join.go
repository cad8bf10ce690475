package replica

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
)

type ed25519Key = ed25519.PrivateKey

func ed25519Public(k archive.PublicKey) ed25519.PublicKey { return ed25519.PublicKey(k) }

// TooFewError says how many replicas came to an update phase that needed more.
type TooFewError struct{ Joined, Need int }

func (e *TooFewError) Error() string {
	return fmt.Sprintf("%d of %d needed replicas joined", e.Joined, e.Need)
}

// Unwrap returns ErrTooFew.
func (e *TooFewError) Unwrap() error { return ErrTooFew }

// knowledge is what peers have shown, guarded by phase.know.
type knowledge struct {
	asked      map[uint32][32]byte      // our challenge to each peer
	challenges map[uint32][32]byte      // each peer's challenge to us
	hellos     map[uint32]hello         // the newest of each, whoever asked for it
	direct     map[uint32]hello         // the newest that answers our own challenge
	away       map[uint32]bool          // peers that are not, or no longer, in update mode
	reached    map[uint32]uint64        // the highest tick at which each peer has joined on our base
	wanted     uint64                   // the tick to join, whoever has
	newest     archive.EpochRecord      // the newest epoch we hold a certificate of
	holds      map[uint32]archive.Epoch // the newest that each peer has shown a certificate of
	read       map[uint32]int           // how many items of our board each peer has
	fetching   int                      // histories of peers that are coming in
	opened     bool
	lingering  bool
}

// newKnowledge draws a challenge for each peer.
func newKnowledge(c Config) (*knowledge, error) {
	k := &knowledge{
		asked: make(map[uint32][32]byte), challenges: make(map[uint32][32]byte),
		hellos: make(map[uint32]hello), direct: make(map[uint32]hello),
		away: make(map[uint32]bool), holds: make(map[uint32]archive.Epoch),
		read: make(map[uint32]int), reached: make(map[uint32]uint64),
	}
	for _, m := range c.Roster.Replicas {
		var b [32]byte
		if _, err := io.ReadFull(c.Rand, b[:]); err != nil {
			return nil, fmt.Errorf("draw challenge: %w", err)
		}
		if m.ID != c.ID {
			k.asked[m.ID] = b
		}
	}
	return k, nil
}

// hello is a device's fresh answer to a peer's challenge.
type hello struct {
	from, to    uint32
	challenge   [32]byte
	attestation trust.Attestation
	statement   trust.Statement // what it says, once checked
}

// Bytes returns be32 from || be32 to || challenge || attestation.
func (h hello) Bytes() []byte {
	b := binary.BigEndian.AppendUint32(nil, h.from)
	b = binary.BigEndian.AppendUint32(b, h.to)
	return append(append(b, h.challenge[:]...), h.attestation...)
}

func parseHello(b []byte) (h hello, err error) {
	if len(b) < 40 || len(b) > 40+trust.MaxAttestation {
		return h, fmt.Errorf("hello: %w: %d bytes", archive.ErrFormat, len(b))
	}
	h.from, h.to = binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	copy(h.challenge[:], b[8:])
	h.attestation = slices.Clone(b[40:])
	return h, nil
}

// newerThan orders the hellos of one replica by what its device has come to: the
// head, then the counter, then a tick on top of them.
func (h hello) newerThan(o hello) bool {
	a, b := h.statement, o.statement
	return cmp.Or(cmp.Compare(a.Slots.Epoch, b.Slots.Epoch), cmp.Compare(a.Counter, b.Counter), cmp.Compare(a.Slots.Tick, b.Slots.Tick)) > 0
}

// maxGreetings bounds how often one peer is greeted in a phase. A correct one is
// once for each of its processes, and once for each epoch that it comes to build on.
const maxGreetings = 64

// greet shows a peer our challenge and takes its answer.
func (p *phase) greet(ctx context.Context, x *peer) error {
	if x.greetings == maxGreetings {
		return &badItem{itemHello, errors.New("wants to be greeted too often")}
	}
	ctx, cancel := context.WithTimeout(ctx, maxPoll+p.Timeout)
	defer cancel()
	h := hello{from: x.ID, to: p.ID, challenge: p.asked[x.ID]}
	resp, err := p.request(ctx, x, http.MethodPost, pathHello, bytes.NewReader(h.challenge[:]))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if h.attestation, err = io.ReadAll(io.LimitReader(resp.Body, trust.MaxAttestation+1)); err != nil {
		return err
	}
	if h, err = p.takeAnswer(h); err != nil {
		return &badItem{itemHello, err}
	}
	p.show(x, h)
	x.greeted, x.heard = resp.Header.Get(headerRun), max(x.heard, x.next)
	x.greetings++
	if archive.Epoch(h.statement.Slots.Epoch) > p.newestEpoch() {
		return p.fetchHistory(ctx, x)
	}
	return nil
}

// show publishes a peer's answer if it is news to those who read of that peer on
// no other board: they keep the newest.
func (p *phase) show(x *peer, h hello) {
	if x.greetings == 0 || h.newerThan(x.shown) {
		x.shown = h
		p.board.publish(itemHello, h.Bytes())
	}
}

// serveHello answers a peer's challenge with a fresh attestation.
func (p *phase) serveHello(w http.ResponseWriter, r *http.Request) {
	from, err := wire.PeerID(r.TLS, p.Roster)
	var challenge [32]byte
	if _, short := io.ReadFull(r.Body, challenge[:]); err != nil || short != nil || from == p.ID {
		http.Error(w, "bad hello", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), maxPoll)
	defer cancel()
	if p.know.wait(ctx, func() (bool, error) { return p.opened, nil }) != nil {
		http.Error(w, "not open yet", http.StatusServiceUnavailable)
		return
	}
	att, err := p.answerHello(ctx, from, challenge)
	if err != nil {
		p.log.Error("answer hello", "peer", from, "err", err)
		http.Error(w, "device failed", http.StatusInternalServerError)
		return
	}
	w.Header().Set(headerRun, p.board.run)
	w.Header().Set("Content-Length", strconv.Itoa(len(att)))
	w.Write(att)
}

// answerHello attests to our slots under a nonce of the hello's own context: a
// challenge can never be a vote. Of one peer's hellos it answers one at a time, so
// that nobody fills the places of those who wait for the device.
func (p *phase) answerHello(ctx context.Context, from uint32, challenge [32]byte) (trust.Attestation, error) {
	leave, err := enter(ctx, p.helloing[from])
	if err != nil {
		return nil, err
	}
	defer leave()
	att, err := p.MAS.Lookup(ctx, archive.HelloNonce(p.id, p.ID, from, challenge))
	if err == nil {
		p.know.update(func() { p.challenges[from] = challenge; p.away[from] = false })
	}
	return att, err
}

// places returns one place to enter for each replica.
func places(r *archive.Roster) map[uint32]chan struct{} {
	all := make(map[uint32]chan struct{})
	for _, m := range r.Replicas {
		all[m.ID] = make(chan struct{}, 1)
	}
	return all
}

// takeHello checks a hello and keeps it if it is news.
func (p *phase) takeHello(h hello) (hello, error) {
	st, err := p.Roster.VerifyAttested(archive.Attested{Replica: h.from, Attestation: h.attestation},
		archive.HelloNonce(p.id, h.from, h.to, h.challenge))
	if err != nil {
		return h, fmt.Errorf("hello of replica %d: %w", h.from, err)
	}
	h.statement = st
	p.know.update(func() {
		if old, ok := p.hellos[h.from]; !ok || h.newerThan(old) {
			p.hellos[h.from] = h
		}
	})
	return h, nil
}

// takeAnswer takes the answer to a hello of ours, from the peer itself: how it stands
// now. On a board it may be one of before.
func (p *phase) takeAnswer(h hello) (hello, error) {
	h, err := p.takeHello(h)
	if err != nil {
		return h, err
	}
	p.know.update(func() {
		if !p.hellos[h.from].newerThan(h) {
			p.hellos[h.from] = h
		}
		p.direct[h.from] = h
		p.away[h.from] = h.statement.Mode != trust.ModeUpdate
	})
	return h, nil
}

// buildsOn reports whether a device in this state can vote for the epoch after
// base.
func buildsOn(st trust.Statement, base archive.EpochRecord) bool {
	if st.Mode != trust.ModeUpdate || st.Counter != uint64(base.Epoch) {
		return false
	}
	fresh := st.Slots == trust.Slots{}
	return fresh && base.Epoch == 0 || holdsHead(st.Slots, base)
}

func holdsHead(s trust.Slots, rec archive.EpochRecord) bool {
	return archive.Digest(s.Archive) == rec.Archive && s.Epoch == uint64(rec.Epoch) && archive.Digest(s.Head) == rec.Head()
}

// maxLead bounds how far one hello can push the tick, so that a faulty replica
// cannot use the ticks up.
const maxLead = 16

// nextTick returns 1 + the Q-th lowest of the ticks that replicas attest, at
// least Q of them: Q can join there. It leaves the (f+1)-th highest, which is at
// most a correct replica's, behind by no more than maxLead.
func nextTick(ticks []uint64, f int) uint64 {
	t := slices.Sorted(slices.Values(ticks))
	return 1 + min(t[2*f], leadOf(t, f))
}

// justifies reports whether some Q of the ticks give one at least as high.
func justifies(ticks []uint64, f int, tick uint64) bool {
	t := slices.Sorted(slices.Values(ticks))
	return len(t) > 2*f && tick <= 1+min(t[len(t)-1], leadOf(t, f))
}

func leadOf(sorted []uint64, f int) uint64 {
	h := sorted[len(sorted)-1-f]
	return h + min(maxLead, math.MaxUint64-1-min(h, math.MaxUint64-1))
}

// freeTick is the newest tick that a hello's replica cannot join any more. One
// that it joined in this very boot it is still in.
func freeTick(st trust.Statement) uint64 {
	if st.Slots.Tick > 0 && st.Slots.Boot == st.Counts {
		return st.Slots.Tick - 1
	}
	return st.Slots.Tick
}

// present returns how many replicas, with this one, are here to build on base,
// for all that anybody has shown of them. It wants know.
func (p *phase) present() int {
	n := 1
	for _, h := range p.direct {
		if buildsOn(h.statement, p.base) && buildsOn(p.hellos[h.from].statement, p.base) {
			n++
		}
	}
	return n
}

// spent is the newest tick that we cannot join any more.
func (p *phase) spent() uint64 {
	if t := p.statement.Slots.Tick; t == 0 || t != p.unsaid {
		return t
	}
	return p.unsaid - 1
}

// ticks returns what the hellos for base and our own slots attest, by of. It
// wants know.
func (p *phase) ticks(of func(trust.Statement) uint64) []uint64 {
	all := []uint64{p.spent()}
	for _, h := range p.hellos {
		if h.from != p.ID && buildsOn(h.statement, p.base) {
			all = append(all, of(h.statement))
		}
	}
	return all
}

// gather exchanges hellos until Q replicas are here, and the others are or the
// grace is over, and returns the tick that they give; 0 if there is nothing left
// to take part in. An attempt that an earlier process of this boot joined comes
// first.
func (p *phase) gather(ctx context.Context) (uint64, error) {
	began := time.Now()
	if tick := p.interrupted(); tick > 0 {
		p.log.Info("taking up the attempt again", "epoch", p.base.Epoch+1, "tick", tick)
		return tick, nil
	}
	stop := p.follow(ctx, p.takeEarly)
	defer stop()
	window := time.Now().Add(p.Roster.Limits.Join.Std())
	for {
		tick, err := p.gatherTick(ctx, window)
		switch {
		case errors.Is(err, errBehind):
			if err := p.catchUp(ctx); err != nil { // 3. from the newest certified epoch
				return 0, err
			}
		case err != nil || tick == 0:
			return tick, err
		case tick > p.spent():
			p.step(StepTick, began, "epoch", p.base.Epoch+1, "tick", tick)
			return tick, nil
		default:
			return p.abstain(ctx)
		}
	}
}

var errBehind = errors.New("peers have a newer epoch")

// gatherTick waits for company. Being behind comes first.
func (p *phase) gatherTick(ctx context.Context, window time.Time) (tick uint64, err error) {
	joining, cancel := context.WithDeadline(ctx, window)
	defer cancel()
	var over bool
	err = p.know.wait(joining, func() (bool, error) {
		over = p.isOver()
		return over || p.mayJoin(), p.isBehind()
	})
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		over, err = true, p.lookOn(ctx)
	}
	if err == nil && over {
		err = p.leftOut()
	}
	if err != nil || over {
		return 0, err
	}
	grace, cancel := context.WithTimeout(joining, p.Roster.Limits.Grace.Std())
	defer cancel()
	err = p.know.wait(grace, func() (bool, error) {
		return p.present() == p.Roster.N(), p.isBehind()
	})
	if errors.Is(err, errBehind) || ctx.Err() != nil {
		return 0, err
	}
	p.know.Lock()
	live, ticks, spent := p.live(), p.ticks(freeTick), p.spent()
	p.know.Unlock()
	switch {
	case live > spent:
		return live, nil
	case len(ticks) < p.Roster.Quorum(): // some have gone meanwhile
		return p.gatherTick(ctx, window)
	}
	return nextTick(ticks, p.Roster.F), nil
}

// isBehind says whether peers proved a newer epoch, or ours is in doubt and
// enough peers have been heard. It wants know.
func (p *phase) isBehind() error {
	heard := p.inDoubt && len(p.direct) >= p.Roster.Quorum()-1 && p.newest.Epoch >= p.floor()
	if heard || p.newest.Epoch > p.base.Epoch {
		return errBehind
	}
	return nil
}

// mayJoin says whether there is an attempt to join: one that peers are in, or
// the next, for which a quorum is here. It wants know.
func (p *phase) mayJoin() bool {
	return !p.inDoubt && (p.live() > p.spent() || p.present() >= p.Roster.Quorum())
}

// isBurnt says whether the device is ahead of every epoch that we hold a
// certificate of: we can only wait for the others to get there. It wants know.
func (p *phase) isBurnt() bool { return p.floor() > p.newest.Epoch }

// isOver says whether there is nothing more to wait for: we took the newest
// epoch over in this phase, or cannot take part in any, and too many peers have
// left for another. It wants know.
func (p *phase) isOver() bool {
	away := 0
	for _, gone := range p.away {
		if gone {
			away++
		}
	}
	return (p.caughtUp || p.isBurnt()) && away > p.Roster.F && time.Since(p.began) > p.Roster.Limits.Grace.Std() &&
		p.base.Due(p.Roster.Schedule).After(p.Now())
}

// lookOn is what is left when the join window ends without an attempt to join.
// For a device whose counter is burnt, and a quorum beside it, that is the epoch
// which the others make: errBehind, once it is there.
func (p *phase) lookOn(ctx context.Context) error {
	p.know.Lock()
	joined, need, burnt := p.present(), p.Roster.Quorum(), p.isBurnt()
	p.know.Unlock()
	switch {
	case burnt && joined > need:
		return p.know.wait(ctx, func() (bool, error) { return p.isOver(), p.isBehind() })
	case burnt || p.caughtUp:
		return nil
	}
	return &TooFewError{Joined: joined, Need: need}
}

// leftOut says why a phase that is over has left us out, if it has.
func (p *phase) leftOut() error {
	p.know.Lock()
	defer p.know.Unlock()
	if !p.isBurnt() {
		return nil
	}
	return fmt.Errorf("%w: at %d, they at %d", errBurnt, p.floor(), p.newest.Epoch)
}

// abstain sits an attempt out that our slots do not allow, until it is certified, or
// peers move on to one that they do; if neither comes, it begins one.
func (p *phase) abstain(ctx context.Context) (tick uint64, err error) {
	p.log.Info("sitting this attempt out", "epoch", p.base.Epoch+1, "slot", p.statement.Slots.Tick)
	late := time.AfterFunc(p.attemptLimit(), func() { p.know.update(func() { p.want(p.spent() + 1) }) })
	defer late.Stop()
	err = p.know.wait(ctx, func() (bool, error) {
		if p.newest.Epoch > p.base.Epoch {
			return false, errCertified
		}
		tick = p.live()
		return tick > p.spent(), nil
	})
	return tick, err
}

// attemptLimit is how long an attempt may take for one step before who is in it gives
// it up for the next: a faulty replica may have split it.
func (p *phase) attemptLimit() time.Duration { return p.Roster.Limits.Phase.Std() / 3 }

// takeEarly takes from a board what matters before an attempt is joined.
func (p *phase) takeEarly(ctx context.Context, x *peer, it item) error {
	switch it.kind {
	case itemBase:
		return p.takeBase(ctx, x, it.payload)
	case itemHello:
		h, err := parseHello(it.payload)
		if err == nil && h.from != p.ID {
			_, err = p.takeHello(h)
		}
		return err
	case itemJoin:
		_, err := p.takeJoin(x, it.payload)
		return err
	case itemCertificate:
		return p.takeCertificate(ctx, x, it.payload)
	}
	return nil
}

// takeBase notes which epoch a peer builds on. One that has moved since it was
// greeted is greeted again, since its hello is out of date.
func (p *phase) takeBase(ctx context.Context, x *peer, b []byte) error {
	if len(b) != 8+32 {
		return archive.ErrFormat
	}
	epoch := binary.BigEndian.Uint64(b)
	p.know.Lock()
	had := p.direct[x.ID].statement // perhaps of a moment between the head's and the counter's
	stale := had.Slots.Epoch != epoch || had.Counter != epoch || epoch > 0 && had.Slots.Head != [32]byte(b[8:])
	p.know.Unlock()
	if stale && x.next > x.heard {
		var bad *badItem
		if err := p.greet(ctx, x); errors.As(err, &bad) {
			return err
		} else if err != nil {
			return nil // the next pull finds out what is wrong
		}
	}
	if archive.Epoch(epoch) > p.newestEpoch() {
		p.fetchHistory(ctx, x)
	}
	return nil
}

// takeJoin checks a peer's join of any attempt on our base and notes its tick.
// The zero tick says that it is for another base, so nothing to us.
func (p *phase) takeJoin(x *peer, b []byte) (j consensus.Join, err error) {
	if j, err = consensus.ParseJoin(b); err != nil {
		return j, err
	}
	st, err := p.Roster.VerifyAttested(archive.Attested{Replica: j.Manifest.Replica, Attestation: j.Attestation}, j.Nonce())
	if err != nil || j.Manifest.Replica != x.ID {
		return j, fmt.Errorf("join of replica %d from replica %d: %w", j.Manifest.Replica, x.ID, err)
	}
	p.know.Lock()
	base := p.base
	p.know.Unlock()
	if !buildsOn(st, base) {
		return j, nil
	}
	if _, err := checkJoin(p.Roster, base, st.Slots.Tick, j); err != nil {
		return j, err
	}
	p.know.update(func() {
		if p.base.Epoch == base.Epoch {
			p.reached[x.ID] = max(p.reached[x.ID], st.Slots.Tick)
		}
	})
	return j, nil
}

// live is the tick that there is to join: f+1 peers are at it, so a correct one, or
// we want it. It wants know.
func (p *phase) live() uint64 { return max(p.wanted, p.reachedBy(p.Roster.F+1)) }

// reachedBy is the highest tick that n peers have joined, if hellos justify it. It
// wants know.
func (p *phase) reachedBy(n int) uint64 {
	all := slices.Sorted(maps.Values(p.reached))
	if len(all) < n || !justifies(p.ticks(rawTick), p.Roster.F, all[len(all)-n]) {
		return 0
	}
	return all[len(all)-n]
}

// want is for who has waited in vain: tick is joined, or what any peer has joined above
// it. It wants know.
func (p *phase) want(tick uint64) { p.wanted = max(p.wanted, tick, p.reachedBy(1)) }

func rawTick(st trust.Statement) uint64 { return st.Slots.Tick }

// checkJoin checks that j enters the attempt at tick on base: attested in update
// mode by the replica's device, on top of base, in this boot. It is pure.
func checkJoin(r *archive.Roster, base archive.EpochRecord, tick uint64, j consensus.Join) (trust.Statement, error) {
	m := j.Manifest
	st, err := r.VerifyAttested(archive.Attested{Replica: m.Replica, Attestation: j.Attestation}, j.Nonce())
	switch {
	case err != nil:
	case m.Instance != [32]byte(instanceOn(base, tick)):
		err = errors.New("of another attempt")
	case st.Mode != trust.ModeUpdate:
		err = errors.New("attested in service mode")
	case !holdsHead(st.Slots, base) || st.Counter != uint64(base.Epoch):
		err = errors.New("not on top of the epoch before")
	case st.Slots.Tick != tick:
		err = fmt.Errorf("tick slot %d, want %d", st.Slots.Tick, tick)
	case st.Slots.Boot != st.Counts || m.Reset != st.Counts.Reset || m.Restart != st.Counts.Restart:
		err = errors.New("joined in another boot")
	}
	if err != nil {
		return st, fmt.Errorf("join of replica %d: %w: %w", m.Replica, archive.ErrIntegrity, err)
	}
	return st, nil
}

// instanceOn returns the instance of the attempt at tick to make the epoch
// after base.
func instanceOn(base archive.EpochRecord, tick uint64) archive.Digest {
	return archive.Instance(base.Archive, base.Epoch+1, tick, base.Head(), base.Roster)
}

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
