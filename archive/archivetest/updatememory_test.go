package archivetest_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/replica"
)

var updated = flag.Int("updated", 0, "Adds of the update phase whose memory is measured")

// maxUpdateMemory is how much memory an update process may take, in bytes, pages of
// files that it maps included, for up to a million Adds onto as many names.
const maxUpdateMemory = 1 << 30

// An update process has its memory bounded, and says how much it took.
//
//	go test ./archive/archivetest -run UpdateMemory -timeout 1h -v -args -updated 1000000
func TestUpdateMemory(t *testing.T) {
	if *updated == 0 {
		t.Skip("takes minutes: -args -updated 1000000")
	}
	c := newHurried(t, 4, "software", 10*time.Minute)
	for epoch := archive.Epoch(2); epoch <= 3; epoch++ {
		for _, id := range c.ids() {
			c.serve[id].Stop(syscall.SIGTERM)
		}
		c.buffer(fmt.Sprintf("epoch-%d", epoch), *updated)
		for _, id := range c.ids() {
			c.serve[id] = archivetest.Start(t, "serve", "--json", "--dir", c.replicaDir(id), "--roster", filepath.Join(c.dir, "roster.json"))
		}
		for _, id := range c.ids() {
			n := c.updateMemory(id, epoch)
			t.Logf("epoch %d: the update process of replica %d took %d MiB", epoch, id, n>>20)
			if n < 1<<20 || n > maxUpdateMemory {
				t.Errorf("want at most %d MiB", maxUpdateMemory>>20)
			}
		}
	}
	c.awaitService(c.ids()...)
	if st, err := c.status(1); err != nil || st.Names != uint64(2**updated) {
		t.Errorf("%d names, want %d: %v", st.Names, 2**updated, err)
	}
}

// buffer has all replicas, which do not run, find so many Adds in their buffers.
func (c *cluster) buffer(dir string, adds int) {
	c.t.Helper()
	store, err := replica.OpenStore(filepath.Join(c.replicaDir(1), "store"), c.roster)
	if err != nil {
		c.t.Fatal(err)
	}
	pending, err := store.Pending()
	if err != nil {
		c.t.Fatal(err)
	}
	id, now := c.roster.ID(), time.Now().UTC().Truncate(time.Second)
	var all sync.WaitGroup
	const perSubmission = 10
	const lanes = 1 << 13 // that wait for one fsync and one check of the file
	for lane := range lanes {
		all.Go(func() {
			for i := lane * perSubmission; i < adds; i += lanes * perSubmission {
				s := archive.Submission{Archive: id, Created: now}
				for k := i; k < min(i+perSubmission, adds); k++ {
					name := archive.Name(fmt.Sprintf("%s/%07d", dir, k))
					s.Bindings = append(s.Bindings, archive.Binding{Name: name, Content: archivetest.ContentOf(nil)})
				}
				s.Sign(c.writers[i/perSubmission%len(c.writers)])
				if err := pending.Put(s); err != nil {
					c.t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if err := store.Close(); err != nil {
		c.t.Fatal(err)
	}
	file := filepath.Join("store", "pending.db")
	b, err := os.ReadFile(filepath.Join(c.replicaDir(1), file))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, id := range c.ids()[1:] {
		if err := os.WriteFile(filepath.Join(c.replicaDir(id), file), b, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
}

// updateMemory waits for a replica's update phase, with which serve begins, and
// returns how many bytes its process took to make the epoch.
func (c *cluster) updateMemory(id uint32, e archive.Epoch) (n int64) {
	c.t.Helper()
	archivetest.Eventually(c.t, 10*time.Minute, fmt.Sprintf("replica %d has made epoch %d", id, e), func() bool {
		for line := range strings.Lines(c.serve[id].Output()) {
			var m struct {
				Kind   string
				Epoch  archive.Epoch
				Memory int64
			}
			if json.Unmarshal([]byte(line), &m) == nil && m.Kind == "phase" && m.Epoch == e {
				n = m.Memory
				return true
			}
		}
		return false
	})
	return n
}
