package archivetest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// The disk of one replica is full: it says so and acknowledges nothing that is
// not on it, goes on serving what it has, and the archive goes on without it.
// With room again it catches up.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	c := besiege(t, newHurried(t, 4, "software", 15*time.Second)) // the full one never ends a phase well
	c.bind("good/a", "here to stay")
	c.serve[4].Stop(syscall.SIGTERM)
	small := filepath.Join(c.replicaDir(4), "store")
	if err := os.RemoveAll(small); err != nil {
		t.Fatal(err)
	}
	archivetest.SmallDisk(t, small, 24<<20)
	c.start(4)
	archivetest.Eventually(t, 90*time.Second, "replica 4 has its store back", func() bool {
		st, err := c.status(4)
		return err == nil && st.Note == "" && st.Epoch == c.epoch(1)
	})
	c.auditRepairs(4)
	room := fill(t, small)

	m, _ := c.roster.Replica(4)
	c.refusesUpload(m, "full/direct")
	acked := c.addsUntilFull(m, "full/held")
	c.crash(4)
	_, errs, status := c.run("add", "full/a", c.write("full-a", []byte("without the fourth")))
	if status != 0 || !strings.Contains(errs, "replica 4 did not acknowledge: ") || !strings.Contains(errs, "disk is full") {
		t.Errorf("add: status %d: %s", status, errs)
	}
	if st, err := c.status(4); err != nil || st.Pending != acked || st.Damaged {
		t.Errorf("%d names acknowledged, status of the full replica: %+v, %v", acked, st, err)
	}
	if _, err := c.raw[4].Answer(t.Context(), wire.AnswerRequest{Name: "good/a"}); err != nil {
		t.Errorf("the full replica does not answer: %v", err)
	}

	before := c.awaitEpoch(1, 1, 2, 3)
	c.phaseOf(c.ids(), before+1, 1, 2, 3)
	if got := c.get("full/a"); got != "without the fourth" || c.epoch(1) <= before {
		t.Errorf("got %q in epoch %d, after %d", got, c.epoch(1), before)
	}
	archivetest.Eventually(t, 90*time.Second, "the full replica is in service", func() bool {
		_, err := c.status(4)
		return err == nil
	})

	if err := os.Remove(room); err != nil {
		t.Fatal(err)
	}
	c.phase(before+2, c.ids()...)
	c.auditRepairs(4)
	archivetest.Eventually(t, 3*time.Minute, fmt.Sprintf("2 and the %d acknowledged names are bound", acked), func() bool {
		st, err := c.status(1)
		if err == nil && st.Names == 2+acked {
			return true
		}
		c.next() // replica 4 has caught up, if it came too late to take part
		return false
	})
	if got, err := archivetest.ReadContent(c.replicaDir(4), archive.DigestOf([]byte("without the fourth"))); err != nil || string(got) != "without the fourth" {
		t.Errorf("replica 4 holds %q, %v", got, err)
	}
	c.unharmed()
}

// refusesUpload wants "full" for a content, and nothing of it kept.
func (c *siege) refusesUpload(m archive.Replica, body string) {
	c.t.Helper()
	content := archivetest.ContentOf([]byte(body))
	up := archive.SignUpload(c.writers[0], c.roster.ID(), content)
	err := c.raw[m.ID].PutContent(c.t.Context(), up, int64(content.Size), strings.NewReader(body))
	if !errors.Is(err, &wire.Error{Code: wire.CodeFull}) {
		c.t.Errorf("upload: %v, want full", err)
	}
	if have, err := c.raw[m.ID].Have(c.t.Context(), []archive.Digest{content.Digest}); err != nil || have[0] {
		c.t.Errorf("content is there: %v, %v", have, err)
	}
}

// addsUntilFull sends submissions of a content that the replica holds until there
// is no room for one, and returns how many names were acknowledged.
func (c *siege) addsUntilFull(m archive.Replica, prefix string) (acked uint64) {
	c.t.Helper()
	for i := range 2000 {
		many := make([]archive.Binding, archive.MaxBindings)
		for j := range many {
			many[j] = bindingOf(archive.Name(fmt.Sprintf("%s/%04d/%04d", prefix, i, j)))
		}
		_, err := c.raw[m.ID].Add(c.t.Context(), c.submission(many...))
		if errors.Is(err, &wire.Error{Code: wire.CodeFull}) {
			return acked
		}
		if err != nil {
			c.t.Fatalf("add %d: %v, want full", i, err)
		}
		acked += uint64(len(many))
	}
	c.t.Fatal("the disk never gets full")
	return 0
}

// crash kills a replica's service process and waits for the next one.
func (c *cluster) crash(id uint32) {
	c.t.Helper()
	for _, pid := range archivetest.Descendants(c.serve[id].Pid()) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	archivetest.Eventually(c.t, 90*time.Second, "a killed service process is started again", func() bool {
		st, err := c.status(id)
		return err == nil && st.Note == ""
	})
}

// auditRepairs has a replica repair what it lacks, and wants nothing left.
func (c *cluster) auditRepairs(id uint32) {
	c.t.Helper()
	archivetest.Eventually(c.t, 60*time.Second, fmt.Sprintf("replica %d is whole", id), func() bool {
		_, _, status := c.run("audit", "--repair", "--dir", c.replicaDir(id))
		return status == 0
	})
	c.auditClean(id)
}

// fill takes the room of a disk, but for half a megabyte, with a file that it
// returns.
func fill(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := bytes.Repeat([]byte{1}, 1<<16); err == nil; {
		_, err = f.Write(block)
	}
	size, seekErr := f.Seek(0, io.SeekCurrent)
	if !errors.Is(err, unix.ENOSPC) || seekErr != nil {
		t.Fatal(err, seekErr)
	}
	if err := f.Truncate(size - 512<<10); err != nil {
		t.Fatal(err)
	}
	return name
}
