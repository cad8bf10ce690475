package client

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
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

// pattern returns n bytes, different in each block.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 64 {
		b[i] = byte(i>>20) + 1
		b[min(i+1, n-1)] = byte(i >> 10)
	}
	return b
}

// between stands before a peer's contents: it counts and may change them.
type between struct {
	Peer
	id   uint32
	sent atomic.Int64
	each func(offset int64, p []byte) error // of every read
}

func (b *between) ContentPart(ctx context.Context, d archive.Digest, offset, n int64) (io.ReadCloser, int64, error) {
	body, size, err := b.Peer.ContentPart(ctx, d, offset, n)
	if err != nil {
		return nil, 0, err
	}
	return &betweenBody{body, b, offset}, size, nil
}

type betweenBody struct {
	io.ReadCloser
	b  *between
	at int64
}

func (r *betweenBody) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.b.sent.Add(int64(n))
	if r.b.each != nil && n > 0 {
		if err := r.b.each(r.at, p[:n]); err != nil {
			return 0, err
		}
	}
	r.at += int64(n)
	return n, err
}

// watchPeers puts a between before each peer.
func watchPeers(c *Client) []*between {
	var all []*between
	for _, r := range c.replicas {
		b := &between{Peer: r.peer, id: r.ID}
		r.peer = b
		all = append(all, b)
	}
	return all
}

func sentBytes(all []*between) (n int64) {
	for _, b := range all {
		n += b.sent.Load()
	}
	return n
}

// flipAt changes the byte of the content at the given offset.
func flipAt(at int64) func(int64, []byte) error {
	return func(offset int64, p []byte) error {
		if i := at - offset; i >= 0 && i < int64(len(p)) {
			p[i] ^= 1
		}
		return nil
	}
}

// logged collects warnings.
type logged struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *logged) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.Buffer.String() }

func logTo(c *Client) *logged {
	l := new(logged)
	c.Log = slog.New(slog.NewTextHandler(l, nil))
	return l
}

func TestFetchSizes(t *testing.T) {
	const mb = archive.BlockSize
	for _, n := range []int{0, 1, mb - 1, mb, mb + 1, 2 * mb, 3*mb - 1, 8 * mb, 8*mb + 1, 9 * mb, 20*mb + 5} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, "")
			all := watchPeers(b.Client)
			content := pattern(n)
			want := b.hold(content)
			path := filepath.Join(t.TempDir(), "out")
			if err := b.Client.FetchFile(t.Context(), want, path); err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes: got %d, %v", n, len(got), err)
			}
			if n > mb && sentBytes(all) != int64(n) {
				t.Errorf("%d bytes cost %d", n, sentBytes(all))
			}
		})
	}
}

// One flipped byte at any place of any block costs one block more, and its
// sender is named with the block.
func TestFetchDamagedBlock(t *testing.T) {
	content := pattern(3*archive.BlockSize + 100)
	for at := int64(0); at < int64(len(content)); at += 349_526 {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, "")
			all, log := watchPeers(b.Client), logTo(b.Client)
			want := b.hold(content)
			liar := b.Client.preferred()[0]
			all[liar.ID-1].each = flipAt(at)
			var out bytes.Buffer
			if err := b.Client.Fetch(t.Context(), want, &out); err != nil || !bytes.Equal(out.Bytes(), content) {
				t.Fatalf("%d bytes, %v", out.Len(), err)
			}
			block := uint64(at) / archive.BlockSize
			extra := sentBytes(all) - int64(len(content))
			sent := all[liar.ID-1].sent.Load() > at
			if sent && extra != int64(want.BlockLen(block)) || !sent && extra != 0 {
				t.Errorf("byte %d: %d bytes more than the content", at, extra)
			}
			line := fmt.Sprintf("replica=%d content=%s block=%d\n", liar.ID, want.Digest, block)
			if got := strings.Count(log.String(), line); sent && got != 1 {
				t.Errorf("byte %d: blamed %d times: %s", at, got, log)
			}
		})
	}
}

