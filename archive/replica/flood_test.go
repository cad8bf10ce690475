package replica

import (
	"context"
	"crypto/ed25519"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

var flooded = flag.Int("flood", 8000, "names that one writer of TestFlood adds")

// One writer floods all replicas with Adds, beyond his quota, while another adds
// one a second. He is told that it is his quota; all that the other has
// acknowledged is bound in the next epoch.
func TestFlood(t *testing.T) {
	t.Parallel()
	f := newFlood(t, *flooded)
	over, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); f.drip(over) }()
	began := time.Now()
	f.pour()
	poured := time.Since(began)
	close(over)
	<-done
	for _, s := range f.services {
		s.stop()
	}
	began = time.Now()
	f.phase(t.Context(), f.all()...)
	rec := f.agreed(1, f.all()...)
	if f.refused == 0 || f.accepted < f.quota-lanes*archive.MaxBindings {
		t.Errorf("%d names of the flood taken by 2f+1, %d refusals; its quota is %d", f.accepted, f.refused, f.quota)
	}
	if len(f.dripped) == 0 || rec.Names != uint64(f.quota+len(f.dripped)) {
		t.Errorf("%d names in the epoch, want %d of the flood and %d of the other writer", rec.Names, f.quota, len(f.dripped))
	}
	for _, n := range f.dripped {
		if e, ok := f.entry(1, n); !ok || e.Epoch != 1 {
			t.Errorf("%s: bound %v in epoch %d", n, ok, e.Epoch)
		}
	}
	t.Logf("%d names poured in %s, %d taken, %d submissions refused: %v; of the other writer %d, slowest %s; phase %s",
		*flooded, poured.Round(time.Millisecond), f.accepted, f.refused, f.why, len(f.dripped), f.slowest.Round(time.Millisecond),
		time.Since(began).Round(time.Millisecond))
}

// flood is an archive with two writers, whose service processes run.
type flood struct {
	*cluster
	services []*served
	other    ed25519.PrivateKey
	quota    int // names of the first writer
	names    int // that he adds

	mu                sync.Mutex
	accepted, refused int   // names, submissions
	why               error // of the first refusal
	dripped           []archive.Name
	slowest           time.Duration
}

func newFlood(t *testing.T, names int) *flood {
	f := &flood{names: names, quota: names * 9 / 10 / archive.MaxBindings * archive.MaxBindings}
	public, other, err := ed25519.GenerateKey(nil)
	must(t, err)
	f.other = other
	f.cluster = newClusterOf(t, 4, func(r *archive.Roster) {
		r.Limits.Phase = archive.Duration(10 * time.Minute)
		r.Writers[0].Names = uint64(f.quota)
		r.Writers = append(r.Writers, archive.Writer{Key: archive.PublicKey(public), Names: 1 << 20, Bytes: 1 << 40})
	})
	for _, r := range f.Replicas {
		must(t, r.MAS.Lock(t.Context()))
		f.services = append(f.services, startService(t, f.Archive, r))
	}
	for _, s := range f.services { // the content of all names
		up := archive.SignUpload(f.Writer, f.Roster.ID(), archivetest.ContentOf([]byte("shared")))
		must(t, s.client.PutContent(t.Context(), up, 6, strings.NewReader("shared")))
	}
	return f
}

// add sends a submission to all replicas at once, and returns how many took it.
func (f *flood) add(ctx context.Context, sub archive.Submission) (took int, err error) {
	errs := make([]error, len(f.services))
	var all sync.WaitGroup
	for i, s := range f.services {
		all.Go(func() { _, errs[i] = s.client.Add(ctx, sub) })
	}
	all.Wait()
	for _, one := range errs {
		if one == nil {
			took++
		} else {
			err = one
		}
	}
	return took, err
}

// lanes is how many submissions of the flood are on their way at once. Which of
// the last ones a replica finds beyond the quota is chance.
const lanes = 4

// pour adds the flood.
func (f *flood) pour() {
	c := archivetest.ContentOf([]byte("shared"))
	next := make(chan int)
	var all sync.WaitGroup
	for range lanes {
		all.Go(func() {
			for from := range next {
				sub := archive.Submission{Archive: f.Roster.ID(), Created: time.Now().UTC().Truncate(time.Second)}
				for i := range archive.MaxBindings {
					sub.Bindings = append(sub.Bindings, archive.Binding{Name: archive.Name(fmt.Sprintf("flood/%09d/of-a-writer-without-measure", from+i)), Content: c})
				}
				sub.Sign(f.Writer)
				f.poured(f.add(f.t.Context(), sub))
			}
		})
	}
	for n := 0; n < f.names; n += archive.MaxBindings {
		next <- n
	}
	close(next)
	all.Wait()
}

func (f *flood) poured(took int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if took >= f.Roster.Quorum() {
		f.accepted += archive.MaxBindings
	}
	if err == nil {
		return
	}
	if f.refused++; f.refused == 1 {
		f.why = err
	}
	if !errors.Is(err, &wire.Error{Code: wire.CodeQuota}) || !strings.Contains(err.Error(), fmt.Sprintf("allowed %d and", f.quota)) {
		f.t.Errorf("the flood is refused for another reason than its quota: %v", err)
	}
}

