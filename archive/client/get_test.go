package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

func TestGet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, t.TempDir(), "a", "b", "c")
		for _, f := range b.fakes { // so that all are asked before any has answered
			f.delay = time.Second
		}
		results, err := b.Client.Get(t.Context(), "c", "nobody", "../x", "a")
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range []archive.Name{"c", "nobody", "../x", "a"} {
			if results[i].Name != n {
				t.Errorf("result %d is of %q, want %q", i, results[i].Name, n)
			}
		}
		for _, i := range []int{0, 3} {
			checkPresent(t, b, results[i])
		}
		var absent *AbsentError
		if !errors.As(results[1].Err, &absent) || absent.Record.Epoch != 1 || absent.Pending {
			t.Errorf("nobody: %v", results[1].Err)
		}
		wantErr(t, results[2].Err, archive.ErrName)
		for _, f := range b.fakes {
			if n := f.count("answer"); n != 1 {
				t.Errorf("replica %d was asked for %d answers, want 1 for the session", f.id, n)
			}
		}
	})
}

// A reply that holds fewer proofs than were asked for is no last word.
func TestGetInShortReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []archive.Name
		for i := range 3 * lookupNames {
			names = append(names, archive.Name(fmt.Sprintf("n%03d", i)))
		}
		b := newBed(t, "", names...)
		for _, f := range b.fakes {
			f.limit = 7
		}
		results, err := b.Client.Get(t.Context(), names...)
		if err != nil {
			t.Fatal(err)
		}
		for _, res := range results {
			checkPresent(t, b, res)
		}
		most, asked := 3*(lookupNames/7+2), 0
		for _, f := range b.fakes {
			asked += f.count("proof")
		}
		if asked > most {
			t.Errorf("%d requests for %d names, at most %d", asked, len(names), most)
		}
	})
}

func checkPresent(t *testing.T, b *bed, res Result) {
	t.Helper()
	if res.Err != nil {
		t.Fatalf("%s: %v", res.Name, res.Err)
	}
	if want := archive.DigestOf([]byte(res.Name)); res.Entry.Digest != want {
		t.Errorf("%s: digest %s, want %s", res.Name, res.Entry.Digest, want)
	}
	rc, err := archive.ParseReceipt(res.Receipt.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if e, _, err := rc.Verify(b.Roster); err != nil || e != res.Entry || rc.Name != res.Name {
		t.Errorf("%s: receipt shows %v, %v", res.Name, e, err)
	}
	if res.Profile != trust.ProfileSoftware {
		t.Errorf("%s: profile %q", res.Name, res.Profile)
	}
}

func TestGetDoesNotWaitForTheDead(t *testing.T) {
	breaks := map[string]func(*fake){
		"stopped":  func(f *fake) { f.stopped = true },
		"refused":  func(f *fake) { f.err = errors.New("connection refused") },
		"updating": func(f *fake) { f.err = fmt.Errorf("replica: %w", wire.ErrUpdating) },
		"damaged":  func(f *fake) { f.err = wire.Errorf(wire.CodeDamaged, "tree") },
	}
	for name, brk := range breaks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, "", "a", "b")
				for _, f := range b.fakes[:2] {
					f.set(func() { brk(f) })
				}
				within(t, time.Millisecond, func() { checkPresent(t, b, b.one(t, "a")) })
				within(t, time.Millisecond, func() {
					res, err := b.Client.Get(t.Context(), "a", "b")
					if err != nil {
						t.Fatal(err)
					}
					checkPresent(t, b, res[1])
				})
			})
		})
	}
}