func TestFetchBlocksFaults(t *testing.T) {
	flipList := func(l archive.BlockList) archive.BlockList { l = slices.Clone(l); l[0][0] ^= 1; return l }
	faults := map[string]func(b *bed, all []*between){
		"list unknown to all":   func(b *bed, _ []*between) { b.each(func(f *fake) { f.noBlocks = true }, 1, 2, 3, 4) },
		"list unknown to three": func(b *bed, _ []*between) { b.each(func(f *fake) { f.noBlocks = true }, 1, 2, 3) },
		"three lie about it":    func(b *bed, _ []*between) { b.each(func(f *fake) { f.lieList = flipList }, 1, 2, 3) },
		"all lie about it":      func(b *bed, _ []*between) { b.each(func(f *fake) { f.lieList = flipList }, 1, 2, 3, 4) },
		"short lists": func(b *bed, _ []*between) {
			b.each(func(f *fake) { f.lieList = func(l archive.BlockList) archive.BlockList { return l[1:] } }, 1, 2, 3)
		},
		"empty lists": func(b *bed, _ []*between) {
			b.each(func(f *fake) { f.lieList = func(archive.BlockList) archive.BlockList { return nil } }, 1, 2, 3)
		},
		"two stopped":   func(b *bed, _ []*between) { b.stop(1, 2) },
		"three without": func(b *bed, _ []*between) { b.without(1, 2, 3) },
		"three garble":  func(b *bed, _ []*between) { b.lie(garbled, 1, 2, 3) },
		"each has another damaged block": func(b *bed, all []*between) {
			for i, p := range all {
				p.each = flipAt(int64(i)<<20 + 7)
			}
		},
		"broken off": func(b *bed, _ []*between) { b.lie(cut(1_500_000, io.ErrUnexpectedEOF), 1, 2, 3, 4) },
		"all update": func(b *bed, _ []*between) { b.fail(wire.ErrUpdating, 5*time.Second) },
	}
	for name, brk := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, "")
				content := pattern(5*archive.BlockSize + 3)
				want := b.hold(content)
				brk(b, watchPeers(b.Client))
				var out bytes.Buffer
				within(t, 20*time.Second, func() {
					if err := b.Client.Fetch(t.Context(), want, &out); err != nil {
						t.Fatal(err)
					}
				})
				if !bytes.Equal(out.Bytes(), content) {
					t.Error("other bytes")
				}
			})
		})
	}
}

func (b *bed) each(change func(*fake), ids ...uint32) {
	for _, id := range ids {
		change(b.fakes[id-1])
	}
}

// The block root is the writer's word: one who lied about it cannot keep a
// content from its readers, nor make them take another.
func TestFetchWrongRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		content := pattern(2 * archive.BlockSize)
		want := b.hold(content)
		lied := want
		lied.Blocks[0] ^= 1
		var out bytes.Buffer
		if err := b.Client.Fetch(t.Context(), lied, &out); err != nil || !bytes.Equal(out.Bytes(), content) {
			t.Errorf("another root: %v", err)
		}
		lied = want
		lied.Digest[0] ^= 1
		b.each(func(f *fake) { f.contents[lied.Digest] = content }, 1, 2, 3, 4)
		out.Reset()
		wantErr(t, b.Client.Fetch(t.Context(), lied, &out), ErrIntegrity)
		if out.Len() != 0 {
			t.Errorf("%d bytes of another content", out.Len())
		}
	})
}

// An interrupted download goes on where it was, even when what it left was
// damaged meanwhile; nothing is ever at the target in part.
func TestFetchResumes(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(t *testing.T, part string)
		extra  int64
	}{
		"as it was":    {func(*testing.T, string) {}, 0},
		"a block less": {func(t *testing.T, p string) { changeByte(t, p, 1<<20+5) }, 1 << 20},
		"cut":          {func(t *testing.T, p string) { os.Truncate(p, 2<<20) }, 1 << 20},
		"longer":       {func(t *testing.T, p string) { os.Truncate(p, 99<<20) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, "")
				all := watchPeers(b.Client)
				content := pattern(7*archive.BlockSize + 9)
				want := b.hold(content)
				dir := t.TempDir()
				path := filepath.Join(dir, "out")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				for _, p := range all {
					p.each = func(at int64, _ []byte) error {
						if at >= 3<<20 {
							cancel()
							<-ctx.Done()
							return ctx.Err()
						}
						return nil
					}
				}
				wantErr(t, b.Client.FetchFile(ctx, want, path), context.Canceled)
				if _, err := os.Lstat(path); err == nil {
					t.Fatal("target is there in part")
				}
				tt.damage(t, partName(want, path))
				before := sentBytes(all)
				for _, p := range all {
					p.each = nil
				}
				if err := b.Client.FetchFile(t.Context(), want, path); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
				if sent, want := sentBytes(all)-before, int64(4<<20+9)+tt.extra; sent != want {
					t.Errorf("the rest cost %d bytes, want %d", sent, want)
				}
				if files, _ := os.ReadDir(dir); len(files) != 1 {
					t.Errorf("left behind: %v", files)
				}
			})
		})
	}
}

