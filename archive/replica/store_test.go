package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// A content is kept whole and right, or not at all.
func TestPutContent(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	s := openStore(t, a, a.Replicas[0])
	b := bytes.Repeat([]byte("0123456789"), 300_000)
	c := archivetest.ContentOf(b)
	tests := []struct {
		name string
		size int64
		body io.Reader
		want error
	}{
		{"short", int64(len(b)), bytes.NewReader(b[1:]), archive.ErrIntegrity},
		{"long", int64(len(b)) - 1, bytes.NewReader(b), archive.ErrIntegrity},
		{"endless", 5, bytes.NewReader(b), archive.ErrIntegrity},
		{"torn", int64(len(b)), io.MultiReader(bytes.NewReader(b[:70_000]), torn{}), io.ErrUnexpectedEOF},
		{"no room", 1 << 60, torn{}, ErrFull},
	}
	for _, tt := range tests {
		if err := s.PutContent(t.Context(), c.Digest, tt.size, tt.body); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
		if _, err := s.contentSize(c.Digest); !errors.Is(err, ErrMissing) {
			t.Errorf("%s: kept; %v", tt.name, err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, tmpDir)); len(left) > 0 {
		t.Errorf("half-written: %v", left)
	}
	got, err := s.putContent(t.Context(), c.Digest, int64(len(b)), bytes.NewReader(b))
	if err != nil || got != c {
		t.Fatalf("got %v, %v", got, err)
	}
	if read, err := s.CheckContent(t.Context(), c.Digest); err != nil || read != c {
		t.Errorf("got %v, %v", read, err)
	}
	flipByte(t, s.ContentPath(c.Digest), 2_000_000)
	if _, err := s.CheckContent(t.Context(), c.Digest); !errors.Is(err, ErrDamaged) {
		t.Errorf("flipped: got %v", err)
	}
}

type torn struct{}

func (torn) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// On a disk that is really full nothing is half-written, and room is left for
// the files of an update phase.
func TestFullDisk(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	dir := t.TempDir()
	archivetest.SmallDisk(t, dir, 12<<20)
	s, err := OpenStore(dir, a.Roster)
	if err != nil {
		t.Fatal(err)
	}
	full := 0
	for i := range 8 {
		b := bytes.Repeat([]byte{byte(i)}, 1<<20)
		switch err := s.PutContent(t.Context(), archive.DigestOf(b), int64(len(b)), bytes.NewReader(b)); {
		case errors.Is(err, ErrFull):
			full++
		case err != nil:
			t.Fatal(err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Bavail)*st.Bsize < headroom || full == 0 || full == 8 {
		t.Errorf("%d of 8 refused, %d bytes left, %v", full, int64(st.Bavail)*st.Bsize, err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, tmpDir)); len(left) > 0 {
		t.Errorf("half-written: %v", left)
	}
}

// The service says that the disk is full.
func TestServeFull(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	s := startService(t, a, a.Replicas[0])
	up := archive.SignUpload(a.Writer, a.Roster.ID(), archive.Content{Size: 1<<40 - 1})
	if err := s.client.PutContent(t.Context(), up, 1<<40-1, poison{t}); !errors.Is(err, &wire.Error{Code: wire.CodeFull}) {
		t.Errorf("got %v, want %s", err, wire.CodeFull)
	}
}

func openBuffer(t testing.TB, path string) *Pending {
	t.Helper()
	p, err := openPending(path, keepAll)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func submissions(t testing.TB, p *Pending) map[archive.Digest]bool {
	t.Helper()
	all := make(map[archive.Digest]bool)
	if err := p.Each(func(s archive.Submission) error { all[s.Digest()] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// What Put has taken is there after a restart, also when many come at once; the
// counts follow.
func TestPending(t *testing.T) {
	a, now := archivetest.NewRoster(t, 4), time.Now()
	path := filepath.Join(t.TempDir(), pendingFile)
	p := openBuffer(t, path)
	var wg sync.WaitGroup
	for i := range 50 {
		sub := a.Submission(now, files(fmt.Sprint("p", i%25), 2)) // each twice
		wg.Go(func() {
			if err := p.Put(sub); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	first := a.Submission(now, files("p0", 2))
	check := func(n uint64) {
		t.Helper()
		if got := p.Total(); got.Names != 2*n || uint64(len(submissions(t, p))) != n || p.Stats(first.Writer) != got {
			t.Errorf("got %+v, %d submissions, want %d", got, len(submissions(t, p)), n)
		}
	}
	check(25)
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	p = openBuffer(t, path)
	defer p.close()
	check(25)
	for d := range submissions(t, p) {
		if err := p.Drop([]archive.Digest{d, d, {}}); err != nil {
			t.Fatal(err)
		}
	}
	check(0)
	if p.Wants("p0/0000") {
		t.Error("a dropped name is still wanted")
	}
}

// Quotas hold among submissions that come at the same time.
func TestPendingQuota(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	p := openBuffer(t, filepath.Join(t.TempDir(), pendingFile))
	defer p.close()
	w := archive.Writer{Names: 10, Bytes: 1000}
	var wg sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for i := range 20 {
		sub := a.Submission(time.Now(), files(fmt.Sprint("q", i), 1))
		wg.Go(func() {
			if err := p.Admit(sub, w); errors.Is(err, ErrQuota) {
				mu.Lock()
				refused++
				mu.Unlock()
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := len(submissions(t, p)); got != 10 || refused != 10 {
		t.Errorf("%d kept, %d refused", got, refused)
	}
	huge := a.Submission(time.Now(), files("z", 1))
	huge.Bindings[0].Size = ^uint64(0)
	if err := p.Admit(huge, archive.Writer{Names: 100, Bytes: ^uint64(0)}); !errors.Is(err, ErrQuota) {
		t.Errorf("sizes that overflow: got %v", err)
	}
}

// A damaged buffer is set aside, what can be read of it is kept, and nothing
// that is not what it was is taken for a submission.
func TestPendingDamaged(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	was := make(map[archive.Digest]bool)
	make := func(path string) {
		p := openBuffer(t, path)
		for i := range 20 {
			sub := a.Submission(time.Unix(1_800_000_000, 0), files(fmt.Sprint("d", i), 5))
			if err := p.Put(sub); err != nil {
				t.Fatal(err)
			}
			was[sub.Digest()] = true
		}
		p.close()
	}
	damages := map[string]func(path string, size int64){
		"cut":     func(path string, size int64) { os.Truncate(path, size/2) },
		"empty":   func(path string, _ int64) { os.WriteFile(path, nil, 0o600) },
		"garbage": func(path string, _ int64) { os.WriteFile(path, bytes.Repeat([]byte("?"), 20_000), 0o600) },
	}
	for page := range int64(12) {
		damages[fmt.Sprint("page ", page)] = func(path string, _ int64) {
			for i := range int64(40) {
				flipByte(t, path, page*4096+i*100)
			}
		}
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), pendingFile)
			make(path)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			damage(path, info.Size())
			p := openBuffer(t, path)
			for d := range submissions(t, p) {
				if !was[d] {
					t.Errorf("%s was never put", d)
				}
			}
			if err := p.Put(a.Submission(time.Now(), files("new", 1))); err != nil {
				t.Errorf("put afterwards: %v", err)
			}
			p.close()
		})
	}
}

// Records are kept only with a certificate that holds, and come back verified.
func TestPutRecord(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	s, err := OpenStore(t.TempDir(), a.Roster)
	if err != nil {
		t.Fatal(err)
	}
	forged := a.Record
	forged.Names++
	if err := s.PutRecord(forged, a.Certificate); !errors.Is(err, archive.ErrIntegrity) {
		t.Errorf("forged: got %v", err)
	}
	if _, _, err := s.Record(1); !errors.Is(err, ErrMissing) || s.Newest() != 0 {
		t.Errorf("got %v, newest %d", err, s.Newest())
	}
	if err := s.PutRecord(a.Record, a.Certificate); err != nil {
		t.Fatal(err)
	}
	rec, _, err := s.Record(1)
	if err != nil || rec.Head() != a.Record.Head() || s.Newest() != 1 {
		t.Errorf("got %v, %v, newest %d", rec, err, s.Newest())
	}
	if rec, _, err := s.Record(0); err != nil || rec.Head() != archive.Genesis(a.Roster).Head() {
		t.Errorf("genesis: got %v, %v", rec, err)
	}
}

// Pipes and directories that were put in the place of files, and files in that
// of directories, make nobody wait and are got rid of.
func TestStoreIrregular(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 3))
	r := a.Replicas[0]
	dir := serviceConfig(t, a, r).StoreDir()
	plant := func(path string, put func(string) error) {
		t.Helper()
		if err := errors.Join(os.RemoveAll(path), put(path)); err != nil {
			t.Fatal(err)
		}
	}
	pipe := func(path string) error { return unix.Mkfifo(path, 0o600) }
	full := func(path string) error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) }
	plant(filepath.Join(dir, historyDir, fmt.Sprintf("%020d%s", 1, recordSuffix)), pipe)
	plant(filepath.Join(dir, treeFile), pipe)
	plant(filepath.Join(dir, pendingFile), pipe)
	plant(filepath.Join(dir, pendingFile+".lock"), full)
	plant(filepath.Join(dir, tmpDir), func(path string) error { return os.WriteFile(path, nil, 0o600) })
	s, err := OpenStore(dir, a.Roster)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := s.Record(1); !errors.Is(err, ErrDamaged) {
		t.Errorf("record: got %v", err)
	}
	if _, err := s.OpenTree(true); !errors.Is(err, boltstore.ErrDamaged) {
		t.Errorf("tree: got %v", err)
	}
	if _, err := s.Pending(); err != nil {
		t.Errorf("pending: got %v", err)
	}
	if err := s.PutRecord(a.Record, a.Certificate); err != nil {
		t.Errorf("put record: got %v", err)
	}
}

// A damaged buffer is set aside even where a directory lies in its way.
func TestPendingAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), pendingFile)
	err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<14), 0o600)
	if err := errors.Join(err, os.MkdirAll(filepath.Join(path+".damaged", "x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	openBuffer(t, path).close()
	if info, err := os.Stat(path + ".damaged"); err != nil || !info.Mode().IsRegular() {
		t.Errorf("got %v, %v", info, err)
	}
}

// starvedBuffer is set in the process that does without descriptors.
const starvedBuffer = "BONAFIDE_TEST_STARVED"

// A buffer that cannot be opened for want of descriptors is an error, whichever
// open it is that fails: a good file is not set aside, and nothing of it is lost.
func TestPendingNoDescriptors(t *testing.T) {
	if dir := os.Getenv(starvedBuffer); dir != "" {
		starveBuffer(t, filepath.Join(dir, pendingFile))
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestPendingNoDescriptors$", "-test.v")
	cmd.Env = append(os.Environ(), starvedBuffer+"="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// starveBuffer opens a buffer with more and more descriptors until they suffice.
func starveBuffer(t *testing.T, path string) {
	a := archivetest.NewRoster(t, 4)
	sub := a.Submission(time.Now(), files("n", 1))
	p := openBuffer(t, path)
	if err := errors.Join(p.Put(sub), p.close()); err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	p = nil
	for n := uint64(0); p == nil; n++ {
		limit := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: was.Max})
		var err error
		p, err = openPending(path, keepAll)
		if err := errors.Join(limit, unix.Setrlimit(unix.RLIMIT_NOFILE, &was)); err != nil {
			t.Fatal(err)
		}
		if err != nil && (!errors.Is(err, unix.EMFILE) || errors.Is(err, ErrDamaged)) {
			t.Errorf("%d descriptors: got %v", n, err)
		}
		if _, err := os.Stat(path + ".damaged"); err == nil {
			t.Fatalf("%d descriptors: set aside", n)
		}
	}
	defer p.close()
	if !submissions(t, p)[sub.Digest()] {
		t.Error("the submission is gone")
	}
}

// A submission that is queued anew, after a write that failed, is not taken for
// one that is on the disk.
func TestPendingQueuedAgain(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	p := openBuffer(t, filepath.Join(t.TempDir(), pendingFile))
	defer p.close()
	sub := a.Submission(time.Now(), files("q", 1))
	if _, err := p.enqueue(&put{sub: sub}, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.have(sub.Digest()); err == nil {
		t.Error("a queued submission counts as kept")
	}
	if err := p.Put(sub); err != nil || p.have(sub.Digest()) != nil {
		t.Errorf("once written: got %v", err)
	}
}

// Submissions that come together share an fsync: who has waited for one does not make
// those that queue since wait behind as many as there are of them.
func TestPutsShareAnFsync(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	p := openBuffer(t, filepath.Join(t.TempDir(), "pending.db"))
	defer p.close()
	const lanes, each = 256, 8
	var subs []archive.Submission
	for i := range lanes * each {
		subs = append(subs, a.Submission(time.Now(), map[archive.Name][]byte{archive.Name(fmt.Sprintf("n/%05d", i)): nil}))
	}
	transactions := func() (n int) {
		must(t, p.view(func(tx *bbolt.Tx) error { n = tx.ID(); return nil }))
		return n
	}
	before := transactions()
	var all sync.WaitGroup
	for mine := range slices.Chunk(subs, each) {
		all.Go(func() {
			for _, s := range mine {
				if err := p.Put(s); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if n := transactions() - before; n > len(subs)/32 {
		t.Errorf("%d submissions took %d transactions", len(subs), n)
	}
}
