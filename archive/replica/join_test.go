package replica

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
)

// newTestPhase returns what replica 1 of the forge knows at the beginning.
func (f *forge) newTestPhase() *phase {
	f.t.Helper()
	c, err := Config{Dir: f.Replicas[0].Dir, ID: 1, Roster: f.Roster, MAS: f.Replicas[0].MAS}.filled()
	if err != nil {
		f.t.Fatal(err)
	}
	p := &phase{Config: c, log: c.Log, id: f.Roster.ID(), base: f.base, members: membersOf(f.Roster), statement: f.Replicas[0].Statement(f.t), helloing: places(f.Roster)}
	if p.knowledge, err = newKnowledge(c); err != nil {
		f.t.Fatal(err)
	}
	return p
}

// face serves a replica's address by h, and returns it as replica 1 sees it in p.
func (f *forge) face(p *phase, id uint32, h http.HandlerFunc) *peer {
	m := f.Replicas[id-1]
	client := wire.NewClient(m.Replica, f.Roster, wire.Options{AgreementKey: f.Replicas[0].AgreementKey, Timeout: p.Timeout})
	f.t.Cleanup(liar(f.t, m, f.Roster, h))
	f.t.Cleanup(client.Close)
	return &peer{Replica: m.Replica, client: client}
}

// hello is a replica's answer to replica to.
func (f *forge) hello(id, to uint32, challenge [32]byte) hello {
	return hello{from: id, to: to, challenge: challenge,
		attestation: f.attest(id, archive.HelloNonce(f.Roster.ID(), id, to, challenge))}
}

