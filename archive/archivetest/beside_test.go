package archivetest_test

import (
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive/bench"
)

var (
	besideFile = flag.String("beside", "", "file that TestBeside appends its tables to")
	share      = flag.Int("share", 1, "have TestBeside take one in so many files and names")
	cold       = flag.Bool("cold", false, "have TestBeside drop caches before each command")
)

// besideRounds is how often an audit and a verify are timed; the quickest counts.
const besideRounds = 2

// besideLine is what one keeper took for a corpus.
type besideLine struct {
	keeper
	is                                 string        // its version
	add, bind, audit, together, verify time.Duration // 0: not done
	disk                               int64         // bytes
}

// Keepers take the same files in turn, into directories of their own; then each
// checks all that it keeps, and compares the files with it. All of it counts only
// if the keeper holds every file, finds a damaged one among those it keeps, and a
// changed one among the others. The script beside runs this.
func TestBeside(t *testing.T) {
	if *besideFile == "" {
		t.Skip("takes ten minutes: see the script beside")
	}
	said := "caches as they are"
	if *cold {
		said = "caches dropped before each timed command"
	}
	tell(t, "%s; %s\n%s; the quickest of %d audits and verifies, one add\n\n", time.Now().UTC().Format(time.DateOnly),
		bench.ThisMachine([]string{t.TempDir()}), said, besideRounds)
	for _, corpus := range []struct {
		part     string
		n, bytes int
	}{{"large", 2048, 512 << 10}, {"small", 100_000, 1 << 10}} {
		t.Run(corpus.part, func(t *testing.T) {
			n := corpus.n / *share
			b := besideCorpus{t: t, dir: makeCorpus(t, n, corpus.bytes), n: n}
			b.run(fmt.Sprintf("%d files of %d KiB", n, corpus.bytes>>10))
		})
	}
	t.Run("proofs", besideProofs)
}

// tell appends to the tables.
func tell(t *testing.T, format string, args ...any) {
	t.Helper()
	f, err := os.OpenFile(*besideFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintf(f, format, args...)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// settle waits for what others have written, and has the system forget it if
// caches are to be cold.
func settle(t *testing.T) {
	t.Helper()
	unix.Sync()
	if !*cold {
		return
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		t.Fatalf("caches cannot be dropped: %v", err)
	}
}

// besideCorpus is one corpus of n files, and what keepers took for it.
type besideCorpus struct {
	t     *testing.T
	dir   string
	n     int
	lines []besideLine
}

func (b *besideCorpus) run(title string) {
	for _, k := range keepers {
		b.t.Run(k.name, func(t *testing.T) { b.measure(t, k) })
	}
	if b.t.Failed() {
		return
	}
	tell(b.t, "%s\n\n", title)
	b.table()
	for _, l := range b.lines {
		if l.together > 0 {
			tell(b.t, "\n%s: bound %.2f s after the add; all %d copies audited at once in %.2f s\n", l.name, l.bind.Seconds(), l.copies, l.together.Seconds())
		}
	}
	tell(b.t, "\n")
	for _, l := range b.lines {
		tell(b.t, "    %s\n%s", l.is, l.commands())
	}
	tell(b.t, "\n")
}

// measure sets one keeper to work.
func (b *besideCorpus) measure(t *testing.T, k keeper) {
	if k.atMost > 0 && b.n > k.atMost {
		tell(t, "%s left out: %d files are more than %d\n\n", k.name, b.n, k.atMost)
		return
	}
	k = k.open(t, k, b.dir)
	l := besideLine{keeper: k, is: strings.TrimSpace(k.said(t, k.version)), audit: math.MaxInt64, verify: math.MaxInt64}
	k.said(t, k.prepare)
	l.add = k.timed(t, k.add)
	if got := strings.TrimSpace(k.said(t, k.count)); got != fmt.Sprint(b.n) {
		t.Fatalf("%s holds %s files, want %d", k.name, got, b.n)
	}
	l.bind = k.timed(t, k.bind)
	l.disk = onDisk(t, k.kept)
	for range besideRounds {
		l.audit = min(l.audit, k.timed(t, k.audit))
		l.verify = min(l.verify, k.timed(t, k.verify))
	}
	l.together = k.timed(t, k.together)
	b.wronged(t, k)
	t.Logf("%s: add %v, audit %v, verify %v", k.name, l.add, l.audit, l.verify)
	b.lines = append(b.lines, l)
}

// wronged changes a byte of a file, which a verify must find, and one of what is
// kept, which an audit must find.
func (b *besideCorpus) wronged(t *testing.T, k keeper) {
	t.Helper()
	if k.verify != nil {
		changed := filepath.Join(b.dir, "000", "000007")
		flipMiddle(t, changed)
		if out, err := k.verify.run(); err == nil {
			t.Errorf("%s does not find a changed file: %s", k.name, out)
		}
		flipMiddle(t, changed)
	}
	k.harm(t)
	if out, err := k.audit.run(); err == nil {
		t.Errorf("%s does not find a damaged file: %s", k.name, out)
	}
}

// flipMiddle changes a bit in the middle of a file.
func flipMiddle(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err = f.ReadAt(b[:], fi.Size()/2); err == nil {
		b[0] ^= 1
		_, err = f.WriteAt(b[:], fi.Size()/2)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// largest returns the largest file below some directories.
func largest(t *testing.T, dirs ...string) (path string) {
	t.Helper()
	most := int64(-1)
	for _, dir := range dirs {
		eachFile(t, dir, func(p string, fi fs.FileInfo) {
			if fi.Size() > most {
				path, most = p, fi.Size()
			}
		})
	}
	return path
}

// onDisk returns how many bytes of the disk all below a directory takes.
func onDisk(t *testing.T, dir string) (n int64) {
	t.Helper()
	eachFile(t, dir, func(_ string, fi fs.FileInfo) { n += fi.Sys().(*syscall.Stat_t).Blocks * 512 })
	return n
}

func eachFile(t *testing.T, dir string, do func(path string, fi fs.FileInfo)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if err == nil {
			do(path, fi)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// table is the table of a corpus, with ratios to the first keeper.
func (b *besideCorpus) table() {
	tell(b.t, "| keeper | copies | MB on disk | add, s | ratio | audit, s | ratio | verify, s | ratio |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range b.lines {
		tell(b.t, "| %s | %d | %.0f | %s | %s | %s |\n", l.name, l.copies, float64(l.disk)/1e6,
			beside(l.add, b.lines[0].add), beside(l.audit, b.lines[0].audit), beside(l.verify, b.lines[0].verify))
	}
}

// beside writes a time and its ratio to another as two cells.
func beside(d, base time.Duration) string {
	if d <= 0 || d == math.MaxInt64 {
		return "- | -"
	}
	return fmt.Sprintf("%.2f | %.2f", d.Seconds(), d.Seconds()/base.Seconds())
}
