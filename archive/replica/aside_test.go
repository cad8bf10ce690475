package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
)

// openEnv names a buffer that the test binary is to open and close again, for a
// process that can be killed.
const openEnv = "BONAFIDE_TEST_OPEN_PENDING"

// TestPendingOpenChild is not a test but the process that TestPendingKilledAside
// kills.
func TestPendingOpenChild(t *testing.T) {
	path := os.Getenv(openEnv)
	if path == "" {
		return
	}
	openBuffer(t, path).close()
}

// Whoever is killed while he sets a damaged buffer aside, at any change of the
// directory, loses nothing that can be read of it; nor does it lose what it set
// aside, also where there is an older one.
func TestPendingKilledAside(t *testing.T) {
	archivetest.NeedStrace(t)
	a, now := archivetest.NewRoster(t, 4), time.Now()
	for _, call := range []string{"renameat", "linkat", "unlinkat"} {
		for n := 1; ; n++ {
			path := filepath.Join(t.TempDir(), pendingFile)
			want := damagedBuffer(t, a, path, now)
			if err := os.WriteFile(path+".damaged", []byte("an older one"), 0o600); err != nil {
				t.Fatal(err)
			}
			damaged, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			killed := openKilled(path, call, n)
			if _, err := os.Lstat(path); err != nil {
				t.Fatalf("killed at %s %d: %v", call, n, err)
			}
			p := openBuffer(t, path)
			got := submissions(t, p)
			p.close()
			for d := range want {
				if !got[d] {
					t.Errorf("killed at %s %d: submission %s is lost", call, n, d)
				}
			}
			if kept, err := os.ReadFile(path + ".damaged"); !killed && (err != nil || !bytes.Equal(kept, damaged)) {
				t.Errorf("set aside: %d bytes, %v", len(kept), err)
			}
			if !killed {
				if n == 1 {
					t.Fatalf("not killed at any %s", call)
				}
				break
			}
		}
	}
}

// openKilled opens a buffer in a process that is killed at its n-th system call of
// that name. It reports false if there were fewer.
func openKilled(path, call string, n int) bool {
	c := exec.Command("strace", "-f", "-o", os.DevNull, "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n),
		os.Args[0], "-test.run=^TestPendingOpenChild$")
	c.Env = append(os.Environ(), openEnv+"="+path)
	return c.Run() != nil
}

// damagedBuffer makes a buffer whose meta pages are destroyed, and returns what
// is in it.
func damagedBuffer(t *testing.T, a *archivetest.Archive, path string, now time.Time) map[archive.Digest]bool {
	t.Helper()
	p := openBuffer(t, path)
	for i := range 3 {
		if err := p.Put(a.Submission(now, files(fmt.Sprint("aside", i), 2))); err != nil {
			t.Fatal(err)
		}
	}
	want := submissions(t, p)
	p.close()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, 2*os.Getpagesize()), 0)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return want
}

// A buffer that the system does not let one open is not set aside as damaged.
func TestPendingUnopened(t *testing.T) {
	p := &Pending{}
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "loop"), filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	damage, err := p.takeRows(filepath.Join(dir, "loop"), keepAll)
	if damage != nil || err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got damage %v, error %v", damage, err)
	}
}
