package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
)

func item(n archive.Name, content string) Item {
	return Item{Name: n, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }}
}

func TestAdd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		for range 2 { // doing it again is safe
			res, err := b.Client.Add(t.Context(), []Item{item("y", "same"), item("x", "same"), item("z", "a")})
			if err != nil {
				t.Fatal(err)
			}
			if len(res.Bindings) != 3 || res.Bindings[0] != forge.Bind("x", "same") || res.Status != wire.AckPending {
				t.Errorf("result %+v", res)
			}
			if want := forge.Start.Add(12 * time.Hour); !res.Due.Equal(want) {
				t.Errorf("due %s, want %s", res.Due, want)
			}
		}
		for _, f := range b.fakes {
			if n := f.count("put"); n != 1 {
				t.Errorf("replica %d got %d uploads, want 1: it holds the rest", f.id, n)
			}
		}
	})
}

func TestAddManyNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		var items []Item
		for i := range archive.MaxBindings + 5 {
			items = append(items, item(archive.Name(fmt.Sprintf("n%04d", i)), fmt.Sprint(i%7)))
		}
		res, err := b.Client.Add(t.Context(), items)
		if err != nil || len(res.Bindings) != len(items) {
			t.Fatalf("%d bindings, %v", len(res.Bindings), err)
		}
		if n := b.fakes[0].count("add"); n != 2 {
			t.Errorf("%d submissions, want 2", n)
		}
	})
}

func TestAddFaults(t *testing.T) {
	down := errors.New("connection refused")
	tests := map[string]struct {
		brk    func(b *bed)
		want   error // nil: acknowledged
		within time.Duration
	}{
		"one stopped":      {func(b *bed) { b.stop(1) }, nil, 2 * linger},
		"one down":         {func(b *bed) { b.fakes[0].err = down }, nil, 2 * linger},
		"two stopped":      {func(b *bed) { b.stop(1, 2) }, &NoQuorumError{}, 11 * time.Second},
		"two updating":     {func(b *bed) { b.fakes[0].err, b.fakes[1].err = ErrUpdating, ErrUpdating }, ErrUpdating, 11 * time.Second},
		"one denies":       {refuse(wire.CodeDenied, 1), nil, time.Second},
		"two deny":         {refuse(wire.CodeDenied, 2), ErrDenied, time.Second},
		"two over quota":   {refuse(wire.CodeQuota, 2), ErrQuota, time.Second},
		"a conflict alone": {refuse(wire.CodeConflict, 1), nil, time.Second},
		"two bare claims":  {refuse(wire.CodeConflict, 2), ErrIntegrity, time.Second},
		"two are full":     {refuse(wire.CodeFull, 2), &wire.Error{Code: wire.CodeFull}, 11 * time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, "", "a")
				tt.brk(b)
				within(t, tt.within, func() {
					_, err := b.Client.Add(t.Context(), []Item{item("x", "x")})
					var nq *NoQuorumError
					if _, ok := tt.want.(*NoQuorumError); ok && errors.As(err, &nq) && nq.Need == 3 && nq.Got == 2 {
						return
					}
					wantErr(t, err, tt.want)
				})
			})
		})
	}
}

// refuse makes the first n replicas refuse every submission.
func refuse(code wire.Code, n int) func(b *bed) {
	return func(b *bed) {
		for _, f := range b.fakes[:n] {
			f.addErr = func(archive.Submission) error { return wire.Errorf(code, "no") }
		}
	}
}

// A replica that comes back within the timeout still counts.
func TestAddRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		for _, f := range b.fakes[:2] {
			f.set(func() { f.err = ErrUpdating })
			time.AfterFunc(8*time.Second, func() { f.set(func() { f.err = nil }) })
		}
		if _, err := b.Client.Add(t.Context(), []Item{item("x", "x")}); err != nil {
			t.Error(err)
		}
	})
}