// A source that stops answering after the round costs one hedge, not a timeout.
func TestGetHedgesProofs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a", "b")
		s, err := b.Client.open(t.Context(), wire.AnswerRequest{Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		b.stop(1, 2, 3)
		within(t, 4*hedge, func() {
			if err := s.lookup(t.Context(), []archive.Name{"b"}, make([]shown, 1)); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestGetWithoutQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		b.stop(1, 2)
		b.fakes[2].set(func() { b.fakes[2].err = fmt.Errorf("replica 3: answer: %w", wire.ErrUpdating) })
		began := time.Now()
		_, err := b.Client.Get(t.Context(), "a")
		var nq *NoQuorumError
		if !errors.As(err, &nq) || nq.Need != 2 || nq.Got != 1 {
			t.Fatalf("error %v", err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("gave up after %s, want the timeout", took)
		}
		wantErr(t, err, ErrUpdating)
		want := "1 of 2 needed replicas answered: replica 1: no answer within 10s; replica 2: no answer within 10s; replica 3: answer: in an update phase; replica 4: is at epoch 1"
		if err.Error() != want {
			t.Errorf("text %q, want %q", err, want)
		}
	})
}

// Nothing is waited for when no wait can help.
func TestGetBeforeTheFirstEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		b.Epochs = b.Epochs[:1]
		within(t, time.Millisecond, func() {
			_, err := b.Client.Get(t.Context(), "a")
			wantErr(t, err, &wire.Error{Code: wire.CodeNoEpoch})
		})
	})
}

func TestGetWaitsOutAnUpdatePhase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		for _, f := range b.fakes[:3] {
			f.err = fmt.Errorf("peer: %w", wire.ErrUpdating)
			time.AfterFunc(4*time.Second, func() { f.set(func() { f.err = nil }) })
		}
		within(t, 6*time.Second, func() { checkPresent(t, b, b.one(t, "a")) })
	})
}

func TestGetInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		b.stop(1, 2, 3)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := b.Client.Get(ctx, "a")
		wantErr(t, err, context.Canceled)
	})
}

func TestGetTakesTheHighest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		b.Advance(b.wall(), nil, forge.Bind("b", "b"))
		for _, f := range b.fakes[:2] {
			f.set(func() { f.behind = 1 })
		}
		for range 20 {
			res := b.one(t, "a")
			checkPresent(t, b, res)
		}
		if m, _ := b.Client.seen.load(); m.epoch != 2 {
			t.Errorf("accepted epoch %d, want 2", m.epoch)
		}
	})
}

func TestGetNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := newBed(t, dir, "a")
		b.Advance(b.wall(), nil, forge.Bind("b", "b"))
		b.one(t, "b")
		for _, f := range b.fakes[:2] {
			f.set(func() { f.behind = 1 })
		}
		fresh := b.client(t, dir) // another process
		res, err := fresh.Get(t.Context(), "b")
		if err != nil || res[0].Record.Epoch != 2 {
			t.Fatalf("with two rolled back: %v", err)
		}
		b.fakes[2].set(func() { b.fakes[2].behind = 1 })
		within(t, time.Millisecond, func() {
			_, err = fresh.Get(t.Context(), "a")
			wantErr(t, err, ErrStale)
		})
		_, err = b.client(t, "").Get(t.Context(), "a")
		if err != nil {
			t.Errorf("who has seen nothing cannot know: %v", err)
		}
	})
}

func TestGetRefusesAFork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := newBed(t, dir, "a")
		other := b.Fork(b.wall(), nil, forge.Bind("b", "other"))
		b.Advance(b.wall(), nil, forge.Bind("b", "b"))
		b.one(t, "a")
		for _, f := range b.fakes {
			f.set(func() { f.fork = &other })
		}
		_, err := b.Client.Get(t.Context(), "a")
		wantErr(t, err, ErrIntegrity)
	})
}

