package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// counted is an item that counts how often it is opened.
func counted(n archive.Name, b []byte, opened *atomic.Int32) Item {
	return Item{Name: n, Open: func() (io.ReadCloser, error) {
		opened.Add(1)
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

// holdAll wants each replica to hold the bytes.
func (b *bed) holdAll(t *testing.T, want []byte) {
	t.Helper()
	for _, f := range b.fakes {
		f.mu.Lock()
		if !bytes.Equal(f.contents[archive.DigestOf(want)], want) {
			t.Errorf("replica %d does not hold the content", f.id)
		}
		f.mu.Unlock()
	}
}

var largeBytes = bytes.Repeat([]byte("large!"), slabSize/6+100_000)

// What fits in memory is read once, what is large twice, however many replicas
// there are; and nothing is sent again.
func TestReadsOnce(t *testing.T) {
	for name, tt := range map[string]struct {
		b     []byte
		reads int32
	}{
		"empty":    {nil, 1},
		"small":    {[]byte("small"), 1},
		"middling": {largeBytes[:slabSize-1], 1},
		"a slab":   {largeBytes[:slabSize], 2},
		"large":    {largeBytes, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, "")
			var opened atomic.Int32
			for range 2 {
				if res, err := b.Client.Add(t.Context(), []Item{counted("x", tt.b, &opened)}); err != nil || len(res.Failed) > 0 {
					t.Fatalf("%s: %v, %v", name, err, res.Failed)
				}
			}
			synctest.Wait()
			b.holdAll(t, tt.b)
			if n := opened.Load(); n > 2*tt.reads {
				t.Errorf("%s: opened %d times by two Adds, want at most %d", name, n, 2*tt.reads)
			}
			if n := b.fakes[0].count("put"); n != 1 {
				t.Errorf("%s: sent %d times", name, n)
			}
		})
	}
}

// Contents of all sizes in one Add, more than a slab holds.
func TestAddMixedSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		var items []Item
		var want [][]byte
		for i, n := range []int{3 << 20, 0, 3 << 20, 5, slabSize, 3 << 20, slabSize + 1, slabSize - 1, 7, 64 << 10} {
			body := bytes.Repeat([]byte{byte('a' + i)}, n)
			want = append(want, body)
			items = append(items, bytesItem(archive.Name(fmt.Sprintf("n%d", i)), body))
		}
		res, err := b.Client.Add(t.Context(), items)
		if err != nil || len(res.Bindings) != len(items) {
			t.Fatalf("%d bindings, %v", len(res.Bindings), err)
		}
		synctest.Wait()
		for i, body := range want {
			b.holdAll(t, body)
			if res.Bindings[i].Content != describe(body) {
				t.Errorf("%s: %+v", res.Bindings[i].Name, res.Bindings[i])
			}
		}
		if n := len(b.Client.slabs); n != readSlabs {
			t.Errorf("%d of %d slabs came back", n, readSlabs)
		}
	})
}

// Each byte of an Add is told of once for each replica that has it: also for one
// that had it before, of contents that are equal, and for one that catches up.
func TestAddTellsWhatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		held := make(map[uint32]uint64)
		b.Client.Progress = func(p Progress) { // by one caller at a time
			if p.Stage == "hold" {
				held[p.Replica] += p.Done
			}
		}
		items := []Item{bytesItem("large", largeBytes), bytesItem("a", []byte("same")), bytesItem("b", []byte("same")), bytesItem("c", nil)}
		for round := range uint64(2) {
			b.Client.replicas[0].late.Store(true)
			if res, err := b.Client.Add(t.Context(), items); err != nil || len(res.Failed) > 0 {
				t.Fatalf("%v, %v", err, res.Failed)
			}
			synctest.Wait()
			for id := range uint32(4) {
				if want := (round + 1) * uint64(len(largeBytes)+8); held[id+1] != want {
					t.Errorf("round %d: replica %d holds %d bytes, want %d", round, id+1, held[id+1], want)
				}
			}
		}
	})
}

// An upload goes on where an earlier one was interrupted.
func TestAddResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		f := b.fakes[2]
		f.partial[archive.DigestOf(largeBytes)] = largeBytes[:3<<20]
		var sent atomic.Int64
		f.onRead = func(n int) { sent.Add(int64(n)) }
		if _, err := b.Client.Add(t.Context(), []Item{bytesItem("x", largeBytes)}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.holdAll(t, largeBytes)
		if n := sent.Load(); n != int64(len(largeBytes)-3<<20) {
			t.Errorf("sent %d bytes of %d", n, len(largeBytes))
		}
	})
}

