package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// hold gives a content to all fakes.
func (b *bed) hold(content []byte) archive.Content {
	h := archive.NewContentHasher()
	h.Write(content)
	c := h.Content()
	for _, f := range b.fakes {
		f.contents[c.Digest] = content
	}
	return c
}

var megabyte = bytes.Repeat([]byte("0123456789abcdef"), 1<<16)

// cut ends a body after n bytes with err; nil: as if it were all.
func cut(n int64, err error) func(io.ReadCloser) io.ReadCloser {
	return func(r io.ReadCloser) io.ReadCloser {
		return &cutBody{io.LimitReader(r, n), r, err}
	}
}

type cutBody struct {
	io.Reader
	io.Closer
	err error
}

func (b *cutBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF && b.err != nil {
		err = b.err
	}
	return n, err
}

// garble flips a bit of every read.
type garble struct{ io.ReadCloser }

func (g garble) Read(p []byte) (int, error) {
	n, err := g.ReadCloser.Read(p)
	if n > 0 {
		p[0] ^= 1
	}
	return n, err
}

func garbled(r io.ReadCloser) io.ReadCloser { return garble{r} }

func TestFetch(t *testing.T) {
	faults := map[string]struct {
		brk    func(b *bed)
		within time.Duration
	}{
		"none":             {func(b *bed) {}, time.Millisecond},
		"two stopped":      {func(b *bed) { b.stop(1, 2) }, 3 * hedge},
		"three stopped":    {func(b *bed) { b.stop(1, 2, 3) }, 4 * hedge},
		"three without it": {func(b *bed) { b.without(1, 2, 3) }, time.Millisecond},
		"cut short":        {func(b *bed) { b.lie(cut(1000, nil), 1, 2, 3) }, time.Millisecond},
		"broken off":       {func(b *bed) { b.lie(cut(300_000, io.ErrUnexpectedEOF), 1, 2, 3, 4) }, time.Millisecond},
		"nothing comes":    {func(b *bed) { b.lie(cut(0, wire.ErrSlow), 1, 2, 3) }, time.Second},
		"three garble":     {func(b *bed) { b.lie(garbled, 1, 2, 3) }, time.Millisecond},
		"garbles, breaks off": {func(b *bed) {
			b.lie(func(r io.ReadCloser) io.ReadCloser { return garbled(cut(5000, wire.ErrSlow)(r)) }, 1, 2, 3)
		}, time.Second},
		"all update at first": {func(b *bed) { b.fail(wire.ErrUpdating, 5*time.Second) }, 7 * time.Second},
	}
	for name, tt := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, "")
				want := b.hold(megabyte)
				tt.brk(b)
				var out bytes.Buffer
				within(t, tt.within, func() {
					if err := b.Client.Fetch(t.Context(), want, &out); err != nil {
						t.Fatal(err)
					}
				})
				if !bytes.Equal(out.Bytes(), megabyte) {
					t.Error("other bytes")
				}
			})
		})
	}
}

func (b *bed) lie(how func(io.ReadCloser) io.ReadCloser, ids ...uint32) {
	for _, id := range ids {
		b.fakes[id-1].lieBytes = how
	}
}

func (b *bed) without(ids ...uint32) {
	for _, id := range ids {
		b.fakes[id-1].contents = map[archive.Digest][]byte{}
	}
}

func (b *bed) fail(err error, d time.Duration) {
	for _, f := range b.fakes {
		f.err = err
		time.AfterFunc(d, func() { f.set(func() { f.err = nil }) })
	}
}

func TestFetchNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		path := filepath.Join(t.TempDir(), "out")
		if err := b.Client.FetchFile(t.Context(), b.hold(nil), path); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || len(got) != 0 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		wrong := archive.Content{Digest: archive.DigestOf([]byte("x"))}
		wantErr(t, b.Client.Fetch(t.Context(), wrong, io.Discard), ErrIntegrity)
	})
}

// Whatever goes wrong, the target is as it was and nothing lies beside it.
func TestFetchFileFails(t *testing.T) {
	faults := map[string]struct {
		brk  func(b *bed)
		want error
	}{
		"all garble":   {func(b *bed) { b.lie(garbled, 1, 2, 3, 4) }, ErrIntegrity},
		"nobody has":   {func(b *bed) { b.without(1, 2, 3, 4) }, &wire.Error{Code: wire.CodeMissing}},
		"all stopped":  {func(b *bed) { b.stop(1, 2, 3, 4) }, context.DeadlineExceeded},
		"all slow":     {func(b *bed) { b.lie(cut(0, wire.ErrSlow), 1, 2, 3, 4) }, wire.ErrSlow},
		"another size": {func(b *bed) { b.hold(megabyte[1:]); b.resize() }, ErrIntegrity},
	}
	for name, tt := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, "")
				want := b.hold(megabyte)
				tt.brk(b)
				dir := t.TempDir()
				path := filepath.Join(dir, "out")
				if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				wantErr(t, b.Client.FetchFile(ctx, want, path), tt.want)
				if got, _ := os.ReadFile(path); string(got) != "old" {
					t.Errorf("target is now %d bytes", len(got))
				}
				if files, _ := os.ReadDir(dir); len(files) != 1 {
					t.Errorf("left behind: %v", files)
				}
				var out bytes.Buffer
				if b.Client.Fetch(ctx, want, &out) == nil || out.Len() != 0 {
					t.Errorf("a writer got %d unverified bytes", out.Len())
				}
			})
		})
	}
}

// resize makes every fake tell another size of all that it holds.
func (b *bed) resize() {
	for _, f := range b.fakes {
		for d, c := range f.contents {
			f.contents[d] = append(bytes.Clone(c), 'x')
		}
	}
}

func TestFetchFileReplacesOnlyFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		want := b.hold([]byte("x"))
		dir := t.TempDir()
		if b.Client.FetchFile(t.Context(), want, dir) == nil {
			t.Error("replaced a directory")
		}
		if b.Client.FetchFile(t.Context(), want, "/dev/null") == nil {
			t.Error("replaced a device")
		}
		err := b.Client.FetchFile(t.Context(), want, filepath.Join(dir, "none", "x"))
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("no directory: %v", err)
		}
	})
}

func TestFetchInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		want := b.hold(megabyte)
		b.stop(1, 2, 3, 4)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		wantErr(t, b.Client.Fetch(ctx, want, io.Discard), context.Canceled)
	})
}

// No path leads out of the root, whatever it is and whatever links are there.
func TestFetchIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "")
		want := b.hold([]byte("x"))
		dir, outside := t.TempDir(), t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for name, to := range map[string]string{"out": outside, "up": "..", "file": filepath.Join(outside, "file")} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range []string{"../x", filepath.Join(outside, "x"), "out/x", "out/new/x", "up/x", "a/../../x", "file"} {
			if err := b.Client.FetchIn(t.Context(), want, root, path); err == nil {
				t.Errorf("%s: written", path)
			}
		}
		if err := b.Client.FetchIn(t.Context(), want, root, "a/b/c"); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "a", "b", "c")); err != nil || string(got) != "x" {
			t.Errorf("got %q, %v", got, err)
		}
		for _, d := range []string{outside, filepath.Dir(dir)} {
			entries, err := os.ReadDir(d)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if e.Name() == "x" || d == outside {
					t.Errorf("%s is in %s", e.Name(), d)
				}
			}
		}
	})
}
