package archivetest_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
)

// A get that is killed leaves nothing at the target. Run again it fetches only
// what it has not, nor what somebody has changed meanwhile.
func TestDownloadKilled(t *testing.T) {
	archivetest.NeedStrace(t)
	t.Parallel()
	c := newCluster(t, 4, "software")
	file := c.randomFile("body", 7, 40<<20)
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c.ok("add", "large", file)
	c.phase(c.next(), c.ids()...)
	target := filepath.Join(c.dir, "out", "target")
	if err := os.Mkdir(filepath.Dir(target), 0o700); err != nil {
		t.Fatal(err)
	}
	// Each goes on where the one before was killed, in the n-th write of one of its
	// threads: of some fifteen, one gets so far with 40 blocks.
	for _, n := range []int{1, 3, 3} {
		if _, status := c.traced(fmt.Sprintf("inject=pwrite64:signal=KILL:when=%d", n), "get", "large", "-o", target); status != -1 {
			t.Fatalf("not killed at block %d: status %d", n, status)
		}
		if _, err := os.Lstat(target); err == nil {
			t.Fatalf("killed at block %d: there is a target", n)
		}
	}
	spoilt := wholeBlocks(t, target, body)
	if len(spoilt) < 4 {
		t.Fatalf("only %d blocks are there", len(spoilt))
	}
	flipByteOf(t, partOf(t, target), int64(spoilt[0]*archive.BlockSize))
	fetched, status := c.traced("trace=read", "get", "large", "-o", target)
	if status != 0 {
		t.Fatalf("run again: status %d", status)
	}
	if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, body) {
		t.Errorf("run again: %d bytes, %v", len(got), err)
	}
	missing := len(body) - (len(spoilt)-1)*archive.BlockSize
	if most := missing + 2*archive.BlockSize; fetched < missing || fetched > most {
		t.Errorf("run again: fetched %d bytes, want %d to %d", fetched, missing, most)
	}
	if left, _ := os.ReadDir(filepath.Dir(target)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// partOf returns the file that an interrupted get has left.
func partOf(t *testing.T, target string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(filepath.Dir(target), ".bonafide-part-*"))
	if err != nil || len(all) != 1 {
		t.Fatalf("interrupted downloads: %v, %v", all, err)
	}
	return all[0]
}

// wholeBlocks returns which blocks of body an interrupted get has brought.
func wholeBlocks(t *testing.T, target string, body []byte) (all []int) {
	t.Helper()
	got, err := os.ReadFile(partOf(t, target))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; (i+1)*archive.BlockSize <= min(len(got), len(body)); i++ {
		if from, to := i*archive.BlockSize, (i+1)*archive.BlockSize; bytes.Equal(got[from:to], body[from:to]) {
			all = append(all, i)
		}
	}
	return all
}

func flipByteOf(t *testing.T, file string, at int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// readLine is a read as strace -f -y prints it: thread, file, result. Where other
// threads come in between, the result is on a line of its own.
var readLine = regexp.MustCompile(`^(\d+) +(?:read\(\d+<([^>]*)|<\.\.\. read resumed).*?(?:= (-?\d+)(?: .*)?|<unfinished \.\.\.>)$`)

// socketReads adds up what was read from sockets.
func socketReads(trace []byte) (n int) {
	waiting := make(map[string]bool) // threads, for a socket
	for line := range bytes.Lines(trace) {
		m := readLine.FindSubmatch(bytes.TrimSuffix(line, []byte("\n")))
		if m == nil {
			continue
		}
		thread := string(m[1])
		socket := bytes.HasPrefix(m[2], []byte("socket:")) || m[2] == nil && waiting[thread]
		delete(waiting, thread)
		switch got, err := strconv.Atoi(string(m[3])); {
		case err != nil:
			waiting[thread] = socket
		case socket && got > 0:
			n += got
		}
	}
	return n
}

// traced runs a command of the program under strace with an expression of it, and
// returns how many bytes it read from sockets, if reads are traced.
func (c *cluster) traced(expression string, args ...string) (fetched, status int) {
	c.t.Helper()
	log := filepath.Join(c.dir, "trace")
	strace, err := exec.LookPath("strace")
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := c.command(args...)
	program, err := filepath.EvalSymlinks(cmd.Path) // under strace, /proc/self/exe is strace
	if err != nil {
		c.t.Fatal(err)
	}
	cmd.Path, cmd.Args = strace, append([]string{"strace", "-f", "-y", "-s", "0", "-o", log, "-e", expression, program}, cmd.Args[1:]...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		c.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	b, err := os.ReadFile(log)
	if err != nil {
		c.t.Fatal(err)
	}
	return socketReads(b), cmd.ProcessState.ExitCode()
}