// A replica that takes bytes slowly holds up nobody for long, neither by a large
// content nor by many.
func TestSlowReplica(t *testing.T) {
	many := make([]Item, 40)
	for i := range many {
		many[i] = bytesItem(archive.Name(fmt.Sprintf("n%02d", i)), bytes.Repeat([]byte{byte(i)}, 2<<20))
	}
	for name, items := range map[string][]Item{"one large": {bytesItem("x", largeBytes)}, "many": many} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, "")
			b.fakes[1].onRead = func(int) { time.Sleep(100 * time.Millisecond) } // 0.3 MB a second
			within(t, 6*time.Second, func() {
				res, err := b.Client.Add(t.Context(), items)
				if err != nil || len(res.Bindings) != len(items) {
					t.Errorf("%s: %v", name, err)
				}
			})
			if n := b.fakes[3].count("add"); n != 1 {
				t.Errorf("%s: replica 4 got %d submissions", name, n)
			}
			time.Sleep(time.Minute) // until all that was cut off has ended
		})
	}
}

// Replicas that leave in the middle of a large content, one because it has it and
// one because it hangs, give back what they had not read yet: the others get all.
func TestLeavingReplicas(t *testing.T) {
	huge := bytes.Repeat([]byte("huge"), 120*chunkSize/4)
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		b.fakes[0].contents[archive.DigestOf(huge)] = huge
		b.fakes[0].delay = time.Second // its chunks wait until it says so
		read := 0
		b.fakes[1].onRead = func(n int) {
			if read += n; read > 40*chunkSize {
				time.Sleep(time.Minute)
			}
		}
		within(t, 65*time.Second, func() {
			if res, err := b.Client.Add(t.Context(), []Item{bytesItem("x", huge)}); err != nil || len(res.Bindings) != 1 {
				t.Errorf("%d bound, %v", len(res.Bindings), err)
			}
		})
		time.Sleep(2 * time.Minute) // until all that hung has ended; the clock is the test's
	})
}

// changing is a large item that is other bytes from its n-th opening on.
func changing(name archive.Name, n int) Item {
	opened := 0
	var mu sync.Mutex
	return Item{Name: name, Open: func() (io.ReadCloser, error) {
		mu.Lock()
		defer mu.Unlock()
		b := bytes.Clone(largeBytes)
		if opened++; opened >= n {
			b[len(b)/2] ^= 1
		}
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

// A large file that changes while it is sent keeps no other from being added,
// neither does one that changes while it is read again for a late replica, and
// that one is added: the others hold what it was.
func TestAddEachOfChangingFiles(t *testing.T) {
	for n, wrong := range map[int]error{2: ErrChanged, 3: nil} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, "")
			if n == 3 {
				b.fakes[0].set(func() { b.fakes[0].err = ErrUpdating })
				time.AfterFunc(5*time.Second, func() { b.fakes[0].set(func() { b.fakes[0].err = nil }) })
			}
			for _, f := range b.fakes[1:] {
				f.delay = time.Second // so that replica 1 is heard of
			}
			got := make(map[archive.Name]error)
			items := []Item{bytesItem("a", []byte("one")), changing("b", n), bytesItem("c", append([]byte("c"), largeBytes...)), bytesItem("d", []byte("two"))}
			var reads atomic.Int32 // of c
			open := items[2].Open
			items[2].Open = func() (io.ReadCloser, error) { reads.Add(1); return open() }
			_, err := b.Client.AddEach(t.Context(), items, func(o Outcome) { got[o.Name] = o.Err })
			if err != nil || len(got) != len(items) {
				t.Fatalf("changed at opening %d: %v, %v", n, got, err)
			}
			for name, err := range got {
				if want := map[archive.Name]error{"b": wrong}[name]; !errors.Is(err, want) {
					t.Errorf("changed at opening %d: %s: %v, want %v", n, name, err, want)
				}
			}
			if r := reads.Load(); n == 2 && r != 2 {
				t.Errorf("another file was read %d times", r)
			}
			time.Sleep(time.Minute)
		})
	}
}

// slow reads take long, by the test's clock.
type slow struct{ io.Reader }

func (r slow) Read(p []byte) (int, error) { time.Sleep(time.Second); return r.Reader.Read(p) }

// To read what the replicas have of an interrupted upload is progress, however
// long it takes.
func TestResumeFromSlowSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		for _, f := range b.fakes {
			f.partial[archive.DigestOf(largeBytes)] = largeBytes[:len(largeBytes)-10]
		}
		it := Item{Name: "x", Open: func() (io.ReadCloser, error) { return io.NopCloser(slow{bytes.NewReader(largeBytes)}), nil }}
		if _, err := b.Client.Add(t.Context(), []Item{it}); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
	})
}

