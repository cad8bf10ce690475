package archivetest_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// A replica that was away for two epochs comes back while one peer lies about
// the history, and answers with the common head after the next update phase.
func TestLateReplicaBesideLiar(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, "software")
	c.bind("late/one", "one")
	c.serve[4].Stop(syscall.SIGTERM)
	missed := c.awaitEpoch(2, 1, 2, 3)
	c.ok("add", "late/two", c.write("two", []byte("two")))
	for e := range archive.Epoch(2) {
		c.phase(missed+e+1, 1, 2, 3)
	}
	c.serve[2].Stop(syscall.SIGKILL)
	l := newLiar(t, c, 2, 1)
	c.start(4)
	at := c.phase(missed+2, 1, 3, 4)
	if l.lies.Load() == 0 {
		t.Error("the liar was never asked")
	}
	if got := c.get("late/two"); got != "two" {
		t.Errorf("got %q, want %q at epoch %d", got, "two", at)
	}
}

// The store of one replica is deleted while one peer flips bytes in what it
// sends: the root and all contents come back.
func TestStoreLostBesideLiar(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, "software")
	var digests []archive.Digest
	cl := c.client(0)
	var items []client.Item
	for i := range 20 {
		body := strings.Repeat(fmt.Sprintf("content %d ", i), 1000*i+1)
		digests = append(digests, archive.DigestOf([]byte(body)))
		items = append(items, client.Item{Name: archive.Name(fmt.Sprintf("lost/%02d", i)),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }})
	}
	c.bindAll(cl, items)
	c.serve[4].Stop(syscall.SIGTERM)
	if err := os.RemoveAll(filepath.Join(c.replicaDir(4), "store")); err != nil {
		t.Fatal(err)
	}
	c.serve[2].Stop(syscall.SIGKILL)
	newLiar(t, c, 2, 1)
	c.start(4)
	c.phase(1, 1, 3, 4)
	c.awaitContents(4, digests)
	c.auditClean(4)
	// The same under a running service, and by hand.
	store := filepath.Join(c.replicaDir(4), "store")
	if err := os.Rename(store, store+".gone"); err != nil { // at once, whatever the service is writing
		t.Fatal(err)
	}
	archivetest.Eventually(t, 60*time.Second, "audit --repair brings all back", func() bool {
		_, _, status := c.run("audit", "--repair", "--dir", c.replicaDir(4))
		return status == 0
	})
	c.awaitContents(4, digests)
	c.awaitEpoch(1, 1, 3, 4)
}

// awaitContents waits until a replica holds all the given contents.
func (c *cluster) awaitContents(id uint32, digests []archive.Digest) {
	c.t.Helper()
	archivetest.Eventually(c.t, 60*time.Second, "all contents are back", func() bool {
		for _, d := range digests {
			b, err := archivetest.ReadContent(c.replicaDir(id), d)
			if err != nil || archive.Digest(sha256.Sum256(b)) != d {
				return false
			}
		}
		return true
	})
}

// auditClean audits a served replica and wants no damage; between two phases,
// if one comes in between.
func (c *cluster) auditClean(id uint32) {
	c.t.Helper()
	archivetest.Eventually(c.t, 60*time.Second, fmt.Sprintf("audit of replica %d is clean", id), func() bool {
		_, _, status := c.run("audit", "--dir", c.replicaDir(id))
		return status == 0
	})
}

// bindAll adds items and has the update phase run that binds them.
func (c *cluster) bindAll(cl *client.Client, items []client.Item) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 90*time.Second)
	defer cancel()
	res, err := cl.Add(ctx, items)
	if err != nil {
		c.t.Fatal(err)
	}
	c.next()
	if _, err := cl.Wait(ctx, res.Bindings); err != nil {
		c.t.Fatal(err)
	}
}

// With f+1 of 3f+1 replicas up, present names are still got, in under a second
// and whatever number of ticks is missed; an absence is stale then. With f up
// there is no quorum. With all up again, an absence is proven.
func TestStopped(t *testing.T) {
	t.Parallel()
	c := newScheduled(t, 4, "software", "@every 8s", archive.TrialLimits(8*time.Second))
	c.awaitEpoch(1, 1, 2, 3, 4)
	c.ok("add", "stopped/a", c.write("a", []byte("still here")), "--wait", "--timeout", "60s")
	c.awaitEpoch(1, 1, 2, 3, 4)
	c.halt(1)
	c.halt(2)
	c.getsFast()
	resets := c.resets(3)
	archivetest.Eventually(t, 90*time.Second, "three missed ticks", func() bool {
		n := c.resets(3)
		return n >= resets+3
	})
	c.getsFast()
	if _, errs, status := c.run("get", "stopped/never", "-o", "-", "--timeout", "20s"); status != 7 {
		t.Errorf("absent with two stopped: status %d, want 7: %s", status, errs)
	}
	c.halt(3)
	began := time.Now()
	if _, errs, status := c.run("get", "stopped/a", "-o", "-", "--timeout", "3s"); status != 6 || time.Since(began) > 6*time.Second {
		t.Errorf("get with three stopped: status %d after %s, want 6 in 3s: %s", status, time.Since(began), errs)
	}
	for id := uint32(1); id <= 3; id++ {
		c.resume(id)
	}
	archivetest.Eventually(t, 90*time.Second, "an absence is proven again", func() bool {
		_, errs, status := c.run("get", "stopped/never", "-o", "-")
		return status == 4 && strings.Contains(errs, "proven absent")
	})
}