func TestAbsence(t *testing.T) {
	at := forge.Start.Add(6 * time.Hour)
	tests := map[string]struct {
		prepare func(t *testing.T, b *bed)
		want    error // nil: believed
	}{
		"current":               {func(t *testing.T, b *bed) {}, nil},
		"two stopped":           {func(t *testing.T, b *bed) { b.stop(1, 3) }, nil},
		"two reset, two asked":  {func(t *testing.T, b *bed) { b.Disturb(1); b.Disturb(2) }, nil},
		"three reset":           {func(t *testing.T, b *bed) { b.Disturb(1); b.Disturb(2); b.Disturb(3) }, ErrStale},
		"one reset, two absent": {func(t *testing.T, b *bed) { b.Disturb(1); b.stop(2, 3) }, ErrStale},
		"just in time":          {func(t *testing.T, b *bed) { b.first = at.Add(6*time.Hour - time.Second) }, nil},
		"due":                   {func(t *testing.T, b *bed) { b.first = at.Add(6 * time.Hour) }, ErrStale},
		"long overdue":          {func(t *testing.T, b *bed) { b.first = at.Add(600 * time.Hour) }, ErrStale},
		"two did not join": {func(t *testing.T, b *bed) {
			b.Advance(at.Add(30*time.Second), []uint32{1, 2, 3})
			b.stop(1, 2)
		}, ErrStale},
		"one did not join": {func(t *testing.T, b *bed) {
			b.Advance(at.Add(30*time.Second), []uint32{1, 2, 3})
			b.stop(1)
		}, nil},
		"one proves that there is more": {func(t *testing.T, b *bed) {
			b.Advance(at.Add(30*time.Second), []uint32{1, 2, 3}, forge.Bind("nobody", "x"))
			for _, id := range []uint32{1, 2, 3} {
				b.fakes[id-1].set(func() { b.fakes[id-1].behind = 1 })
				b.fakes[id-1].set(func() { b.fakes[id-1].delay = time.Second }) // so that replica 4 is heard first
			}
			for id, c := range b.Counts { // their devices say so too
				b.SetCounts(id, trust.Counts{Reset: c.Reset - 1})
			}
			b.SetCounts(4, trust.Counts{Reset: 2})
		}, ErrStale},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, "", "a")
				tt.prepare(t, b)
				res, err := b.Client.Get(t.Context(), "nobody", "a")
				if err != nil {
					t.Fatal(err)
				}
				var absent *AbsentError
				if believed := errors.As(res[0].Err, &absent); believed != (tt.want == nil) {
					t.Errorf("absence: %v, want %v", res[0].Err, tt.want)
				}
				if tt.want != nil {
					wantErr(t, res[0].Err, tt.want)
				}
				checkPresent(t, b, res[1]) // a name that is there is right whatever the hour
			})
		})
	}
}

// The clock is looked at when an absence is used, not when the answers came.
func TestAbsenceAgesWhileItIsLookedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		s, err := b.Client.open(t.Context(), wire.AnswerRequest{Name: "nobody"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		lead := s.group(s.head)[0]
		p := shown{lead.Proof, lead.View}
		var absent *AbsentError
		if err := s.result("nobody", p).Err; !errors.As(err, &absent) {
			t.Fatalf("now: %v", err)
		}
		time.Sleep(6 * time.Hour)
		wantErr(t, s.result("nobody", p).Err, ErrStale)
	})
}

func TestAbsentButPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		b.fakes[3].pending["new"] = true
		b.stop(1)
		var absent *AbsentError
		within(t, time.Millisecond, func() {
			if res := b.one(t, "new"); !errors.As(res.Err, &absent) || !absent.Pending {
				t.Fatalf("new: %+v", res.Err)
			}
		})
		if want := forge.Start.Add(12 * time.Hour); !absent.Due.Equal(want) {
			t.Errorf("due %s, want %s", absent.Due, want)
		}
	})
}

func TestWarnings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		b.Advance(b.wall(), []uint32{1, 2, 3})
		b.Disturb(2)
		b.fakes[2].set(func() { b.fakes[2].behind = 1 })
		b.fakes[0].set(func() { b.fakes[0].err = wire.ErrPin })
		b.first = b.first.Add(7 * time.Hour)
		s, err := b.Client.open(t.Context(), wire.AnswerRequest{Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		for s.receive(nil) {
		}
		lead := s.group(s.head)[0]
		res := s.result("a", shown{lead.Proof, lead.View})
		if !res.Overdue || res.Age < 7*time.Hour {
			t.Errorf("overdue %v, age %s", res.Overdue, res.Age)
		}
		text := strings.Join(res.Warnings, "\n")
		for _, want := range []string{
			"replica 2 was reset out of turn since epoch 2: counts 4.0, were 3.0",
			"replica 3 is behind: at epoch 1",
			"replica 4 did not join epoch 2",
			"an update phase has been due since 2026-11-23T12:00:00Z",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("no warning %q in\n%s", want, text)
			}
		}
	})
}

