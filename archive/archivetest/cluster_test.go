package archivetest_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/cmd"
)

var (
	kills  = flag.Int("kills", 8, "how many processes TestKills kills")
	seed   = flag.Uint64("seed", 1, "of the random choices of TestKills")
	rounds = flag.Int("rounds", 3, "how many names TestRace races for")
)

func TestMain(m *testing.M) {
	if os.Getenv(asTracer) != "" {
		os.Exit(trace(os.Args[1:]))
	}
	if dir := os.Getenv(floorDir); dir != "" {
		fmt.Fprintln(os.Stderr, "floor:", keepFloor(dir))
		os.Exit(1)
	}
	archivetest.Main(m, func(args []string) int { return cmd.Execute(args, os.Stdin, os.Stdout, os.Stderr) })
}

// cluster is an archive whose replicas are one serve process each.
type cluster struct {
	t       testing.TB
	dir     string
	roster  *archive.Roster
	writers []ed25519.PrivateKey
	serve   map[uint32]*archivetest.Process
	net     *network // that the replicas are in; nil: the loopback of this process
}

// leapDays is a schedule whose phases do not come in between: those that are
// asked for are all there are.
const leapDays = "0 0 29 2 *"

// newCluster provisions n replicas, starts them and has them make an epoch. All
// further update phases are asked for, and have time: a minute each.
func newCluster(t testing.TB, n int, mas string) *cluster {
	t.Helper()
	return newHurried(t, n, mas, time.Minute)
}

// newHurried is newCluster with another limit to a phase, which one pays in full
// whenever a replica cannot end it well.
func newHurried(t testing.TB, n int, mas string, phase time.Duration) *cluster {
	t.Helper()
	l := archive.TrialLimits(time.Minute)
	l.Phase, l.Join = archive.Duration(phase), archive.Duration(8*time.Second)
	l.Grace, l.Linger = archive.Duration(time.Second), archive.Duration(5*time.Second)
	c := newScheduled(t, n, mas, leapDays, l)
	c.phase(1, c.ids()...)
	return c
}

// newScheduled provisions n replicas and starts them.
func newScheduled(t testing.TB, n int, mas string, schedule archive.Schedule, limits archive.Limits) *cluster {
	t.Helper()
	port := archivetest.Ports(t, 2*n)
	var addresses []string
	for i := range n {
		addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", port+2*i))
	}
	return newOn(t, nil, addresses, mas, schedule, limits)
}

// newOn provisions a replica for each address, in a network that has them, and
// starts them.
func newOn(t testing.TB, w *network, addresses []string, mas string, schedule archive.Schedule, limits archive.Limits) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), serve: make(map[uint32]*archivetest.Process), net: w}
	c.write("config.yaml", []byte("roster: roster.json\nwriter-key: writer.key\n"))
	var members []archive.Replica
	for i, a := range addresses {
		out := c.ok("init", "replica", "--dir", c.replicaDir(uint32(i+1)), "--id", fmt.Sprint(i+1), "--address", a, "--mas", mas)
		e, err := archive.ParseEnrolment(out)
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, e.Replica)
	}
	var writers []archive.Writer
	for range 2 {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c.writers = append(c.writers, key)
		writers = append(writers, archive.Writer{Key: archive.PublicKey(pub), Prefixes: []string{}, Names: 1e6, Bytes: 1 << 40})
	}
	r, err := archive.NewRoster("cluster", time.Now(), schedule, limits, members, writers, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.roster = r
	c.write("roster.json", r.Bytes())
	c.write("writer.key", keyPEM(t, c.writers[0]))
	for _, m := range members {
		c.start(m.ID)
	}
	return c
}

func (c *cluster) ids() (all []uint32) {
	for _, m := range c.roster.Replicas {
		all = append(all, m.ID)
	}
	return all
}

func keyPEM(t testing.TB, key ed25519.PrivateKey) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (c *cluster) replicaDir(id uint32) string {
	return filepath.Join(c.dir, fmt.Sprintf("replica-%d", id))
}

func (c *cluster) write(name string, b []byte) string {
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *cluster) start(id uint32) {
	c.net.at(id, func() {
		c.serve[id] = archivetest.Start(c.t, "serve", "--dir", c.replicaDir(id), "--roster", filepath.Join(c.dir, "roster.json"))
	})
}

// run runs a command of the program as the cluster's user and returns what it
// printed and its exit status.
func (c *cluster) run(args ...string) (stdout []byte, stderr string, status int) {
	cmd := c.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		c.t.Fatalf("%v: %v", args, err)
	}
	return out.Bytes(), errs.String(), cmd.ProcessState.ExitCode()
}

