package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// random returns n bytes that depend on seed.
func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

var errPulled = errors.New("pulled the plug")

// interrupted uploads the first n bytes of b and then fails.
func (s *served) interrupted(t *testing.T, up archive.Upload, b []byte, n int) {
	t.Helper()
	cut := io.MultiReader(bytes.NewReader(b[:n]), readerFunc(func([]byte) (int, error) { return 0, errPulled }))
	if err := s.client.PutContent(t.Context(), up, int64(len(b)), cut); err == nil {
		t.Fatal("an upload that was cut short is taken")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// held returns how much is left of an upload, once the replica has seen its end.
func (s *served) held(t *testing.T, up archive.Upload) (n uint64) {
	t.Helper()
	waitFor(t, "an interrupted upload", func() bool {
		var err error
		n, err = s.client.Partial(t.Context(), up.Digest, up.Writer)
		return err == nil && n > 0
	})
	return n
}

// An upload goes on where it stopped, also after the replica was away.
func TestResumeUpload(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	r := a.Replicas[0]
	s := startService(t, a, r)
	b := random(1, minPartial+12_345)
	up := archive.SignUpload(a.Writer, a.Roster.ID(), archivetest.ContentOf(b))
	s.interrupted(t, up, b, 5<<20+77)
	s.stop()
	s = startService(t, a, r)
	n := s.held(t, up)
	if n > 5<<20+77 || n < 4<<20 {
		t.Errorf("%d bytes are left of %d", n, 5<<20+77)
	}
	if err := s.client.ResumeContent(t.Context(), up, n+1, bytes.NewReader(b[n+1:])); !errors.Is(err, &wire.Error{Code: wire.CodeUnavailable}) {
		t.Errorf("with a gap: %v", err)
	}
	if err := s.client.ResumeContent(t.Context(), up, n, bytes.NewReader(b[n:])); err != nil {
		t.Fatal(err)
	}
	s.holds(t, a, up, b)
	if left, _ := os.ReadDir(filepath.Join(r.Dir, "store", partialDir)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// holds wants a content whole, and charged once.
func (s *served) holds(t *testing.T, a *archivetest.Archive, up archive.Upload, b []byte) {
	t.Helper()
	body, _, err := s.client.Content(t.Context(), up.Digest, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, b) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	s.stop()
	p, err := openStore(t, a, s.Replica).Pending()
	if err != nil {
		t.Fatal(err)
	}
	if got := p.stored[up.Writer]; got != up.Size {
		t.Errorf("the writer is charged %d bytes, want %d", got, up.Size)
	}
}

// What is left of an upload may have been changed since: the whole is hashed, and
// the client begins anew.
func TestResumeDamaged(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	r := a.Replicas[0]
	s := startService(t, a, r)
	b := random(2, minPartial+1)
	up := archive.SignUpload(a.Writer, a.Roster.ID(), archivetest.ContentOf(b))
	s.interrupted(t, up, b, 3<<20)
	s.held(t, up)
	path := filepath.Join(r.Dir, "store", partialDir, partialKey{up.Digest, up.Writer}.name())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{b[100] ^ 1}, 100); err != nil {
		t.Fatal(err)
	}
	n := s.held(t, up)
	if err := s.client.ResumeContent(t.Context(), up, n, bytes.NewReader(b[n:])); !errors.Is(err, &wire.Error{Code: wire.CodeUnavailable}) {
		t.Errorf("damaged: %v", err)
	}
	if n, err := s.client.Partial(t.Context(), up.Digest, up.Writer); n != 0 || err != nil {
		t.Errorf("%d damaged bytes are kept, %v", n, err)
	}
	if err := s.client.PutContent(t.Context(), up, int64(len(b)), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	s.holds(t, a, up, b)
}

// What is left of uploads counts against the quota, and is bounded in number and
// age.
func TestPartialsAreBounded(t *testing.T) {
	a := archivetest.NewRoster(t, 4, func(r *archive.Roster) { r.Writers[0].Bytes = 32 << 20 })
	a.Certify(t, files("a", 1))
	r := a.Replicas[0]
	dir := filepath.Join(r.Dir, "store", partialDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writer := archive.SignUpload(a.Writer, a.Roster.ID(), archive.Content{}).Writer
	put := func(i int, age time.Duration) string {
		path := filepath.Join(dir, partialKey{archive.Digest{byte(i)}, writer}.name())
		if err := os.WriteFile(path, make([]byte, 1000), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	old := put(0, partialAge+time.Hour)
	for i := range maxPartials + 3 {
		put(i+1, time.Duration(i)*time.Minute)
	}
	if err := os.WriteFile(filepath.Join(dir, "litter"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startService(t, a, r)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != maxPartials {
		t.Errorf("%d files are left, %v", len(left), err)
	}
	for _, path := range []string{old, filepath.Join(dir, "litter"), filepath.Join(dir, partialKey{archive.Digest{maxPartials + 1}, writer}.name())} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", filepath.Base(path))
		}
	}
	up := archive.SignUpload(a.Writer, a.Roster.ID(), archive.Content{Digest: archive.Digest{9, 9}, Size: a.Roster.Writers[0].Bytes - 1000*maxPartials + 1})
	if err := s.client.PutContent(t.Context(), up, int64(up.Size), poison{t}); !errors.Is(err, &wire.Error{Code: wire.CodeQuota}) {
		t.Errorf("beyond what is left of the quota: %v", err)
	}
}

// Large contents keep their holes.
func TestHoles(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	s := startService(t, a, a.Replicas[0])
	for name, b := range map[string][]byte{
		"inside": append(append(random(3, 100_000), make([]byte, 8<<20)...), random(4, 100_000)...),
		"end":    append(random(5, 300_001), make([]byte, 8<<20)...),
		"all":    make([]byte, 9<<20),
	} {
		up := archive.SignUpload(a.Writer, a.Roster.ID(), archivetest.ContentOf(b))
		if err := s.client.PutContent(t.Context(), up, int64(len(b)), bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(archivetest.ContentPath(s.Dir, up.Digest))
		if err != nil {
			t.Fatal(err)
		}
		if on := fi.Sys().(*syscall.Stat_t).Blocks * 512; fi.Size() != int64(len(b)) || on > 1<<20 {
			t.Errorf("%s: %d bytes take %d of the disk", name, fi.Size(), on)
		}
		body, _, err := s.client.Content(t.Context(), up.Digest, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		body.Close()
	}
}

func TestPartialKey(t *testing.T) {
	k := partialKey{archive.DigestOf([]byte("a")), archive.KeyID(archive.DigestOf([]byte("b")))}
	if got, err := parsePartialKey(k.name()); got != k || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", ".", k.digest.String(), k.name() + "0", fmt.Sprint("x", k.name()[1:])} {
		if _, err := parsePartialKey(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// Nothing that lies where the directory of interrupted uploads belongs keeps the
// service from starting.
func TestPartialsMadeAnew(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	r := a.Replicas[0]
	dir := filepath.Join(r.Dir, "store", partialDir)
	for name, put := range map[string]func() error{
		"a file":            func() error { return os.WriteFile(dir, []byte("x"), 0o600) },
		"a pipe":            func() error { return unix.Mkfifo(dir, 0o600) },
		"a link to itself":  func() error { return os.Symlink(dir, dir) },
		"a link to nowhere": func() error { return os.Symlink(filepath.Join(dir, "none"), dir) },
	} {
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Dir(dir), 0o700), put()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s := startService(t, a, r)
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
			t.Errorf("%s: not made anew: %v", name, err)
		}
		s.stop()
	}
}
