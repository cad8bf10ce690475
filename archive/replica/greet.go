package replica

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

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