// command returns a run of the program as the cluster's user.
func (c *cluster) command(args ...string) *exec.Cmd {
	cmd := archivetest.Command(c.t.Context(), append([]string{"--config", filepath.Join(c.dir, "config.yaml")}, args...)...)
	cmd.Env = append(cmd.Env, "XDG_STATE_HOME="+filepath.Join(c.dir, "state"), "XDG_CONFIG_HOME="+c.dir, "XDG_DATA_HOME="+c.dir)
	return cmd
}

// ok runs a command that must end with status 0.
func (c *cluster) ok(args ...string) []byte {
	c.t.Helper()
	out, errs, status := c.run(args...)
	if status != 0 {
		c.t.Fatalf("%v: status %d\n%s%s", args, status, out, errs)
	}
	return out
}

// client returns a client of the cluster that writes by the given writer.
func (c *cluster) client(writer int) *client.Client {
	c.t.Helper()
	cl, err := client.New(client.Config{Roster: c.roster, Key: c.writers[writer]})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cl.Close() })
	return cl
}

// status asks one replica.
func (c *cluster) status(id uint32) (wire.Status, error) {
	m, _ := c.roster.Replica(id)
	w := wire.NewClient(m, c.roster, wire.Options{Timeout: 2 * time.Second})
	defer w.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return w.Status(ctx)
}

// epoch returns the epoch that a replica serves, or 0.
func (c *cluster) epoch(id uint32) archive.Epoch {
	st, err := c.status(id)
	if err != nil {
		return 0
	}
	return st.Epoch
}

// common returns the epoch that all the given replicas serve under one head, at
// least e.
func (c *cluster) common(e archive.Epoch, ids ...uint32) (at archive.Epoch, ok bool) {
	heads := make(map[archive.Digest]bool)
	for _, id := range ids {
		st, err := c.status(id)
		if err != nil || st.Epoch < e || st.Damaged {
			return 0, false
		}
		heads[st.Head], at = true, st.Epoch
	}
	return at, len(heads) == 1
}

// awaitEpoch waits until all the given replicas serve an epoch of at least e
// under one head, and returns that epoch.
func (c *cluster) awaitEpoch(e archive.Epoch, ids ...uint32) (at archive.Epoch) {
	c.t.Helper()
	archivetest.Eventually(c.t, 90*time.Second, fmt.Sprintf("replicas %v at epoch %d under one head", ids, e), func() (ok bool) {
		at, ok = c.common(e, ids...)
		return ok
	})
	return at
}

// phase has the given replicas run update phases until all serve an epoch of at
// least e under one head.
func (c *cluster) phase(e archive.Epoch, ids ...uint32) archive.Epoch {
	c.t.Helper()
	return c.phaseOf(ids, e, ids...)
}

// phaseOf has replicas run update phases until those that are well serve an epoch
// of at least e under one head.
func (c *cluster) phaseOf(joining []uint32, e archive.Epoch, well ...uint32) (at archive.Epoch) {
	c.t.Helper()
	archivetest.Eventually(c.t, 3*time.Minute, fmt.Sprintf("update phases bring replicas %v to epoch %d", well, e), func() (ok bool) {
		c.awaitService(joining...)
		if at, ok = c.common(e, well...); ok {
			return true
		}
		var all sync.WaitGroup
		for _, id := range joining {
			all.Go(func() { c.run("update", "--dir", c.replicaDir(id), "--timeout", "30s") })
		}
		all.Wait()
		return false
	})
	return at
}

// awaitService waits until all the given replicas are in their service phase.
func (c *cluster) awaitService(ids ...uint32) {
	c.t.Helper()
	archivetest.Eventually(c.t, 90*time.Second, fmt.Sprintf("replicas %v are in service", ids), func() bool {
		return !slices.ContainsFunc(ids, func(id uint32) bool { _, err := c.status(id); return err != nil })
	})
}

// next has all replicas make one more epoch.
func (c *cluster) next() archive.Epoch {
	c.t.Helper()
	return c.phase(c.awaitEpoch(0, c.ids()...)+1, c.ids()...)
}

// bind adds a name and has the update phase run that binds it.
func (c *cluster) bind(name, content string) {
	c.t.Helper()
	c.ok("add", name, c.write("in-"+strings.ReplaceAll(name, "/", "_"), []byte(content)), "--timeout", "60s")
	c.next()
}

// get returns the bytes that a name is bound to.
func (c *cluster) get(name string) string {
	c.t.Helper()
	return string(c.ok("get", name, "-o", "-"))
}

// halt stops every process of a replica's serve where it stands.
func (c *cluster) halt(id uint32) { c.serve[id].Signal(syscall.SIGSTOP) }

// resume lets them go on.
func (c *cluster) resume(id uint32) { c.serve[id].Signal(syscall.SIGCONT) }

func readRoster(file string) (*archive.Roster, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return archive.ParseRoster(b)
}