func TestHello(t *testing.T) {
	f := newForge(t)
	p := f.newTestPhase()
	h := f.hello(2, 1, p.asked[2])
	if _, err := p.takeAnswer(h); err != nil || p.present() != 2 {
		t.Fatalf("%v, %d present", err, p.present())
	}
	again, err := parseHello(h.Bytes())
	if err != nil || string(again.Bytes()) != string(h.Bytes()) {
		t.Errorf("parsed %+v, %v", again, err)
	}
	if _, err := p.takeHello(f.hello(3, 4, [32]byte{7})); err != nil || p.present() != 2 || len(p.hellos) != 2 {
		t.Errorf("a hello to another: %v, %d present, %d known", err, p.present(), len(p.hellos))
	}
	for name, spoil := range map[string]func(*hello){
		"another challenge": func(h *hello) { h.challenge[0]++ },
		"another asker":     func(h *hello) { h.to = 4 },
		"another replica":   func(h *hello) { h.from = 3 },
		"no replica":        func(h *hello) { h.from = 77 },
	} {
		x := h
		spoil(&x)
		if _, err := p.takeHello(x); !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := f.Replicas[1].MAS.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.takeAnswer(f.hello(2, 1, p.asked[2])); err != nil || p.present() != 1 || !p.away[2] {
		t.Errorf("locked: %v, %d present, away %v", err, p.present(), p.away)
	}
	for _, n := range []int{0, 39, 41 + trust.MaxAttestation} {
		if _, err := parseHello(make([]byte, n)); err == nil {
			t.Errorf("%d bytes parsed", n)
		}
	}
}

// asking is a device that says what it is asked, and does not answer yet.
type asking struct {
	trust.MAS
	asked  chan trust.Nonce
	answer chan struct{} // closed: it answers
}

func (d *asking) Lookup(ctx context.Context, n trust.Nonce) (trust.Attestation, error) {
	d.asked <- n
	<-d.answer
	return d.MAS.Lookup(ctx, n)
}

// While one peer has many hellos under way, and the device is at the first of them,
// it is asked for another peer's, which then shares its next signature.
func TestHelloBesideMany(t *testing.T) {
	c := newCluster(t, 4)
	c.reset(1)
	_, err := played(t.Context(), c.config(1), nil, func(ctx context.Context, p *phase) (Outcome, error) {
		d := &asking{p.MAS, make(chan trust.Nonce, 100), make(chan struct{})}
		p.MAS = d
		var all sync.WaitGroup
		ask := func(from uint32, challenge [32]byte) {
			all.Go(func() {
				if _, err := p.answerHello(ctx, from, challenge); err != nil {
					t.Errorf("hello of replica %d: %v", from, err)
				}
			})
		}
		for i := range byte(20) {
			ask(2, [32]byte{i})
		}
		<-d.asked
		ask(3, [32]byte{})
		select {
		case n := <-d.asked:
			if n != archive.HelloNonce(p.id, 1, 3, [32]byte{}) {
				t.Error("the device is asked for two hellos of one peer at once")
			}
		case <-time.After(10 * time.Second):
			t.Error("one peer's hellos keep another's waiting")
		}
		for range 1000 {
			runtime.Gosched() // the others may come, if they can
		}
		if n := len(d.asked); n > 0 {
			t.Errorf("the device is asked for %d more", n)
		}
		close(d.answer)
		all.Wait()
		return Outcome{}, nil
	})
	must(t, err)
}

// A replica that has answered us, and has shown another since then that it has
// moved on, is no company.
func TestGoneSinceHello(t *testing.T) {
	f := newForge(t)
	p := f.newTestPhase()
	for _, id := range []uint32{2, 3} {
		if _, err := p.takeAnswer(f.hello(id, 1, p.asked[id])); err != nil {
			t.Fatal(err)
		}
	}
	s := f.slots(3, 0)
	s.Epoch, s.Head = 1, [32]byte{7}
	f.store(3, s)
	if _, err := p.takeHello(f.hello(3, 4, [32]byte{})); err != nil {
		t.Fatal(err)
	}
	tick, err := p.gatherTick(t.Context(), time.Now().Add(100*time.Millisecond))
	if !errors.Is(err, ErrTooFew) || p.present() != 2 {
		t.Errorf("tick %d, %v, with %d present", tick, err, p.present())
	}
}

// A later tick that hellos justify is followed, unless Q are at ours.
func TestMoveUpRule(t *testing.T) {
	f := newForge(t)
	p := f.newTestPhase()
	a := p.newAttempt(1)
	join := func(id uint32, tick uint64) {
		t.Helper()
		f.store(id, f.slots(id, tick))
		x := &peer{Replica: f.Replicas[id-1].Replica}
		j := f.proposal(id, tick).Join
		got, err := a.takeJoin(x, j.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if got.Manifest.Instance == a.inst {
			a.joins[id] = got
		}
	}
	join(2, 9)
	join(3, 9)
	if p.live() != 0 || a.pointless() != nil {
		t.Errorf("followed to tick %d with nothing to justify it", p.live())
	}
	for _, id := range []uint32{2, 3} {
		f.store(id, f.slots(id, 8))
		if _, err := p.takeHello(f.hello(id, 4, [32]byte{})); err != nil {
			t.Fatal(err)
		}
	}
	if p.live() != 9 || !errors.Is(a.pointless(), errMoveUp) {
		t.Errorf("live tick %d, %v; want to move up to 9", p.live(), a.pointless())
	}
	delete(p.reached, 3)
	a.goOn()
	if err := a.pointless(); err != nil {
		t.Errorf("after one replica alone, at once: %v", err)
	}
	before := time.Now().Add(-2 * p.Roster.Limits.Grace.Std())
	a.moved.Store(before.UnixNano())
	if err := a.pointless(); err != nil {
		t.Errorf("after one replica alone, just seen: %v", err)
	}
	a.passed = before
	if !errors.Is(a.pointless(), errMoveUp) {
		t.Error("not after one replica either, when nobody else comes")
	}
	p.wanted = 0
	join(3, 1)
	join(4, 1)
	a.joins[1] = consensus.Join{}
	if err := a.pointless(); err != nil {
		t.Errorf("with a quorum here: %v", err)
	}
	a.moved.Store(time.Now().Add(-2 * p.attemptLimit()).UnixNano())
	if p.reached[2] = 0; !errors.Is(a.pointless(), errMoveUp) || p.live() != 2 {
		t.Errorf("when a quorum comes to no end: tick %d", p.live())
	}
	if _, err := a.takeJoin(&peer{Replica: f.Replicas[2].Replica}, f.proposal(2, 1).Join.Bytes()); err == nil {
		t.Error("a join on another replica's board was taken")
	}
}

// Two replicas lose their attempt to a reboot; the third, alone in it, follows
// them to the next.
func TestMoveUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.add(c.files(3, "n"), 1, 2, 3)
	c.reset(1, 2, 3)
	for _, id := range []uint32{2, 3} {
		c.devices[id] = &device{c.Replicas[id-1].MAS, func(op string, s trust.Slots) error {
			if op == "store" {
				return errCut
			}
			return nil
		}}
	}
	var all sync.WaitGroup
	joined := make(chan struct{})
	var once sync.Once
	mas := c.Replicas[0].MAS
	c.devices[1] = &device{mas, func(op string, s trust.Slots) error {
		if s.Tick == 1 {
			once.Do(func() { close(joined) })
		}
		return nil
	}}
	config := c.config(1)
	var first result
	all.Go(func() { first.Outcome, first.err = Update(t.Context(), config) })
	c.run(t.Context(), 2, 3)
	<-joined
	c.reset(2, 3)
	for _, id := range []uint32{2, 3} {
		delete(c.devices, id)
		s := trust.Slots{Head: c.Record.Head(), Archive: c.Roster.ID(), Tick: 1}
		if err := c.Replicas[id-1].MAS.Store(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	c.run(t.Context(), 2, 3)
	all.Wait()
	c.last[1] = first
	rec := c.agreed(1, 1, 2, 3)
	if rec.Tick != 2 || rec.Names != 3 || first.Tick != 2 {
		t.Errorf("outcome %+v of %s", first, rec.Bytes())
	}
}

// Waiting ends with its context, and with what is waited for.
func TestWatch(t *testing.T) {
	var w watch
	n := 0
	done := make(chan error)
	go func() { done <- w.wait(t.Context(), func() (bool, error) { return n == 3, nil }) }()
	for range 3 {
		w.update(func() { n++ })
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := w.wait(ctx, func() (bool, error) { return false, nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := w.wait(t.Context(), func() (bool, error) { return false, errCut }); !errors.Is(err, errCut) {
		t.Error(err)
	}
}