// Several Adds at once take turns at the memory for contents, of which each of
// their thousands needs more than one slab.
func TestAddsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		for _, f := range b.fakes {
			f.delay = 10 * time.Millisecond
		}
		var all sync.WaitGroup
		for k := range 2 {
			all.Go(func() {
				var items []Item
				for i := range 3 * archive.MaxBindings {
					body := bytes.Repeat(fmt.Appendf(nil, "%08d", i%archive.MaxBindings), slabSize/archive.MaxBindings/8+100)
					it := bytesItem(archive.Name(fmt.Sprintf("%d/%04d", k, i)), body)
					open := it.Open
					it.Open = func() (io.ReadCloser, error) { time.Sleep(time.Millisecond); return open() } // all keep step
					items = append(items, it)
				}
				if _, err := b.Client.AddEach(t.Context(), items, func(Outcome) {}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

// A replica that fails once gets what it missed from a second read.
func TestCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		b.fakes[0].set(func() { b.fakes[0].err = ErrUpdating })
		b.fakes[1].set(func() { b.fakes[1].err = ErrUpdating })
		for _, f := range b.fakes[:2] {
			time.AfterFunc(5*time.Second, func() { f.set(func() { f.err = nil }) })
		}
		small := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("3"), 5<<20), bytes.Repeat([]byte("4"), 5<<20)}
		items := []Item{bytesItem("large", largeBytes)}
		for i, body := range small {
			items = append(items, bytesItem(archive.Name(fmt.Sprint("small", i)), body))
		}
		if _, err := b.Client.Add(t.Context(), items); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		held := 0
		for _, f := range b.fakes {
			f.mu.Lock()
			if len(f.contents) == len(items) {
				held++
			}
			f.mu.Unlock()
		}
		if held < 3 {
			t.Errorf("%d replicas hold all", held)
		}
		for _, r := range b.Client.replicas {
			if n := len(r.spare); n != spareSlabs {
				t.Errorf("%d of %d spare slabs of replica %d came back", n, spareSlabs, r.ID)
			}
		}
	})
}

// What cannot be added keeps nothing else from being.
func TestAddEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "n0007")
		for _, f := range b.fakes {
			f.addErr = func(s archive.Submission) error {
				if slices.ContainsFunc(s.Bindings, func(x archive.Binding) bool { return x.Name == "n0007" }) {
					return conflict(b.Newest(), "n0007")
				}
				return nil
			}
		}
		var items []Item
		for i := range 2 * archive.MaxBindings {
			items = append(items, item(archive.Name(fmt.Sprintf("n%04d", i)), fmt.Sprint("content", i)))
		}
		items[3].Open = func() (io.ReadCloser, error) { return nil, fs.ErrPermission }
		items[1500].Open = func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader("x"), failing{})), nil
		}
		var got []Outcome
		res, err := b.Client.AddEach(t.Context(), items, func(o Outcome) { got = append(got, o) })
		if err != nil || len(got) != len(items) || len(res.Conflicts) != 1 {
			t.Fatalf("%d outcomes, %d conflicts, %v", len(got), len(res.Conflicts), err)
		}
		var c *ConflictError
		for i, o := range got {
			want := map[int]bool{3: errors.Is(o.Err, fs.ErrPermission), 7: errors.As(o.Err, &c), 1500: errors.Is(o.Err, io.ErrNoProgress)}
			if is, bad := want[i]; o.Name != items[i].Name || bad && !is || !bad && (o.Err != nil || o.Status != wire.AckPending) {
				t.Errorf("outcome %d: %+v", i, o)
			}
		}
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrNoProgress }

// Without a quorum it ends at once, and says so.
func TestAddEachWithoutQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		b.stop(1, 2)
		var items []Item
		for i := range 20 * archive.MaxBindings {
			items = append(items, item(archive.Name(fmt.Sprintf("n%05d", i)), "same"))
		}
		var nq *NoQuorumError
		within(t, 15*time.Second, func() {
			if _, err := b.Client.AddEach(t.Context(), items, func(Outcome) {}); !errors.As(err, &nq) {
				t.Error(err)
			}
		})
	})
}

// A file in memory was read as a whole, or not at all.
func TestAddOfAFileThatGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("begin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	grow := func() (io.ReadCloser, error) {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
		return &growing{f}, err
	}
	b := newBed(t, "")
	_, err := b.Client.Add(t.Context(), []Item{{Name: "log", Open: grow}})
	wantErr(t, err, ErrChanged)
}

// growing is a file that grows while it is read.
type growing struct{ *os.File }

func (g *growing) Read(p []byte) (int, error) {
	n, err := g.File.Read(p)
	if err == nil {
		_, err = g.File.WriteString("more\n")
	}
	return min(n, len(p)), err
}

// A cancelled Add ends, and gives its memory back.
func TestAddCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		for _, f := range b.fakes {
			f.onRead = func(int) { time.Sleep(time.Second) }
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		within(t, 5*time.Second, func() {
			_, err := b.Client.Add(ctx, []Item{bytesItem("x", largeBytes)})
			wantErr(t, err, context.DeadlineExceeded)
		})
		time.Sleep(time.Minute)
		if n := len(b.Client.slabs); n != readSlabs {
			t.Errorf("%d of %d slabs came back", n, readSlabs)
		}
	})
}
