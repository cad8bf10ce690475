package content_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/content"
	"github.com/bonafide-archive/bonafide/archive/disk"
)

// durableDir is set in the process whose fsyncs are looked at.
const durableDir = "BONAFIDE_TEST_DURABLE"

// A content of its own file is acknowledged after an fsync of the file, then of
// its directory, and the first time also of the directory that this one is in.
func TestEntriesAreDurable(t *testing.T) {
	if dir := os.Getenv(durableDir); dir != "" {
		putTwoInOne(t, dir)
		return
	}
	archivetest.NeedStrace(t)
	dir := t.TempDir()
	log := filepath.Join(dir, "strace")
	cmd := exec.Command("strace", "-f", "-y", "-o", log, "-e", "trace=fsync,write", os.Args[0], "-test.run=^TestEntriesAreDurable$", "-test.v")
	cmd.Env = append(os.Environ(), durableDir+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("%v\n%s", err, out)
	}
	first, second := syncedBetween(t, log)
	fan := "content/" + firstByte(sameDirectory()[0])
	want := func(what string, got []string, dirs ...string) {
		t.Helper()
		if len(got) == 0 || !strings.HasPrefix(got[0], "tmp/put-") {
			t.Errorf("%s: the file is not synced first: %q", what, got)
		}
		for _, d := range dirs {
			if !slices.Contains(got, d) {
				t.Errorf("%s: %s is not synced: %q", what, d, got)
			}
		}
	}
	want("first", first, fan, "content")
	want("second", second, fan)
	if slices.Contains(second, "content") {
		t.Errorf("second: the entry of %s is synced again: %q", fan, second)
	}
}

// putTwoInOne keeps two contents in one directory of the fan-out, and says when.
func putTwoInOne(t *testing.T, dir string) {
	s := content.Open(disk.Root(dir))
	defer s.Close()
	for _, b := range sameDirectory() {
		if _, err := s.PutAll([]content.Bytes{b}); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("acknowledged\n")
	}
}

// syncedBetween returns what was synced before the first and before the second
// acknowledgement, below the directory of the log.
func syncedBetween(t *testing.T, log string) (first, second []string) {
	t.Helper()
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	synced := regexp.MustCompile(`fsync\(\d+<` + regexp.QuoteMeta(filepath.Dir(log)) + `/([^>]*)>`)
	parts := make([][]string, 1)
	for line := range strings.Lines(string(b)) {
		if m := synced.FindStringSubmatch(line); m != nil {
			parts[len(parts)-1] = append(parts[len(parts)-1], m[1])
		}
		if strings.Contains(line, `"acknowledged\n"`) {
			parts = append(parts, nil)
		}
	}
	if len(parts) != 3 {
		t.Fatalf("%d acknowledgements:\n%s", len(parts)-1, b)
	}
	return parts[0], parts[1]
}

// sameDirectory returns two contents that lie in one directory of the fan-out.
func sameDirectory() []content.Bytes {
	var all []content.Bytes
	for i := uint32(0); len(all) < 2; i++ {
		b := make([]byte, content.Small+1)
		binary.BigEndian.PutUint32(b, i)
		if x := (content.Bytes{Digest: archive.DigestOf(b), Bytes: b}); len(all) == 0 || firstByte(x) == firstByte(all[0]) {
			all = append(all, x)
		}
	}
	return all
}

func firstByte(b content.Bytes) string { return b.Digest.String()[:2] }
