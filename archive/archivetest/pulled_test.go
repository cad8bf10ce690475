package archivetest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

// The files that a service process has mapped are cut off, emptied, zeroed or
// removed under it: reading them is a fault then. It answers nothing wrong,
// takes no Add that is lost, and serves again by itself, repaired.
func TestPulled(t *testing.T) {
	t.Parallel()
	c := newSiege(t)
	c.bind("good/a", "here to stay")
	var names []archive.Name
	n := 0
	for _, tt := range []struct {
		file, how string
		pull      func(string) error
	}{
		{"tree.db", "emptied", func(f string) error { return os.Truncate(f, 0) }},
		{"tree.db", "cut", func(f string) error { return os.Truncate(f, 8192) }},
		{"tree.db", "zeroed", zero},
		{"tree.db", "removed", os.Remove},
		{"pending.db", "cut", func(f string) error { return os.Truncate(f, 8192) }},
		{"pending.db", "zeroed", zero},
	} {
		t.Run(tt.file+" "+tt.how, func(t *testing.T) {
			c := c.at(t)
			if err := tt.pull(filepath.Join(c.replicaDir(1), "store", tt.file)); err != nil {
				t.Fatal(err)
			}
			if tt.file == "pending.db" {
				names = nil // the others have them, as far as they were sent any
			}
			n++
			names = append(names, archive.Name(fmt.Sprintf("pulled/%d", n)))
			c.serveAgain(1, names[len(names)-1])
		})
	}
	c.crash(1)
	for _, n := range names {
		if p, err := c.raw[1].Pending(t.Context(), n); err != nil || !p.Pending {
			t.Errorf("%q was acknowledged, and is lost: %v", n, err)
		}
	}
	c.auditRepairs(1)
	c.next()
	c.unharmed()
	c.get(string(names[0]))
}

// zero overwrites a file with zeros where it lies.
func zero(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(make([]byte, info.Size()))
	return err
}

// serveAgain asks a replica until it answers a Get and takes an Add of a new
// name.
func (c *siege) serveAgain(id uint32, n archive.Name) {
	c.t.Helper()
	archivetest.Eventually(c.t, 30*time.Second, "the replica answers again", func() bool {
		nonce := trust.Nonce(archive.DigestOf([]byte(time.Now().String())))
		a, err := c.raw[id].Answer(c.t.Context(), wire.AnswerRequest{Nonce: nonce, Name: "good/a"})
		if err != nil {
			return false
		}
		v, err := a.Verify(c.roster, id, nonce)
		if err != nil {
			c.t.Errorf("an answer that does not verify: %v", err)
			return true
		}
		if _, ok, err := archive.Lookup(v.View, "good/a"); !ok || err != nil {
			c.t.Errorf("a wrong answer: %t, %v", ok, err)
		}
		return true
	})
	archivetest.Eventually(c.t, 30*time.Second, "the replica takes an Add", func() bool {
		_, err := c.raw[id].Add(c.t.Context(), c.submission(bindingOf(n)))
		return err == nil
	})
}