// getsFast wants a Get of a present name to succeed within a timeout of a
// second, between two update phases of the replicas that are up.
func (c *cluster) getsFast() {
	c.t.Helper()
	archivetest.Eventually(c.t, 60*time.Second, "a Get in a second", func() bool {
		out, _, status := c.run("get", "stopped/a", "-o", "-", "--timeout", "1s")
		return status == 0 && string(out) == "still here"
	})
}

// resets returns how often a replica's device has been reset.
func (c *cluster) resets(id uint32) uint32 {
	st, err := c.status(id)
	if err != nil {
		return 0
	}
	var n uint32
	fmt.Sscanf(st.Counts, "%d.", &n)
	return n
}

// Two writers race for one name with different contents. Both are acknowledged
// by all replicas before the freeze, in opposite orders: one wins everywhere, the
// other learns the winner's digest.
func TestRace(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, "software")
	for round := range *rounds {
		name := archive.Name(fmt.Sprintf("race/%d", round))
		c.race(name, fmt.Sprintf("left %d", round), fmt.Sprintf("right %d", round))
	}
}

func (c *cluster) race(name archive.Name, left, right string) {
	t := c.t
	t.Helper()
	bodies := []string{left, right}
	var bindings []archive.Binding
	for _, b := range bodies {
		bindings = append(bindings, archive.Binding{Name: name, Content: archivetest.ContentOf([]byte(b))})
	}
	archivetest.Eventually(t, 60*time.Second, "both writers are acknowledged", func() bool { return c.offer(bindings, bodies) })
	c.next()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var winners, losers int
	for w, b := range bindings {
		res, err := c.client(w).Wait(ctx, []archive.Binding{b})
		var conflict *client.ConflictError
		switch {
		case err == nil && res[0].Entry.Digest == b.Digest:
			winners++
		case errors.As(err, &conflict) && conflict.Bound.Digest == bindings[1-w].Digest:
			losers++
		default:
			t.Errorf("writer %d: %v", w, err)
		}
	}
	if winners != 1 || losers != 1 {
		t.Errorf("%s: %d winners and %d losers, want one each", name, winners, losers)
	}
	path := c.write("loser", []byte(left))
	if c.get(string(name)) == left {
		path = c.write("loser", []byte(right))
	}
	if _, errs, status := c.run("add", string(name), path); status != 8 {
		t.Errorf("the loser's add: status %d, want 8: %s", status, errs)
	}
}

// offer sends both submissions to each replica, in opposite orders at odd and
// even ones, and reports whether all acknowledged both as pending.
func (c *cluster) offer(bindings []archive.Binding, bodies []string) bool {
	var all sync.WaitGroup
	acked := make(chan bool, c.roster.N())
	for i, m := range c.roster.Replicas {
		all.Go(func() {
			order := []int{i % 2, 1 - i%2}
			ok := true
			for _, w := range order {
				ok = ok && c.offerTo(m, w, bindings[w], bodies[w]) == nil
			}
			acked <- ok
		})
	}
	all.Wait()
	close(acked)
	for ok := range acked {
		if !ok {
			return false
		}
	}
	return true
}

func (c *cluster) offerTo(m archive.Replica, writer int, b archive.Binding, body string) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
	defer cancel()
	w := wire.NewClient(m, c.roster, wire.Options{Timeout: 2 * time.Second})
	defer w.Close()
	up := archive.SignUpload(c.writers[writer], c.roster.ID(), b.Content)
	if err := w.PutContent(ctx, up, int64(b.Size), strings.NewReader(body)); err != nil {
		return err
	}
	s := archive.Submission{Archive: c.roster.ID(), Created: time.Now().UTC().Truncate(time.Second), Bindings: []archive.Binding{b}}
	s.Sign(c.writers[writer])
	ack, err := w.Add(ctx, s)
	if err == nil && ack.Status != wire.AckPending {
		err = fmt.Errorf("status %s", ack.Status)
	}
	return err
}
