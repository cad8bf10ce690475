package trust

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func nonceOf(i int) (n Nonce) {
	binary.BigEndian.PutUint64(n[:], uint64(i)+1)
	return n
}

// roundOf is a round of n nonces, ready to be signed.
func roundOf(n int) *round {
	r := newRound()
	for i := range n {
		r.leaves = append(r.leaves, leaf(nonceOf(i)))
	}
	r.rows = rowsOver(r.leaves)
	return r
}

// slowDevice is a software device that takes a second to sign.
type slowDevice struct {
	key        ed25519.PrivateKey
	signatures int
	ended      int   // signatures whose context ended
	err        error // instead of one
	state      uint64
}

func newSlowDevice(t *testing.T) *slowDevice {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &slowDevice{key: key}
}

func (d *slowDevice) certify(ctx context.Context, root [32]byte) (Signed, error) {
	d.signatures++
	st := Statement{Mode: ModeService, Clock: d.state}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		d.ended++
		return nil, ctx.Err()
	}
	return SignSoftware(d.key, st, root), d.err
}

func (d *slowDevice) verify(a Attestation, n Nonce) (Statement, error) {
	id := Identity{Profile: ProfileSoftware, Key: []byte(d.key.Public().(ed25519.PublicKey))}
	return id.Verify(a, n)
}

// Whatever number of nonces share a signature, each path leads to its root, and
// the path of another nonce does not.
func TestBatchPaths(t *testing.T) {
	for n := 1; n <= 70; n++ {
		r := roundOf(n)
		root := r.root()
		for i := range n {
			p := r.path(i)
			if p.Root(nonceOf(i)) != root {
				t.Fatalf("%d nonces: path %d leads elsewhere", n, i)
			}
			if p.Root(nonceOf(n)) == root || n > 1 && p.Root(nonceOf((i+1)%n)) == root {
				t.Fatalf("%d nonces: path %d fits another nonce", n, i)
			}
		}
	}
}

// A thousand callers cost two signatures: that of the first, and one for all who
// came while it was made. Nobody waits for more than two, and each gets an
// attestation of its own nonce.
func TestBatchShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSlowDevice(t)
		b := NewBatch(d.certify)
		began := time.Now()
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				a, err := b.Lookup(t.Context(), nonceOf(i))
				if err == nil {
					_, err = d.verify(a, nonceOf(i))
				}
				if err != nil {
					t.Errorf("caller %d: %v", i, err)
				}
			})
		}
		all.Wait()
		if took := time.Since(began); d.signatures > 2 || took > 2*time.Second {
			t.Errorf("%d signatures in %v, want at most two in two seconds", d.signatures, took)
		}
		synctest.Wait()
		if b.signing || b.next != nil {
			t.Error("not at rest in the end")
		}
	})
}

// A caller who comes while the device signs is not told of a state older than
// its call.
func TestBatchIsFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSlowDevice(t)
		b := NewBatch(d.certify)
		go b.Lookup(t.Context(), nonceOf(0))
		synctest.Wait()
		d.state = 7
		a, err := b.Lookup(t.Context(), nonceOf(1))
		if err != nil {
			t.Fatal(err)
		}
		if st, err := d.verify(a, nonceOf(1)); err != nil || st.Clock != 7 {
			t.Errorf("got state %d, %v, want 7", st.Clock, err)
		}
	})
}

// A caller goes when its context ends, and takes nobody along; the device is told
// once all have gone.
func TestBatchCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSlowDevice(t)
		b := NewBatch(d.certify)
		go b.Lookup(t.Context(), nonceOf(0)) // signed for alone
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error)
		stays := make(chan error)
		go func() { _, err := b.Lookup(ctx, nonceOf(1)); gone <- err }()
		go func() { _, err := b.Lookup(t.Context(), nonceOf(2)); stays <- err }()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
		if err := <-stays; err != nil || d.ended != 0 {
			t.Errorf("the other: %v, %d signatures ended", err, d.ended)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if _, err := b.Lookup(ctx, nonceOf(3)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want context.DeadlineExceeded", err)
		}
		if synctest.Wait(); d.ended != 1 {
			t.Errorf("%d signatures ended with all their callers, want 1", d.ended)
		}
	})
}

// What goes wrong reaches all who waited for it, and nobody after them.
func TestBatchFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSlowDevice(t)
		b := NewBatch(d.certify)
		d.err = errors.New("no such device")
		var all sync.WaitGroup
		for i := range 10 {
			all.Go(func() {
				if _, err := b.Lookup(t.Context(), nonceOf(i)); !errors.Is(err, d.err) {
					t.Errorf("caller %d: %v", i, err)
				}
			})
		}
		all.Wait()
		d.err = nil
		if _, err := b.Lookup(t.Context(), nonceOf(0)); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// No more than MaxWaiting wait; that many can be answered at once. Once all of
// them have gone there is room again, before the device has signed.
func TestBatchIsBounded(t *testing.T) {
	b := NewBatch(func(ctx context.Context, _ [32]byte) (Signed, error) { <-ctx.Done(); return nil, ctx.Err() })
	b.signing = true // as if for another
	var r *round
	for i := range MaxWaiting {
		var err error
		if r, _, err = b.join(leaf(nonceOf(i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Lookup(t.Context(), nonceOf(0)); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	r.rows = rowsOver(r.leaves)
	last := MaxWaiting - 1
	if p := r.path(last); len(p.Siblings) != maxDepth || p.Root(nonceOf(last)) != r.root() {
		t.Errorf("the last path has %d steps", len(p.Siblings))
	}
	for range MaxWaiting {
		b.leave(r)
	}
	if again, _, err := b.join(leaf(nonceOf(0))); err != nil || again == r {
		t.Errorf("after all have gone: %v", err)
	}
}

// However many ask again and again, one who comes waits for two signatures at
// most, and so does each of the others.
func TestBatchIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSlowDevice(t)
		b := NewBatch(d.certify)
		ctx, stop := context.WithCancel(t.Context())
		var greedy sync.WaitGroup
		for i := range 300 {
			greedy.Go(func() {
				for ctx.Err() == nil {
					began := time.Now()
					if _, err := b.Lookup(t.Context(), nonceOf(i)); err != nil || time.Since(began) > 2*time.Second {
						t.Errorf("caller %d: %v after %v", i, err, time.Since(began))
						return
					}
				}
			})
		}
		for i := range 20 {
			time.Sleep(time.Duration(i) * 101 * time.Millisecond)
			began := time.Now()
			if _, err := b.Lookup(t.Context(), nonceOf(1000+i)); err != nil || time.Since(began) > 2*time.Second {
				t.Errorf("the modest caller: %v after %v", err, time.Since(began))
			}
		}
		stop()
		greedy.Wait()
	})
}

// Callers who have gone are not signed for: when nobody else waits, the device
// rests.
func TestBatchAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSlowDevice(t)
		b := NewBatch(d.certify)
		go b.Lookup(t.Context(), nonceOf(0))
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 10 {
			go b.Lookup(ctx, nonceOf(1+i))
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if d.signatures != 1 || b.signing || b.next != nil {
			t.Errorf("%d signatures, signing %t, want the one that was awaited", d.signatures, b.signing)
		}
	})
}

func BenchmarkBatchPaths(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		leaves := roundOf(n).leaves
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				r := &round{leaves: leaves, rows: rowsOver(leaves)}
				for i := range n {
					r.path(i)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/nonce")
		})
	}
}
