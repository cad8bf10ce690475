package archivetest_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

var sha256sum = flag.Int("sha256sum", 0, "how many rounds TestVerifyBesideSha256sum takes")

// Comparing a directory with an archive is quicker than comparing it with a list
// by sha256sum, and says so. Both run in turn, and the quickest of each counts.
func TestVerifyBesideSha256sum(t *testing.T) {
	if *sha256sum == 0 {
		t.Skip("takes minutes: -args -sha256sum 5")
	}
	for _, corpus := range []struct {
		name     string
		n, bytes int
	}{{"2048 x 512 KiB", 2048, 512 << 10}, {"100000 x 1 KiB", 100_000, 1 << 10}} {
		dir := makeCorpus(t, corpus.n, corpus.bytes)
		c := newCluster(t, 4, "software")
		c.ok("-q", "add", "-r", "corpus", dir, "--timeout", "60s")
		c.phase(2, c.ids()...)
		sums := c.write("SHA256SUMS", nil)
		shell(t, dir, "find . -type f | sort | xargs sha256sum >"+sums)
		var ours, theirs []time.Duration
		for range *sha256sum {
			wall, work := shell(t, dir, "exec sha256sum -c --quiet "+sums)
			theirs = append(theirs, wall)
			began, before := time.Now(), c.servedFor()
			verify := c.command("-q", "verify", "-r", dir, "corpus")
			if out, err := verify.CombinedOutput(); err != nil {
				t.Fatalf("verify -r: %v\n%s", err, out)
			}
			ours = append(ours, time.Since(began))
			t.Logf("%s: of the processors' time verify took %.2f s, the replicas %.2f s, sha256sum %.2f s", corpus.name,
				worked(verify.ProcessState).Seconds(), (c.servedFor() - before).Seconds(), work.Seconds())
		}
		a, b := slices.Min(ours).Seconds(), slices.Min(theirs).Seconds()
		t.Logf("%s: verify -r %.2f s, sha256sum -c %.2f s: %.2f (all: %v, %v)", corpus.name, a, b, a/b, ours, theirs)
		if a >= b {
			t.Errorf("%s: no quicker", corpus.name)
		}
		c.differs(dir)
		for _, m := range c.roster.Replicas {
			c.serve[m.ID].Stop(syscall.SIGKILL)
		}
	}
}

// shell runs a command that must succeed and returns how long that took, and how
// much of the processors' time.
func shell(t *testing.T, dir, command string) (wall, work time.Duration) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
	cmd.Dir = dir
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return time.Since(began), worked(cmd.ProcessState)
}

// differs changes one byte of a corpus that is bound and wants it to be found.
func (c *cluster) differs(dir string) {
	c.t.Helper()
	file := filepath.Join(dir, "001", "001007")
	b, err := os.ReadFile(file)
	if err != nil {
		c.t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		c.t.Fatal(err)
	}
	out, _, status := c.run("-q", "verify", "-r", dir, "corpus")
	if want := file + ": FAILED"; status != 5 || !bytes.HasPrefix(out, []byte(want)) {
		c.t.Errorf("of a changed file: status %d, %s", status, out)
	}
}
