package content

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive/disk"
)

// starvedDir is set in the process that does without descriptors.
const starvedDir = "BONAFIDE_TEST_STARVED"

// A process that has no descriptors left knows nothing of what lies on the disk:
// nothing is missing or damaged for it, nothing is acknowledged, and all is there
// when it can open files again.
func TestNoDescriptors(t *testing.T) {
	if dir := os.Getenv(starvedDir); dir != "" {
		starve(t, dir)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestNoDescriptors$", "-test.v")
	cmd.Env = append(os.Environ(), starvedDir+"="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

func starve(t *testing.T, dir string) {
	all := some(50, 40)
	first := open(t, dir)
	put(t, first, append(all, contentOf(1, Small+1))...)
	all = append(all, contentOf(1, Small+1))
	before := packFiles(t, dir)
	known, fresh, reloaded := open(t, dir), open(t, dir), open(t, dir)
	wantHeld(t, known, all...)
	wantHeld(t, reloaded, all...)
	items := itemsOf(t, known, all)

	feed := withoutDescriptors(t)
	reloaded.Reload()
	for name, s := range map[string]*Store{"known": known, "fresh": fresh, "reloaded": reloaded} {
		unsure(t, name, s, all, items)
	}
	feed()

	for _, s := range []*Store{first, known, fresh, reloaded} {
		wantHeld(t, s, all...)
		if wrong := checkAll(t, s, all, Checking{}); len(wrong) > 0 {
			t.Errorf("%d contents are wrong", len(wrong))
		}
		put(t, s, all...)
	}
	if got := packFiles(t, dir); len(got) != len(before) {
		t.Errorf("contents that are held were written again: %v", got)
	}
}

// withoutDescriptors makes every open fail until feed is called.
func withoutDescriptors(t *testing.T) (feed func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	limit := func(r unix.Rlimit) {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
			t.Fatal(err)
		}
	}
	limit(unix.Rlimit{Cur: 0, Max: was.Max})
	return func() { limit(was) }
}

// unsure checks that a store without descriptors says so, whatever it is asked.
func unsure(t *testing.T, name string, s *Store, all []Bytes, items []Item) {
	t.Helper()
	for i, c := range all {
		_, opened := s.Open(c.Digest)
		_, checked := s.Check(t.Context(), c.Digest)
		for what, err := range map[string]error{"open": opened, "check": checked} {
			if !errors.Is(err, unix.EMFILE) || isAny(err, ErrMissing, ErrDamaged) {
				t.Errorf("%s: %s content %d: got %v", name, what, i, err)
			}
		}
		if _, err := s.Size(c.Digest); isAny(err, ErrMissing, ErrDamaged) {
			t.Errorf("%s: size of content %d: %v", name, i, err)
		}
	}
	err := s.CheckAll(t.Context(), items, Checking{Wrong: func(_ Item, err error) { t.Errorf("%s: found %v", name, err) }})
	_, kept := s.PutAll(all)
	for what, err := range map[string]error{"check all": err, "put": kept, "remove": s.Remove(digests(all))} {
		if !errors.Is(err, unix.EMFILE) {
			t.Errorf("%s: %s: got %v", name, what, err)
		}
	}
}

// What the system says of a file is damage only if trying again is of no use.
func TestJudged(t *testing.T) {
	for err, want := range map[error]error{
		fs.ErrNotExist:        ErrMissing,
		disk.ErrIrregular:     ErrDamaged,
		error(unix.ELOOP):     ErrDamaged,
		error(unix.ENOTDIR):   ErrDamaged,
		error(unix.EIO):       ErrDamaged,
		error(unix.EUCLEAN):   ErrDamaged,
		error(unix.EMFILE):    nil,
		error(unix.ENFILE):    nil,
		error(unix.EACCES):    nil,
		error(unix.EINTR):     nil,
		error(unix.ENOMEM):    nil,
		error(unix.ESTALE):    nil,
		error(unix.EAGAIN):    nil,
		error(unix.ENODEV):    nil,
		errors.New("unheard"): nil,
	} {
		got := judged(fmt.Errorf("open: %w", err))
		if want == nil {
			want = err
		}
		if !errors.Is(got, want) || want == err && isAny(got, ErrMissing, ErrDamaged) {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
	}
}
