package content

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/disk"
)

var update = flag.Bool("update", false, "write testdata")

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s := Open(disk.Root(dir))
	t.Cleanup(func() { s.Close() })
	return s
}

// contentOf returns a content of n bytes that no other seed gives.
func contentOf(seed, n int) Bytes {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1}).Read(b)
	return Bytes{archive.DigestOf(b), b}
}

// some returns n contents of different lengths.
func some(seed, n int) []Bytes {
	var all []Bytes
	for i := range n {
		all = append(all, contentOf(seed*1000+i, (i*701+1)%4000))
	}
	return all
}

func put(t testing.TB, s *Store, all ...Bytes) {
	t.Helper()
	got, err := s.PutAll(all)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range all {
		if want := Describe(c.Bytes); got[i] != want {
			t.Fatalf("got %v, want %v", got[i], want)
		}
	}
}

// wantHeld checks that contents are held, and right.
func wantHeld(t testing.TB, s *Store, all ...Bytes) {
	t.Helper()
	for i, c := range all {
		if got, err := readAll(s, c.Digest); err != nil || !bytes.Equal(got, c.Bytes) {
			t.Fatalf("content %d: %d bytes, %v", i, len(got), err)
		}
		if size, err := s.Size(c.Digest); err != nil || size != int64(len(c.Bytes)) {
			t.Fatalf("content %d: size %d, %v", i, size, err)
		}
		if _, err := s.Check(t.Context(), c.Digest); err != nil {
			t.Fatalf("content %d: %v", i, err)
		}
	}
}

func wantMissing(t testing.TB, s *Store, all ...Bytes) {
	t.Helper()
	for i, c := range all {
		if _, err := s.Size(c.Digest); !errors.Is(err, ErrMissing) {
			t.Fatalf("content %d: got %v, want %v", i, err, ErrMissing)
		}
		if _, err := s.Open(c.Digest); !errors.Is(err, ErrMissing) {
			t.Fatalf("content %d: got %v, want %v", i, err, ErrMissing)
		}
	}
}