// Liars are as good as dead: the two others decide.
func TestLyingAnswers(t *testing.T) {
	w := forge.New(forge.Options{Seed: "other archive"})
	foreign := w.Advance(forge.Start.Add(time.Hour), nil, forge.Bind("a", "foreign"))
	lies := map[string]func(b *bed, f *fake, a archive.Answer) archive.Answer{
		"empty":     func(b *bed, f *fake, a archive.Answer) archive.Answer { return archive.Answer{} },
		"another's": func(b *bed, f *fake, a archive.Answer) archive.Answer { a.Replica = 4; return a },
		"another archive": func(b *bed, f *fake, a archive.Answer) archive.Answer {
			return w.Answer(f.id, foreign, trust.Nonce{}, nil)
		},
		"old nonce": func(b *bed, f *fake, a archive.Answer) archive.Answer {
			return b.Answer(f.id, b.Newest(), trust.Nonce{1}, a.Proof)
		},
		"no proof": func(b *bed, f *fake, a archive.Answer) archive.Answer { a.Proof = nil; return a },
		"proof of another name": func(b *bed, f *fake, a archive.Answer) archive.Answer {
			a.Proof = b.Newest().Tree.Prove([]byte("zzz"))
			return a
		},
		"forged tree": func(b *bed, f *fake, a archive.Answer) archive.Answer {
			a.Proof = new(tree.Memory).Prove([]byte("a"))
			return a
		},
		"own record": func(b *bed, f *fake, a archive.Answer) archive.Answer {
			e := b.Newest()
			e.Record.Root, e.Record.Names = tree.EmptyRoot(), 0
			e.Certificate = b.Certify(e.Record, 1, f.id)
			a.Record, a.Certificate, a.Proof = string(e.Record.Bytes()), e.Certificate.Bytes(), new(tree.Memory).Prove([]byte("a"))
			return a
		},
		"update mode": func(b *bed, f *fake, a archive.Answer) archive.Answer {
			a.Attestation = b.Newest().Certificate.Votes[0].Attestation
			return a
		},
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, "", "a", "b", "y")
				for _, f := range b.fakes[:2] {
					f.lie = func(a archive.Answer) archive.Answer { return lie(b, f, a) }
				}
				within(t, time.Millisecond, func() { checkPresent(t, b, b.one(t, "a")) })
				b.fakes[2].stopped = true
				_, err := b.Client.Get(t.Context(), "a")
				var nq *NoQuorumError
				if !errors.As(err, &nq) {
					t.Errorf("with one honest replica: %v", err)
				}
			})
		})
	}
}

func TestLyingProofs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []archive.Name
		for i := range 10 * lookupNames {
			names = append(names, archive.Name(fmt.Sprintf("n%03d", i)))
		}
		b := newBed(t, "", names...)
		for _, f := range b.fakes[:3] {
			f.liePage = func(p tree.Proof) tree.Proof { p = slices.Clone(p); p[len(p)-1] ^= 1; return p }
		}
		results, err := b.Client.Get(t.Context(), names...)
		if err != nil {
			t.Fatal(err)
		}
		for _, res := range results {
			checkPresent(t, b, res)
		}
		if n := b.fakes[0].count("proof"); n > 2*lookups {
			t.Errorf("a liar was asked for %d proofs", n)
		}
	})
}

// An epoch that ends in the middle of a session starts another session.
func TestGetFollowsToANewEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []archive.Name
		for i := range 40 {
			names = append(names, archive.Name(fmt.Sprintf("n%02d", i)))
		}
		b := newBed(t, "", names...)
		b.Advance(b.wall(), nil)
		for _, f := range b.fakes {
			f.set(func() { f.behind = 1 })
			f.liePage = func(p tree.Proof) tree.Proof { f.set(func() { f.behind = 0 }); return p }
		}
		results, err := b.Client.Get(t.Context(), names...)
		if err != nil {
			t.Fatal(err)
		}
		for _, res := range results {
			checkPresent(t, b, res)
		}
	})
}