// conflict is what an honest replica refuses a submission with.
func conflict(e forge.Epoch, names ...archive.Name) *wire.Error {
	w := wire.Errorf(wire.CodeConflict, "bound otherwise")
	w.Record, w.Certificate = string(e.Record.Bytes()), e.Certificate.Bytes()
	for _, n := range names {
		w.Conflicts = append(w.Conflicts, wire.Conflict{Name: n, Proof: e.Tree.Prove([]byte(n))})
	}
	return w
}

func TestAddConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a", "b")
		b.stop(1, 2, 3) // one proof suffices
		b.fakes[3].addErr = func(archive.Submission) error { return conflict(b.Newest(), "a") }
		_, err := b.Client.Add(t.Context(), []Item{item("a", "other")})
		var c *ConflictError
		if !errors.As(err, &c) {
			t.Fatal(err)
		}
		if c.Name != "a" || c.Bound.Digest != archive.DigestOf([]byte("a")) || c.Want.Digest != archive.DigestOf([]byte("other")) || c.Record.Epoch != 1 {
			t.Errorf("conflict %+v", c)
		}
	})
}

// What conflicts is left out, the rest is added.
func TestAddConflictOfSome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a", "b")
		for _, f := range b.fakes {
			f.addErr = func(s archive.Submission) error {
				var bad []archive.Name
				for _, x := range s.Bindings {
					if x.Name == "a" || x.Name == "b" && x.Digest != archive.DigestOf([]byte("b")) {
						bad = append(bad, x.Name)
					}
				}
				if bad == nil {
					return nil
				}
				return conflict(b.Newest(), bad...)
			}
		}
		res, err := b.Client.Add(t.Context(), []Item{item("x", "x"), item("a", "other"), item("b", "b")})
		var c *ConflictError
		if !errors.As(err, &c) || c.Name != "a" || len(res.Conflicts) != 1 {
			t.Errorf("error %v", err)
		}
		if len(res.Bindings) != 2 || res.Bindings[0].Name != "b" || res.Bindings[1].Name != "x" {
			t.Errorf("bindings %v", res.Bindings)
		}
	})
}

func TestAddFalseConflicts(t *testing.T) {
	w := forge.New(forge.Options{Seed: "other archive"})
	foreign := w.Advance(forge.Start.Add(time.Hour), nil, forge.Bind("x", "foreign"))
	lies := map[string]func(b *bed) *wire.Error{
		"not bound":       func(b *bed) *wire.Error { return conflict(b.Newest(), "x") },
		"another name":    func(b *bed) *wire.Error { return conflict(b.Newest(), "a") },
		"another archive": func(b *bed) *wire.Error { return conflict(foreign, "x") },
		"bound as asked":  func(b *bed) *wire.Error { return conflict(b.Newest(), "b") },
		"no certificate":  func(b *bed) *wire.Error { e := conflict(b.Newest(), "x"); e.Certificate = nil; return e },
		"proof of garbage": func(b *bed) *wire.Error {
			e := conflict(b.Newest(), "x")
			e.Conflicts[0].Proof = tree.Proof("?")
			return e
		},
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, "", "a", "b")
				b.fakes[0].addErr = func(archive.Submission) error { return lie(b) }
				if _, err := b.Client.Add(t.Context(), []Item{item("b", "b"), item("x", "x")}); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAddRefusesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		limited := forge.New(forge.Options{Seed: "limited", Prefixes: []string{"mine/"}})
		limited.Roster.Limits.ContentSize = 3
		prefixed, err := New(Config{Roster: limited.Roster, Key: limited.Writer, Dial: func(archive.Replica) Peer { return b.fakes[0] }})
		if err != nil {
			t.Fatal(err)
		}
		strange, noKey := b.client(t, ""), b.client(t, "")
		strange.Key, noKey.Key = b.Stranger, nil
		tests := map[string]struct {
			c     *Client
			items []Item
			want  error
		}{
			"bad name":    {b.Client, []Item{item("../x", "x")}, archive.ErrName},
			"twice":       {b.Client, []Item{item("x", "x"), item("x", "y")}, archive.ErrName},
			"stranger":    {strange, []Item{item("x", "x")}, ErrDenied},
			"no key":      {noKey, []Item{item("x", "x")}, ErrDenied},
			"not his":     {prefixed, []Item{item("x", "x")}, ErrDenied},
			"too large":   {prefixed, []Item{item("mine/x", "four")}, ErrQuota},
			"cannot open": {b.Client, []Item{{Name: "x", Open: func() (io.ReadCloser, error) { return nil, io.ErrNoProgress }}}, io.ErrNoProgress},
		}
		for name, tt := range tests {
			_, err := tt.c.Add(t.Context(), tt.items)
			if !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", name, err, tt.want)
			}
		}
		if n := b.fakes[0].count("have"); n != 0 {
			t.Errorf("a replica was asked %d times", n)
		}
	})
}