func readAll(s *Store, d archive.Digest) ([]byte, error) {
	r, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// packFiles returns the packs, in order.
func packFiles(t testing.TB, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, packsDir, "*.tar"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// change rewrites a file.
func change(t testing.TB, path string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, f(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// itemsOf returns contents in the order in which they lie on the disk.
func itemsOf(t testing.TB, s *Store, all []Bytes) (items []Item) {
	t.Helper()
	for _, c := range all {
		size, place, err := s.Locate(c.Digest)
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, Item{c.Digest, place, size})
	}
	slices.SortFunc(items, func(a, b Item) int { return cmp.Compare(a.Place, b.Place) })
	return items
}

// checkAll returns what CheckAll finds wrong.
func checkAll(t testing.TB, s *Store, all []Bytes, how Checking) []archive.Digest {
	t.Helper()
	items := itemsOf(t, s, all)
	var wrong []archive.Digest
	passed := 0
	how.Wrong = func(it Item, err error) { wrong = append(wrong, it.Digest) }
	how.Passed = func(n int, _ Item) { passed += n }
	if err := s.CheckAll(t.Context(), items, how); err != nil || passed != len(items) {
		t.Fatalf("passed %d of %d, %v", passed, len(items), err)
	}
	return wrong
}

func TestPut(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	all := append(some(1, 200), contentOf(7, 0), contentOf(8, Small), contentOf(9, Small-511), contentOf(10, 511), contentOf(11, 512))
	put(t, s, all[:100]...)
	put(t, s, all...)
	wantHeld(t, s, all...)
	if got := packFiles(t, dir); len(got) != 1 {
		t.Fatalf("packs: %v", got)
	}
	info, _ := os.Stat(packFiles(t, dir)[0])
	put(t, s, all...)
	if again, _ := os.Stat(packFiles(t, dir)[0]); again.Size() != info.Size() {
		t.Errorf("what is held was written again: %d bytes, then %d", info.Size(), again.Size())
	}
	if got := checkAll(t, s, all, Checking{}); got != nil {
		t.Errorf("wrong: %v", got)
	}
	s.Close()
	later := open(t, dir)
	wantHeld(t, later, all...)
	put(t, later, contentOf(12, 100))
	if got := packFiles(t, dir); len(got) != 1 {
		t.Errorf("another process began a pack beside one with room: %v", got)
	}
}

func TestPutRefuses(t *testing.T) {
	s := open(t, t.TempDir())
	c, big := contentOf(1, 1000), contentOf(2, 3*Small)
	for name, tt := range map[string]struct {
		c    Bytes
		size int64
		body io.Reader
		want error
	}{
		"short":         {c, 1000, bytes.NewReader(c.Bytes[1:]), archive.ErrIntegrity},
		"long":          {c, 999, bytes.NewReader(c.Bytes), archive.ErrIntegrity},
		"other bytes":   {c, 1000, bytes.NewReader(big.Bytes[:1000]), archive.ErrIntegrity},
		"torn":          {c, 1000, io.MultiReader(bytes.NewReader(c.Bytes[:9]), torn{}), errTorn},
		"big and short": {big, 3 * Small, bytes.NewReader(big.Bytes[1:]), archive.ErrIntegrity},
		"big and torn":  {big, 3 * Small, io.MultiReader(bytes.NewReader(big.Bytes[:9]), torn{}), errTorn},
		"no room":       {big, 1 << 60, torn{}, disk.ErrFull},
	} {
		if _, err := s.Put(t.Context(), tt.c.Digest, tt.size, tt.body); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
		wantMissing(t, s, tt.c)
	}
	for name, wrong := range map[string]Bytes{"small": {big.Digest, c.Bytes}, "big": {c.Digest, big.Bytes}} {
		if _, err := s.PutAll([]Bytes{c, big, wrong}); !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("%s with another digest: got %v", name, err)
		}
		wantMissing(t, s, c, big)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Put(ctx, c.Digest, 1000, bytes.NewReader(c.Bytes)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// What is too big for a pack has a file of its own, however it comes.
func TestPutAllMixed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	small, big, holed := contentOf(1, Small), contentOf(2, Small+1), Bytes{archive.DigestOf(make([]byte, 1<<20)), make([]byte, 1<<20)}
	put(t, s, big, small, holed)
	wantHeld(t, s, big, small, holed)
	for _, b := range []Bytes{big, holed} {
		if fi, err := os.Stat(s.PlainPath(b.Digest)); err != nil || fi.Size() != int64(len(b.Bytes)) {
			t.Errorf("%d bytes: no file of its own: %v", len(b.Bytes), err)
		}
	}
	if _, err := os.Stat(s.PlainPath(small.Digest)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a small one has a file of its own: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

var errTorn = io.ErrUnexpectedEOF

type torn struct{}

func (torn) Read([]byte) (int, error) { return 0, errTorn }

// Many that come at once are all kept, and share what is written.
func TestPutTogether(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	all := some(2, 400)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for j := range 20 { // each content by two of them
				c := all[(i*10+j)%len(all)]
				if _, err := s.Put(t.Context(), c.Digest, int64(len(c.Bytes)), bytes.NewReader(c.Bytes)); err != nil {
					t.Error(err)
				}
				if got, err := readAll(s, c.Digest); err != nil || !bytes.Equal(got, c.Bytes) {
					t.Errorf("acknowledged, and not there: %v", err)
				}
			}
		})
	}
	wg.Wait()
	wantHeld(t, open(t, dir), all...)
	var want int64
	for _, c := range all {
		want += span(int64(len(c.Bytes)))
	}
	if info, err := os.Stat(packFiles(t, dir)[0]); err != nil || info.Size() != want {
		t.Errorf("pack of %d bytes, want %d, %v", info.Size(), want, err)
	}
}

// A pack that a crash has cut anywhere has all that was acknowledged before, and
// is continued after the last whole member.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	before, last := some(3, 5), []Bytes{contentOf(1, 700), contentOf(2, 3)}
	put(t, s, before...)
	s.Close()
	pack := packFiles(t, dir)[0]
	held, _ := os.ReadFile(pack)
	put(t, open(t, dir), last...)
	whole, _ := os.ReadFile(pack)
	dir = t.TempDir()
	path := filepath.Join(dir, packsDir, "00000000.tar")
	os.Mkdir(filepath.Dir(path), 0o700)
	for n := len(held); n < len(whole); n++ {
		if n < len(whole)-int(span(3)) && n%block > 2 && n%13 > 0 {
			continue // every byte of the last, and some of the one before
		}
		for what, tail := range map[string][]byte{"cut": nil, "zeros": make([]byte, len(whole)-n), "garbage": contentOf(3, len(whole)-n).Bytes} {
			if tail != nil && n%11 != 0 {
				continue
			}
			if err := os.WriteFile(path, append(slices.Clone(whole[:n]), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir)
			s.packs.flush = func(*os.File) error { return nil } // thousands take long
			for _, c := range before {
				if got, err := readAll(s, c.Digest); err != nil || !bytes.Equal(got, c.Bytes) {
					t.Fatalf("%s at %d: lost what was acknowledged: %v", what, n, err)
				}
			}
			for _, c := range last { // as if it was never there, or right
				if _, err := s.Size(c.Digest); err == nil {
					wantHeld(t, s, c)
				}
			}
			if n%89 == 0 {
				put(t, s, last...)
				wantHeld(t, open(t, dir), append(last, before...)...)
				s.Close()
				if b, err := os.ReadFile(path); err != nil || len(b) != len(whole) {
					t.Fatalf("%s at %d: pack of %d bytes, want %d, %v", what, n, len(b), len(whole), err)
				}
			}
		}
	}
}

// Damage in the middle of a pack hides no member behind it, and a copy that is
// put again takes the place of the damaged one, for ever.
func TestDamage(t *testing.T) {
	all := some(4, 30)
	flip := func(at int64) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 1; return b }
	}
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, all...)
	l, _ := s.packs.find(all[10].Digest)
	for name, damage := range map[string]func([]byte) []byte{
		"name":     flip(l.offset()),
		"size":     flip(l.offset() + 134),
		"checksum": flip(l.offset() + 150),
		"bytes":    flip(l.offset() + block),
		"padding":  flip(l.end() - 1),
		"no header": func(b []byte) []byte {
			clear(b[l.offset() : l.offset()+block])
			return b
		},
		"cut out": func(b []byte) []byte { return slices.Delete(b, int(l.offset()), int(l.end())) },
	} {
		for _, restarted := range []bool{false, true} {
			dir := t.TempDir()
			s := open(t, dir)
			put(t, s, all...)
			change(t, packFiles(t, dir)[0], damage)
			put(t, open(t, dir), contentOf(99, 10)) // so that it is not the newest pack alone
			if restarted {
				s.Close()
				s = open(t, dir)
			}
			if _, err := s.Check(t.Context(), all[10].Digest); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrMissing) {
				t.Errorf("%s: got %v", name, err)
			}
			if restarted {
				wantHeld(t, s, slices.Delete(slices.Clone(all), 10, 11)...)
			}
			put(t, s, all...)
			wantHeld(t, s, all...)
			wantHeld(t, open(t, dir), all...)
			s.Close()
		}
	}
}