func TestList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []archive.Name
		for i := range 700 {
			names = append(names, archive.Name(fmt.Sprintf("d%d/n%03d", i%2, i)))
		}
		b := newBed(t, "", names...)
		slices.Sort(names)
		for _, prefix := range []string{"", "d", "d0/", "d1/n6", "d1/n699", "e", "d0"} {
			var want []archive.Name
			for _, n := range names {
				if strings.HasPrefix(string(n), prefix) {
					want = append(want, n)
				}
			}
			if got := b.list(t, prefix, nil); !slices.Equal(got, want) {
				t.Errorf("ls %q: %d names, want %d", prefix, len(got), len(want))
			}
		}
		for _, f := range b.fakes[:2] {
			f.liePage = func(p tree.Proof) tree.Proof { return b.Newest().Tree.ProveRange([]byte("d1/n500"), nil, 3) }
		}
		if got := b.list(t, "", nil); !slices.Equal(got, names) {
			t.Errorf("with liars: %d names, want %d", len(got), len(names))
		}
	})
}

// A page that leaves names out, or that is about others than were asked for, is
// refused: the chain of pages has no gap and no overlap.
func TestListChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []archive.Name
		for i := range 6000 {
			names = append(names, archive.Name(fmt.Sprintf("n%04d", i)))
		}
		b := newBed(t, "", names...)
		m := b.Newest().Tree
		from := []byte("n0255\x00") // where the first page, of 256 names, ends
		for what, p := range map[string]tree.Proof{
			"gap":         m.ProveRange([]byte("n0257"), nil, 4096),
			"overlap":     m.ProveRange([]byte("n0000"), nil, 4096), // the names it shares are not said twice
			"before":      m.ProveRange([]byte("n0000"), nil, 100),
			"one name":    m.ProveRange(from, nil, 1),
			"end":         m.ProveRange([]byte("n5999"), nil, 10),
			"hole within": m.Prove([]byte("n3000")),
		} {
			for _, f := range b.fakes {
				f.set(func() { f.liePage = func(tree.Proof) tree.Proof { return p } })
			}
			got, err := b.listed(t, "")
			if err == nil || len(got) < 256 || len(got) == len(names) {
				t.Errorf("%s: %d names, %v", what, len(got), err)
			}
			if !slices.Equal(got, names[:len(got)]) {
				t.Errorf("%s: a listing that is not the beginning of the right one", what)
			}
			for _, f := range b.fakes[1:] {
				f.set(func() { f.liePage = nil })
			}
			if got := b.list(t, "", nil); !slices.Equal(got, names) {
				t.Errorf("%s, from one of four: %d names, want %d", what, len(got), len(names))
			}
		}
	})
}

// A listing holds a page or two in memory, however long it is.
func TestListMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []archive.Name
		for i := range 50_000 {
			names = append(names, archive.Name(fmt.Sprintf("%s/%05d", strings.Repeat("long", 50), i)))
		}
		b := newBed(t, "", names...)
		heap := func() int64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		before, least, n := heap(), int64(math.MaxInt64), 0
		_, err := b.Client.List(t.Context(), "", func(got archive.Name, _ archive.Entry) error {
			if got != names[n] {
				t.Fatalf("got %s, want %s", got, names[n])
			}
			if n++; n%2500 == 0 && n > len(names)/2 { // the replicas' own work comes and goes
				least = min(least, heap()-before)
			}
			return nil
		})
		if err != nil || n != len(names) {
			t.Fatalf("%d names, %v", n, err)
		}
		if all := int64(len(names) * (len(names[0]) + archive.EntrySize)); least > all/3 {
			t.Errorf("%d bytes more in use within a listing of %d", least, all)
		}
	})
}