func TestAddOfAChangingFile(t *testing.T) {
	text := strings.Repeat("t", slabSize) + "ext"
	changes := map[string]string{"other bytes": text[:slabSize] + "exT", "shorter": text[1:], "longer": text + "2", "gone": ""}
	for name, later := range changes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, "")
				var opened atomic.Int32
				it := Item{Name: "x", Open: func() (io.ReadCloser, error) {
					if opened.Add(1) == 1 {
						return io.NopCloser(strings.NewReader(text)), nil
					}
					return io.NopCloser(strings.NewReader(later)), nil
				}}
				_, err := b.Client.Add(t.Context(), []Item{it})
				wantErr(t, err, ErrChanged)
				for _, f := range b.fakes {
					if len(f.contents) != 0 || f.count("add") != 0 {
						t.Errorf("replica %d took it", f.id)
					}
				}
			})
		})
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		b.first = b.first.Add(5*time.Hour + 50*time.Minute)
		res, err := b.Client.Add(t.Context(), []Item{item("x", "x"), item("y", "y")})
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Until(b.began.Add(res.Due.Sub(b.first))), func() { b.phase(20*time.Second, forge.Bind("x", "x"), forge.Bind("y", "other")) })
		results, err := b.Client.Wait(t.Context(), res.Bindings)
		var c *ConflictError
		if !errors.As(err, &c) || c.Name != "y" || c.Bound.Digest != archive.DigestOf([]byte("other")) {
			t.Errorf("error %v", err)
		}
		checkPresent(t, b, results[0])
		if results[0].Record.Epoch != 2 || !errors.As(results[1].Err, &c) {
			t.Errorf("results %+v", results)
		}
		if late := b.wall().Sub(res.Due); late > 30*time.Second {
			t.Errorf("noticed %s after the phase was due", late)
		}
	})
}

// phase takes the services down for d and comes back with a new epoch.
func (b *bed) phase(d time.Duration, bindings ...archive.Binding) {
	for _, f := range b.fakes {
		f.set(func() { f.err = ErrUpdating })
	}
	at := b.wall()
	time.Sleep(d)
	for _, f := range b.fakes {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.err = nil
	}
	b.Advance(at, nil, bindings...)
}

func TestWaitWithinALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := b.Client.Wait(ctx, []archive.Binding{forge.Bind("a", "a"), forge.Bind("x", "x")})
		wantErr(t, err, context.DeadlineExceeded)
		var absent *AbsentError
		if !errors.As(err, &absent) || !strings.Contains(err.Error(), "x: not bound yet") {
			t.Errorf("error %v", err)
		}
		if n := b.fakes[0].count("answer"); n > 20 {
			t.Errorf("asked %d times in a minute", n)
		}
	})
}

func TestSource(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	h := archive.NewContentHasher()
	h.Write(big)
	it := Item{content: h.Content(), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(big)), nil }}
	s, err := openSource(it)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(s)
	if err != nil || !slices.Equal(got, big) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