func headerOf(d archive.Digest, size int64) []byte {
	h := member{digest: d, size: size}.header()
	return h[:]
}

// Every header is one that tar itself would write.
func TestHeader(t *testing.T) {
	for size := range int64(Small + 1) {
		if size > 600 && size%61 != 0 && size != Small {
			continue
		}
		m := member{digest: archive.DigestOf([]byte{byte(size)}), size: size, removed: size%3 == 0}
		want := tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0), Name: m.digest.String()}
		if m.removed {
			want.Name = removedPrefix + "/" + want.Name
		}
		h := m.header()
		got, err := tar.NewReader(bytes.NewReader(h[:])).Next()
		if err != nil || got.Name != want.Name || got.Size != size || got.Mode != want.Mode || got.Format != want.Format {
			t.Fatalf("got %+v, %v", got, err)
		}
		if back, ok := parseHeader(h[:]); !ok || back != m {
			t.Fatalf("got %+v, want %+v", back, m)
		}
	}
}

// The pack of SPEC.md: the same contents make the same bytes, today and later.
func TestVector(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var all []Bytes
	for _, text := range []string{"hello\n", "", strings.Repeat("0123456789abcdef", 40), "removed\n"} {
		all = append(all, Bytes{archive.DigestOf([]byte(text)), []byte(text)})
	}
	put(t, s, all...)
	if err := s.Remove([]archive.Digest{all[3].Digest}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(packFiles(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "pack.tar")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, got, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("pack of %d bytes, want %d, %v", len(got), len(want), err)
	}
}

// What looks like a member inside of a content is not one, also where damage
// makes it be looked at.
func TestContentOfHeaders(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	victim := contentOf(1, 100)
	fake := append(headerOf(victim.Digest, 100), make([]byte, 512)...)
	fake = append(fake, headerOf(contentOf(2, 7).Digest, 7)...)
	fake = append(fake, make([]byte, 512)...)
	trap := Bytes{archive.DigestOf(fake), fake}
	put(t, s, victim)
	put(t, s, trap, contentOf(3, 9))
	l, _ := s.packs.find(trap.Digest)
	s.Close()
	wantHeld(t, open(t, dir), victim, trap)
	change(t, packFiles(t, dir)[0], func(b []byte) []byte { b[l.offset()] ^= 1; return b })
	later := open(t, dir)
	wantHeld(t, later, victim, contentOf(3, 9))
	wantMissing(t, later, contentOf(2, 7), trap)
}

// A header with a size that is too large hides nothing that lies in its reach,
// and an audit sees a pack as another process would.
func TestHeaderReachesTooFar(t *testing.T) {
	for _, newest := range []bool{true, false} {
		dir := t.TempDir()
		s := open(t, dir)
		all := []Bytes{contentOf(1, 600), contentOf(2, 100), contentOf(3, 100), contentOf(4, 100)}
		put(t, s, all...)
		far := contentOf(5, 2500)
		change(t, packFiles(t, dir)[0], func(b []byte) []byte { copy(b, headerOf(far.Digest, 2500)); return b })
		if !newest { // then headers alone are read, as long as they follow each other
			if err := os.WriteFile(filepath.Join(dir, packsDir, "00000001.tar"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s.Reload()
		for _, s := range []*Store{s, open(t, dir)} {
			wantHeld(t, s, all[1:]...)
			wantMissing(t, s, all[0])
			if _, err := s.Check(t.Context(), far.Digest); err == nil {
				t.Error("believed in a content that is not there")
			}
		}
	}
}

// Two stores on one directory do not write over each other.
func TestTwoStores(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	for i := range 10 {
		put(t, a, some(10+2*i, 20)...)
		put(t, b, some(11+2*i, 20)...)
	}
	if err := errors.Join(a.Remove(digests(some(10, 20))), a.Tidy(t.Context()), b.Tidy(t.Context())); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < 20; i++ {
		wantHeld(t, open(t, dir), some(10+i, 20)...)
	}
}

func digests(all []Bytes) []archive.Digest {
	var out []archive.Digest
	for _, c := range all {
		out = append(out, c.Digest)
	}
	return out
}

// What is removed is gone, for ever; its room comes back; all else stays.
func TestRemove(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	keep, drop, big := some(5, 50), some(6, 80), contentOf(1, 2*Small)
	put(t, s, slices.Concat(drop, keep)...)
	if _, err := s.Put(t.Context(), big.Digest, 2*Small, bytes.NewReader(big.Bytes)); err != nil {
		t.Fatal(err)
	}
	wantHeld(t, s, big)
	before, _ := os.Stat(packFiles(t, dir)[0])
	if err := s.Remove(append(digests(drop), big.Digest, contentOf(2, 1).Digest)); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, s, append(drop, big)...)
	wantMissing(t, open(t, dir), append(drop, big)...)
	wantHeld(t, open(t, dir), keep...)
	if err := s.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := packFiles(t, dir)
	if info, err := os.Stat(after[0]); len(after) != 1 || err != nil || info.Size() > before.Size()/2 {
		t.Errorf("%v: %d bytes of %d left, %v", after, info.Size(), before.Size(), err)
	}
	for _, s := range []*Store{s, open(t, dir)} {
		wantMissing(t, s, drop...)
		wantHeld(t, s, keep...)
	}
	put(t, s, drop...)
	wantHeld(t, open(t, dir), append(drop, keep...)...)
}

// A pack that is about to go is not written to.
func TestTidyLeavesAlone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	keep, drop := some(7, 10), some(8, 40)
	put(t, s, append(keep, drop...)...)
	if err := s.Remove(digests(drop)); err != nil {
		t.Fatal(err)
	}
	pack := packFiles(t, dir)[0]
	old, err := os.Open(pack)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	before, err1 := os.ReadFile(pack)
	err2 := s.Tidy(t.Context())
	after, err3 := io.ReadAll(old)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(pack); !errors.Is(err, fs.ErrNotExist) || !bytes.Equal(before, after) {
		t.Errorf("the pack was changed: %v, or is there: %v", !bytes.Equal(before, after), err)
	}
	wantHeld(t, s, keep...)
	wantHeld(t, open(t, dir), keep...)
}

// A pack with a damaged member is kept until a good copy of it has come.
func TestTidyKeepsDamaged(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	keep, drop := some(7, 10), some(8, 40)
	put(t, s, append(keep, drop...)...)
	l, _ := s.packs.find(keep[3].Digest)
	pack := packFiles(t, dir)[0]
	change(t, pack, func(b []byte) []byte { b[l.offset()+block] ^= 1; return b })
	if err := errors.Join(s.Remove(digests(drop)), s.Tidy(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(pack); err != nil {
		t.Errorf("a pack with a member that no other has: %v", err)
	}
	put(t, s, keep[3])
	if err := s.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(pack); err == nil {
		t.Error("a wasteful pack is there for ever")
	}
	wantHeld(t, s, keep...)
	wantHeld(t, open(t, dir), keep...)
}

// A disk that loses packs while the store is open makes their contents missing,
// and what is put then is there.
func TestLostPacks(t *testing.T) {
	for name, lose := range map[string]func(dir string){
		"a pack":     func(dir string) { os.Remove(filepath.Join(dir, packsDir, "00000000.tar")) },
		"all":        func(dir string) { os.RemoveAll(filepath.Join(dir, packsDir)) },
		"truncated":  func(dir string) { os.Truncate(filepath.Join(dir, packsDir, "00000000.tar"), 0) },
		"other file": func(dir string) { os.WriteFile(filepath.Join(dir, packsDir, "00000000.tar"), nil, 0o600) },
		"a directory": func(dir string) {
			path := filepath.Join(dir, packsDir, "00000000.tar")
			os.Remove(path)
			os.Mkdir(path, 0o700)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			all := some(9, 10)
			put(t, s, all...)
			lose(dir)
			wantMissing(t, s, all...)
			put(t, s, all...)
			wantHeld(t, s, all...)
			wantHeld(t, open(t, dir), all...)
		})
	}
}

func TestCheckAll(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	all := some(20, 3000) // several strides
	put(t, s, all...)
	for i := range 5 {
		c := contentOf(i, stride+i*Small)
		if _, err := s.Put(t.Context(), c.Digest, int64(len(c.Bytes)), bytes.NewReader(c.Bytes)); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	var want []archive.Digest
	for _, i := range []int{0, 17, 1500, 2999} {
		l, _ := s.packs.find(all[i].Digest)
		change(t, packFiles(t, dir)[0], func(b []byte) []byte { b[l.offset()+block] ^= 1; return b })
		want = append(want, all[i].Digest)
	}
	change(t, s.PlainPath(all[3001].Digest), func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	want = append(want, all[3001].Digest)
	pauses := 0
	for name, how := range map[string]Checking{
		"all cores": {},
		"cached":    {cached: true},
		"paced":     {Took: func(ctx context.Context, d time.Duration) error { pauses++; return ctx.Err() }},
	} {
		for _, c := range all { // what was found before is not remembered
			if l, err := s.packs.find(c.Digest); err == nil && l.bad {
				s.packs.mu.Lock()
				l.bad = false
				s.packs.index[c.Digest] = l
				s.packs.mu.Unlock()
			}
		}
		got := checkAll(t, s, all, how)
		slices.SortFunc(got, compare)
		slices.SortFunc(want, compare)
		if !slices.Equal(got, want) {
			t.Errorf("%s: found %d wrong, want %d", name, len(got), len(want))
		}
	}
	if pauses < 8 {
		t.Errorf("%d pauses", pauses)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.CheckAll(ctx, []Item{{Digest: all[0].Digest}}, Checking{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func compare(a, b archive.Digest) int { return bytes.Compare(a[:], b[:]) }

// Everything can be rescued with tar and sha256sum alone, by the commands of
// SPEC.md.
func TestRescue(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	all := append(some(30, 300), contentOf(1, 3*Small))
	put(t, s, all[:300]...)
	for _, c := range all[300:] {
		if _, err := s.Put(t.Context(), c.Digest, int64(len(c.Bytes)), bytes.NewReader(c.Bytes)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(digests(all[:10])); err != nil {
		t.Fatal(err)
	}
	spec, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, ok := strings.Cut(string(spec), "```sh\n")
	script, _, ok2 := strings.Cut(script, "```")
	if !ok || !ok2 {
		t.Fatal("SPEC.md has no commands")
	}
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("FAILED")) {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, c := range all[10:] {
		if b, err := os.ReadFile(filepath.Join(dir, "rescued", c.Digest.String())); err != nil || !bytes.Equal(b, c.Bytes) {
			t.Fatalf("not rescued: %v", err)
		}
	}
	if rest, err := os.ReadDir(filepath.Join(dir, "rescued")); err != nil || len(rest) != len(all)-10+1 { // and what was removed
		t.Errorf("%d rescued, want %d, %v", len(rest), len(all)-10, err)
	}
}

// Zeros take no room, and are read as zeros.
func TestHoles(t *testing.T) {
	s := open(t, t.TempDir())
	const size = 16<<20 + 5
	b := make([]byte, size)
	copy(b[5<<20:], "not zero")
	d := archive.DigestOf(b)
	if _, err := s.Put(t.Context(), d, size, iotestOneByOne{bytes.NewReader(b)}); err != nil {
		t.Fatal(err)
	}
	wantHeld(t, s, Bytes{d, b})
	var st unix.Stat_t
	if err := unix.Stat(s.PlainPath(d), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes on the disk for a hole, %v", st.Blocks*512, err)
	}
	if st.Size != size {
		t.Errorf("size %d", st.Size)
	}
}

// iotestOneByOne gives what a network gives: pieces of odd lengths.
type iotestOneByOne struct{ r io.Reader }

func (r iotestOneByOne) Read(b []byte) (int, error) { return r.r.Read(b[:min(len(b), 16381)]) }

// What does not fit is refused, leaves the update phase its room and hurts
// nothing; when there is room again, so does the store.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=12m"); err != nil {
		if os.Getenv("BONAFIDE_REQUIRE_MOUNT") != "" {
			t.Fatalf("no small disk to fill, and BONAFIDE_REQUIRE_MOUNT is set: mount: %v", err)
		}
		t.Skipf("no small disk to fill (mount must be permitted): %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s := open(t, dir)
	defer s.Close()
	var kept []Bytes
	refused := 0
	for i := range 100 {
		c := contentOf(i, Small)
		switch _, err := s.PutAll([]Bytes{c}); {
		case err == nil:
			kept = append(kept, c)
		case errors.Is(err, disk.ErrFull):
			refused++
			wantMissing(t, s, c)
		default:
			t.Fatal(err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Bavail)*st.Bsize < Headroom || refused == 0 || len(kept) == 0 {
		t.Errorf("%d refused, %d kept, %d bytes left, %v", refused, len(kept), int64(st.Bavail)*st.Bsize, err)
	}
	wantHeld(t, s, kept...)
}

// After a write that fails nothing is acknowledged that is not there, nothing
// that was is lost, and the pack is left alone.
func TestFailedWrite(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, some(40, 20)...)
	s.packs.cur.Close() // every write and fsync fails from now on
	f, err := os.Open(packFiles(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	s.packs.cur = f // read-only
	if _, err := s.PutAll(some(41, 20)); err == nil {
		t.Fatal("acknowledged what could not be written")
	}
	wantMissing(t, s, some(41, 20)...)
	put(t, s, some(41, 20)...)
	if got := packFiles(t, dir); len(got) != 2 {
		t.Errorf("went on with a pack after a failed write: %v", got)
	}
	wantHeld(t, open(t, dir), append(some(40, 20), some(41, 20)...)...)
}

// After an fsync that fails, what it was for is not acknowledged, not even when
// a later one succeeds; what another process left unsynced is synced before it
// counts.
func TestFailedSync(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, some(42, 20)...)
	s.packs.flush = func(*os.File) error { return unix.EIO }
	if _, err := s.PutAll(some(43, 20)); !errors.Is(err, unix.EIO) {
		t.Fatalf("got %v", err)
	}
	s.packs.flush = fdatasync
	wantMissing(t, s, some(43, 20)...)
	wantMissing(t, open(t, dir), some(43, 20)...)
	put(t, s, some(43, 20)...)
	if got := packFiles(t, dir); len(got) != 2 {
		t.Errorf("went on with a pack after a failed fsync: %v", got)
	}
	later := open(t, dir)
	synced := 0
	later.packs.flush = func(f *os.File) error { synced++; return fdatasync(f) }
	wantHeld(t, later, append(some(42, 20), some(43, 20)...)...)
	if synced != 1 {
		t.Errorf("believed what may be in the page cache alone: synced %d packs", synced)
	}
	broken := open(t, dir)
	broken.packs.flush = func(*os.File) error { return unix.EIO }
	wantMissing(t, broken, some(43, 20)...)
	wantHeld(t, broken, some(42, 20)...)
}

// Packs are closed at their size.
func TestPackSize(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var all []Bytes
	for i := range packSize/Small + 10 {
		all = append(all, contentOf(i, Small))
	}
	put(t, s, all...)
	got := packFiles(t, dir)
	if len(got) != 2 {
		t.Fatalf("packs: %v", got)
	}
	if info, err := os.Stat(got[0]); err != nil || info.Size() < packSize || info.Size() >= packSize+span(Small) {
		t.Errorf("pack of %d bytes, %v", info.Size(), err)
	}
	if got := checkAll(t, open(t, dir), all, Checking{}); got != nil {
		t.Errorf("wrong: %v", got)
	}
}

// No bytes make the scanner panic, run on, or believe in a member after lost
// ones that is none.
func FuzzScan(f *testing.F) {
	c, e := contentOf(1, 600), contentOf(2, 0)
	whole := append(headerOf(c.Digest, 600), append(c.Bytes, make([]byte, 424)...)...)
	whole = append(whole, headerOf(e.Digest, 0)...)
	f.Add(whole)
	f.Add(whole[512:])
	f.Add(append([]byte("x"), whole...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, prove := range []bool{false, true} {
			next, lost := int64(0), false
			end, err := scan(bytes.NewReader(b), int64(len(b)), prove, func(m found) {
				lost = lost || m.at != next || m.at%block != 0
				if m.at < next && m.good || m.at%block != 0 || m.at+span(m.size) > int64(len(b)) {
					t.Fatalf("member at %d of %d bytes, after %d", m.at, m.size, next)
				}
				raw := b[m.at:][:span(m.size)]
				if next = m.at + block; m.good {
					next = m.at + span(m.size)
				}
				if right := m.whole(raw); !m.removed && m.good && (lost || prove) && !right {
					t.Fatal("believed a member that is wrong")
				}
			})
			if err != nil || end > int64(len(b)) {
				t.Fatalf("end %d of %d, %v", end, len(b), err)
			}
		}
	})
}

func ExampleStore_PutAll() {
	dir, _ := os.MkdirTemp("", "")
	defer os.RemoveAll(dir)
	s := Open(disk.Root(dir))
	defer s.Close()
	b := []byte("hello\n")
	all, err := s.PutAll([]Bytes{{archive.DigestOf(b), b}})
	fmt.Println(all[0].Digest, err)
	// Output: 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03 <nil>
}
