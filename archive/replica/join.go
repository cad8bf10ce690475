package replica

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
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