// drip adds a name of the other writer each second until the flood is over, and
// three at least.
func (f *flood) drip(over chan struct{}) {
	every := time.Second
	if f.names < 100_000 {
		every /= 20
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 0; ; i++ {
		name := archive.Name(fmt.Sprintf("other/%d", i))
		sub := f.Submission(time.Now(), map[archive.Name][]byte{name: []byte("shared")})
		sub.Sign(f.other)
		began := time.Now()
		if took, err := f.add(f.t.Context(), sub); took < f.Roster.Quorum() {
			f.t.Errorf("%s: taken by %d replicas: %v", name, took, err)
		}
		f.dripped, f.slowest = append(f.dripped, name), max(f.slowest, time.Since(began))
		select {
		case <-over:
			if i >= 2 {
				return
			}
		default:
		}
		<-tick.C
	}
}

// A body has room for each writer, whatever another has sent before; what is
// taken fits.
func TestRoom(t *testing.T) {
	a, b, c := archive.KeyID{1}, archive.KeyID{2}, archive.KeyID{3}
	r := room{each: 10, common: 30}
	for _, x := range []struct {
		used   map[archive.KeyID]uint64
		writer archive.KeyID
		size   uint64
		want   bool
	}{
		{nil, a, 10, true},
		{nil, a, 40, true},
		{nil, a, 41, false},
		{map[archive.KeyID]uint64{a: 40}, a, 1, false},
		{map[archive.KeyID]uint64{a: 40}, b, 10, true},
		{map[archive.KeyID]uint64{a: 40}, b, 11, false},
		{map[archive.KeyID]uint64{a: 40, b: 10}, b, 1, false},
		{map[archive.KeyID]uint64{a: 25, b: 20}, c, 15, true},
		{map[archive.KeyID]uint64{a: 25, b: 20}, c, 16, false},
		{map[archive.KeyID]uint64{a: 25, b: 20}, a, 5, true},
		{map[archive.KeyID]uint64{a: 25, b: 20}, a, 6, false},
	} {
		if got := r.fits(x.used, x.writer, x.size); got != x.want {
			t.Errorf("%v, %d more of %d: %v", x.used, x.size, x.writer[0], got)
		}
	}
	for _, n := range []int{0, 1, 2, 16, 1000} {
		if r := roomFor(n); r.each*uint64(max(n, 1))+r.common > maxBody || r.each == 0 {
			t.Errorf("%d writers: %+v", n, r)
		}
	}
}

// What does not fit into the body that the buffer will make is refused as over
// quota, and makes room again when it is dropped; others have theirs.
func TestPendingRoom(t *testing.T) {
	a, now := archivetest.NewRoster(t, 4), time.Now()
	_, other, err := ed25519.GenerateKey(nil)
	must(t, err)
	path := filepath.Join(t.TempDir(), pendingFile)
	p := openBuffer(t, path)
	w := archive.Writer{Names: 1000, Bytes: 1 << 30}
	sub := func(i int) archive.Submission {
		return a.Submission(now, map[archive.Name][]byte{archive.Name(fmt.Sprintf("n/%03d", i)): []byte("x")})
	}
	size := bodySize(sub(0))
	narrow := room{each: 2 * size, common: 3 * size}
	p.room = narrow
	for i := range 5 {
		must(t, p.Admit(sub(i), w))
	}
	must(t, p.close())
	p = openBuffer(t, path) // it is counted again from the rows
	defer p.close()
	p.room = narrow
	if err := p.Admit(sub(5), w); !errors.Is(err, ErrQuota) || !strings.Contains(err.Error(), "do not fit into the next update phase") {
		t.Errorf("the sixth: %v", err)
	}
	for i := range 3 {
		s := sub(10 + i)
		s.Sign(other)
		if err := p.Admit(s, w); (err == nil) != (i < 2) {
			t.Errorf("another writer's submission %d: %v", i, err)
		}
	}
	must(t, p.Drop([]archive.Digest{sub(0).Digest()}))
	must(t, p.Admit(sub(5), w))
}

// What the disk holds beyond the room of a body waits, and keeps out nobody
// else's.
func TestBodyIsShared(t *testing.T) {
	public, other, err := ed25519.GenerateKey(nil)
	must(t, err)
	a := archivetest.NewRoster(t, 4, func(r *archive.Roster) {
		r.Writers = append(r.Writers, archive.Writer{Key: archive.PublicKey(public), Names: 1 << 20, Bytes: 1 << 40})
	})
	f := &forge{a, t, archive.Genesis(a.Roster)}
	p := f.newTestPhase()
	p.dir = phaseDir(t.TempDir())
	p.store, err = OpenStore(filepath.Join(a.Replicas[0].Dir, storeDir), a.Roster)
	must(t, err)
	defer p.store.Close()
	pending, err := p.store.Pending()
	must(t, err)
	if pending.room != roomFor(2) {
		t.Errorf("room of two writers: %+v", pending.room)
	}
	for i := range 12 {
		s := a.Submission(time.Now(), map[archive.Name][]byte{archive.Name(fmt.Sprintf("n/%03d", i)): []byte("x")})
		if i < 2 {
			s.Sign(other)
		}
		must(t, pending.Put(s))
		pending.room = room{each: 2 * bodySize(s), common: 3 * bodySize(s)}
	}
	m, err := p.newAttempt(1).freeze(t.Context())
	must(t, err)
	body, got := newBodyScanner(p.dir.body(m)), make(map[archive.KeyID]int)
	for {
		raw, _, err := body.next()
		if err != nil {
			break
		}
		s, err := archive.ParseSubmission(raw)
		must(t, err)
		got[s.Writer]++
	}
	if n := got[archive.KeyIDOf(public)]; len(got) != 2 || n != 2 || got[archive.KeyIDOf(a.Writer.Public().(ed25519.PublicKey))] != 5 {
		t.Errorf("the body holds %v, want 5 of the first writer and 2 of the other", got)
	}
}