// listed is what List passes on before it ends, and how it ends.
func (b *bed) listed(t *testing.T, prefix string) (got []archive.Name, err error) {
	t.Helper()
	_, err = b.Client.List(t.Context(), prefix, func(n archive.Name, _ archive.Entry) error {
		got = append(got, n)
		return nil
	})
	return got, err
}

func (b *bed) list(t *testing.T, prefix string, want error) []archive.Name {
	t.Helper()
	got, err := b.listed(t, prefix)
	wantErr(t, err, want)
	return got
}

// A listing that an update phase interrupts goes on, as of its first epoch.
func TestListAcrossEpochs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []archive.Name
		for i := range 2000 {
			names = append(names, archive.Name(fmt.Sprintf("n%04d", i)))
		}
		b := newBed(t, "", names...)
		b.Advance(b.wall(), nil, forge.Bind("n0000.5", "x"), forge.Bind("n1999.5", "x"))
		for _, f := range b.fakes {
			f.set(func() { f.behind, f.limit = 1, leastPage })
			f.liePage = func(p tree.Proof) tree.Proof { f.set(func() { f.behind = 0 }); return p }
		}
		if got := b.list(t, "", nil); !slices.Equal(got, names) {
			t.Errorf("%d names, want %d", len(got), len(names))
		}
	})
}

func TestListThatIsStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a", "b")
		b.first = b.first.Add(7 * time.Hour)
		if got := b.list(t, "", ErrStale); !slices.Equal(got, []archive.Name{"a", "b"}) {
			t.Errorf("names %v", got)
		}
		stop := errors.New("stop")
		_, err := b.Client.List(t.Context(), "", func(archive.Name, archive.Entry) error { return stop })
		wantErr(t, err, stop)
	})
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		b.stop(2)
		b.fakes[2].set(func() { b.fakes[2].err = wire.ErrUpdating })
		sts := b.Client.Status(t.Context())
		if len(sts) != 4 || sts[0].Err != nil || sts[0].Verified == nil || sts[0].Status.Epoch != 1 {
			t.Errorf("status %+v", sts[0])
		}
		if sts[1].Err == nil || !strings.Contains(sts[1].Err.Error(), "no answer within 10s") {
			t.Errorf("replica 2: %v", sts[1].Err)
		}
		wantErr(t, sts[2].Err, ErrUpdating)
	})
}

// Replicas that are behind do not hide what f+1 up-to-date ones prove, however
// late those answer.
func TestGetIsNotHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		b.first = b.first.Add(6 * time.Hour)
		b.Advance(b.wall().Add(-time.Minute), []uint32{2, 3, 4}, forge.Bind("b", "b"))
		for _, f := range b.fakes[:2] {
			f.set(func() { f.behind = 1 })
		}
		b.fakes[2].delay, b.fakes[3].delay = 3*time.Second, 3*time.Second
		if got := b.list(t, "", nil); !slices.Equal(got, []archive.Name{"a", "b"}) {
			t.Errorf("ls: %v", got)
		}
		checkPresent(t, b, b.one(t, "b"))
		fresh := b.client(t, "")
		within(t, time.Second, func() {
			res, err := fresh.Get(t.Context(), "a")
			if err != nil || res[0].Record.Epoch != 1 || !res[0].Overdue {
				t.Errorf("a: %+v, %v", res, err)
			}
		})
		res, err := fresh.Get(t.Context(), "a", "b", "nobody")
		if err != nil {
			t.Fatal(err)
		}
		var absent *AbsentError
		if res[1].Err != nil || res[1].Record.Epoch != 2 || !errors.As(res[2].Err, &absent) {
			t.Errorf("b: %v, nobody: %v", res[1].Err, res[2].Err)
		}
	})
}

// Long overdue, with two stopped, what is there still comes at once.
func TestGetOverdueWithTwoStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		b.first = b.first.Add(19 * time.Hour)
		b.stop(1, 2)
		within(t, time.Second/2, func() { checkPresent(t, b, b.one(t, "a")) })
		wantErr(t, b.one(t, "nobody").Err, ErrStale)
	})
}