func changeByte(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0xee}, at); err != nil {
		t.Fatal(err)
	}
}

// What somebody put in the way is neither used nor changed.
func TestPartNotOwn(t *testing.T) {
	dir := t.TempDir()
	c := archive.Content{Digest: archive.Digest{1}, Size: 2 << 20}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	name, other := partName(c, filepath.Join(dir, "out")), filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, put := range map[string]func() error{
		"hard link": func() error { return os.Link(other, name) },
		"symlink":   func() error { return os.Symlink(other, name) },
		"directory": func() error { return os.Mkdir(name, 0o700) },
		"locked":    func() error { f := lockPart(root, filepath.Base(name)); t.Cleanup(func() { f.Close() }); return nil },
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		f, _, err := openPart(c, root, "out")
		if err != nil || f.Name() == name {
			t.Errorf("%s: got %v, %v", what, f, err)
		}
		f.Close()
		os.Remove(f.Name())
		os.Remove(name)
	}
	if b, _ := os.ReadFile(other); string(b) != "mine" {
		t.Errorf("changed to %q", b)
	}
}

// Several fetches of one content to one target do not disturb each other.
func TestFetchFileTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		content := pattern(4*archive.BlockSize + 1)
		want := b.hold(content)
		dir := t.TempDir()
		path := filepath.Join(dir, "out")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := b.Client.FetchFile(t.Context(), want, path); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got, _ := os.ReadFile(path); !bytes.Equal(got, content) {
			t.Error("other bytes")
		}
		if files, _ := os.ReadDir(dir); len(files) != 1 {
			t.Errorf("left behind: %v", files)
		}
	})
}

// A replica whose disk flipped a byte serves over TCP: only that block is
// fetched again, from another.
func TestRealDamagedBlock(t *testing.T) {
	content := pattern(9*archive.BlockSize + 77)
	r := newReal(t, map[archive.Name][]byte{"big": content})
	want := r.one(t, "big").Entry.Content
	all, log := watchPeers(r.client), logTo(r.client)
	for _, m := range r.Replicas[:3] {
		changeByte(t, contentPath(m.Dir, want.Digest), int64(m.ID)<<20+1)
	}
	path := filepath.Join(t.TempDir(), "out")
	if err := r.client.FetchFile(t.Context(), want, path); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, content) {
		t.Error("other bytes")
	}
	blamed := int64(strings.Count(log.String(), "sent a damaged block"))
	if extra := sentBytes(all) - int64(len(content)); extra != blamed<<20 {
		t.Errorf("%d blocks blamed, %d bytes more than the content", blamed, extra)
	}
}

func contentPath(dir string, d archive.Digest) string {
	h := d.String()
	return filepath.Join(dir, "store", "content", h[:2], h)
}

var large = flag.Int64("large", 0, "fetch a sparse content of so many GiB and bound the memory")

func TestFetchLarge(t *testing.T) {
	if *large == 0 {
		t.Skip("needs -large")
	}
	r := newReal(t, map[archive.Name][]byte{"x": nil})
	h := archive.NewContentHasher()
	io.Copy(h, io.LimitReader(zeroReader{}, *large<<30+5))
	want := h.Content()
	for _, m := range r.Replicas {
		path := contentPath(m.Dir, want.Digest)
		os.MkdirAll(filepath.Dir(path), 0o700)
		os.WriteFile(path, nil, 0o600)
		if err := os.Truncate(path, int64(want.Size)); err != nil {
			t.Fatal(err)
		}
	}
	var peak atomic.Uint64
	r.client.Progress = func(Progress) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak.Store(max(peak.Load(), m.HeapInuse+m.StackInuse))
	}
	path := filepath.Join(t.TempDir(), "out")
	if err := r.client.FetchFile(t.Context(), want, path); err != nil {
		t.Fatal(err)
	}
	if peak.Load() > 256<<20 {
		t.Errorf("%d MiB of memory", peak.Load()>>20)
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != int64(want.Size) {
		t.Errorf("got %v, %v", fi, err)
	}
	t.Logf("%d GiB, at most %d MiB of memory, client and four replicas", *large, peak.Load()>>20)
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }
