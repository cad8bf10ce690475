package archivetest_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
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
	"golang.org/x/sys/unix"
)

// Everything bad that clients, strangers and a careless operator send to four
// served replicas: each gets one clear error, and in the end the same processes
// serve the same archive, with nothing more in it than was rightly added.
func TestHostile(t *testing.T) {
	t.Parallel()
	c := newSiege(t)
	c.bind("good/a", "here to stay")
	before := c.services()
	t.Run("names at the client", c.namesAtClient)
	t.Run("names at the replicas", c.namesAtReplicas)
	t.Run("files", c.files)
	t.Run("sources that change", c.sources)
	t.Run("rosters at the client", c.rostersAtClient)
	t.Run("rosters at serve", c.rostersAtServe)
	t.Run("strangers", c.strangers)
	t.Run("requests", c.requests)
	t.Run("endless bodies", c.endless)
	t.Run("cut bodies", c.cutBodies)
	t.Run("uploads", c.uploads)
	t.Run("ranges", c.ranges)
	t.Run("garbage in service", c.garbageInService)
	t.Run("control sockets", c.sockets)
	t.Run("two serve", c.twoServe)
	if after := c.services(); !slices.Equal(before, after) {
		t.Errorf("service processes %v, were %v", after, before)
	}
	c.unharmed()
	t.Run("garbage in a phase", c.garbageInPhase)
	c.unharmed()
	t.Run("taken port", c.takenPort)
	c.unharmed()
}

// siege is a cluster and who asks it for what no client of ours would.
type siege struct {
	*cluster
	raw map[uint32]*wire.Client
}

func newSiege(t *testing.T) *siege { t.Helper(); return besiege(t, newCluster(t, 4, "software")) }

func besiege(t *testing.T, cl *cluster) *siege {
	c := &siege{cl, make(map[uint32]*wire.Client)}
	for _, m := range c.roster.Replicas {
		c.raw[m.ID] = wire.NewClient(m, c.roster, wire.Options{Timeout: 5 * time.Second})
		t.Cleanup(c.raw[m.ID].Close)
	}
	return c
}

// at returns a siege of the same cluster that reports to a subtest.
func (c *siege) at(t *testing.T) *siege {
	d := *c.cluster
	d.t = t
	return &siege{&d, c.raw}
}

// services lists the process IDs of the service children.
func (c *cluster) services() (pids []int) {
	for _, m := range c.roster.Replicas {
		for _, pid := range archivetest.Descendants(c.serve[m.ID].Pid()) {
			if slices.Contains(archivetest.Cmdline(pid), "service") {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// unharmed wants every replica to serve one head, undamaged and with nothing
// pending, and the first name to have its content.
func (c *cluster) unharmed() {
	c.t.Helper()
	c.awaitEpoch(1, 1, 2, 3, 4)
	for _, m := range c.roster.Replicas {
		if st, err := c.status(m.ID); err != nil || st.Damaged || st.Pending != 0 || st.Note != "" {
			c.t.Errorf("replica %d: %+v, %v", m.ID, st, err)
		}
		left, err := os.ReadDir(filepath.Join(c.replicaDir(m.ID), "store", "tmp"))
		if err != nil || len(left) > 0 {
			c.t.Errorf("replica %d: left in tmp/: %v, %v", m.ID, left, err)
		}
	}
	if got := c.get("good/a"); got != "here to stay" {
		c.t.Errorf("got %q", got)
	}
}

// fails wants a command to end with the given status, nothing on stdout, and
// one line of error that contains want, with at most one hint.
func (c *cluster) fails(status int, want string, args ...string) {
	c.t.Helper()
	out, errs, got := c.run(args...)
	if got != status || len(out) > 0 {
		c.t.Errorf("%q: status %d, want %d; stdout %q, stderr %q", args, got, status, out, errs)
	}
	var lines []string
	for l := range strings.Lines(errs) {
		if !strings.HasPrefix(l, "bonafide: hint: ") {
			lines = append(lines, l)
		}
	}
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "bonafide: ") || !strings.Contains(lines[0], want) || strings.Count(errs, "\n") > 2 {
		c.t.Errorf("%q: stderr %q, want one line with %q", args, errs, want)
	}
}

// badNames are what no archive takes, at the client or at a replica.
var badNames = []string{
	"", "/", "a/", "/a", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\x00b", "a\nb", "a\x1bb", "a\x7f", "a\u0085b",
	"a\u202eb", "a\u2066b", "a\xff", "a\xc3", "a\xed\xa0\x80", ".bonafide/a", strings.Repeat("n", archive.MaxName+1),
}

func (c *siege) namesAtClient(t *testing.T) {
	c = c.at(t)
	file := c.write("named", []byte("named"))
	for i, n := range badNames {
		if strings.Contains(n, "\x00") {
			continue // no argument can hold it
		}
		switch i % 3 {
		case 0:
			c.fails(2, "name", "add", "--", n, file)
		case 1:
			c.fails(2, "name", "get", "-o", "-", "--", n)
		case 2:
			c.fails(2, "name", "verify", "--", n, file)
		}
	}
	c.fails(2, "name", "ls", "a\x1bb")
	c.fails(4, "proven absent", "get", strings.Repeat("n", archive.MaxName), "-o", "-")
}

// namesAtReplicas sends bad names past the client.
func (c *siege) namesAtReplicas(t *testing.T) {
	c = c.at(t)
	held := archivetest.ContentOf([]byte("here to stay"))
	for _, m := range c.roster.Replicas {
		for _, n := range badNames {
			s := c.submission(archive.Binding{Name: archive.Name(n), Content: held})
			c.refused(m, badRequest, request{what: fmt.Sprintf("add %q", n), method: "POST", path: wire.PathAdd, body: s.Bytes()})
			q := wire.AnswerRequest{Name: archive.Name(n)}
			c.refused(m, badRequest, request{what: fmt.Sprintf("answer %q", n), method: "POST", path: wire.PathAnswer, body: q.Bytes()})
			c.refused(m, badRequest, request{what: fmt.Sprintf("pending %q", n), path: wire.PathPending + "?name=" + wire.EncodeBytes([]byte(n))})
			c.refused(m, badRequest, proofsRequest(archive.DigestOf(nil), archive.Name(n)))
		}
	}
}

// submission is the first writer's.
func (c *siege) submission(b ...archive.Binding) archive.Submission {
	s := archive.Submission{Archive: c.roster.ID(), Created: time.Now().UTC().Truncate(time.Second), Bindings: b}
	s.Sign(c.writers[0])
	return s
}

func (c *siege) files(t *testing.T) {
	c = c.at(t)
	c.fails(1, "no such file", "add", "files/none", filepath.Join(c.dir, "none"))
	c.fails(2, "is a directory", "add", "files/dir", c.dir)
	c.fails(1, "input/output error", "add", "files/unreadable", "/proc/self/mem")
	pipe := filepath.Join(c.dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	c.fails(1, "not a regular file", "get", "good/a", "-o", pipe)
	c.fails(1, "no such file", "get", "good/a", "-o", filepath.Join(c.dir, "none", "a"))
	c.fails(1, "no such file", "verify", "good/a", filepath.Join(c.dir, "none"))
	c.fails(5, "", "verify", "good/a", c.write("other", []byte("other bytes")))
	c.fails(8, "", "add", "good/a", c.write("other", []byte("other bytes")))
	left, err := filepath.Glob(filepath.Join(c.dir, ".bonafide-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// sources are files that are not the same, or not there, when they are read
// again for the upload.
func (c *siege) sources(t *testing.T) {
	c = c.at(t)
	large := strings.Repeat("b", 9<<20) // read once to know it, and once to send it
	for _, x := range []struct {
		name  archive.Name
		again func() (io.ReadCloser, error)
		want  error
	}{
		{"source/longer", bytesOf(large + "as it was, and more"), client.ErrChanged},
		{"source/shorter", bytesOf(large + "as"), client.ErrChanged},
		{"source/other", bytesOf(large + "as it isnt"), client.ErrChanged},
		{"source/vanished", func() (io.ReadCloser, error) { return nil, fs.ErrNotExist }, fs.ErrNotExist},
		{"source/unreadable", bytesThen(large+"as", syscall.EIO), syscall.EIO},
	} {
		open := sync.OnceValues(bytesOf(large + "as it was!"))
		var mu sync.Mutex
		first := true
		item := client.Item{Name: x.name, Open: func() (io.ReadCloser, error) {
			mu.Lock()
			defer mu.Unlock()
			if first {
				first = false
				return open()
			}
			return x.again()
		}}
		if _, err := c.client(0).Add(t.Context(), []client.Item{item}); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
		c.fails(4, "proven absent", "get", string(x.name), "-o", "-")
	}
}

func bytesOf(s string) func() (io.ReadCloser, error) { return bytesThen(s, io.EOF) }

func bytesThen(s string, err error) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(s), failing{err})), nil
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// badRosters are those that are none, by file name.
func (c *siege) badRosters() map[string][]byte {
	good := c.roster.Bytes()
	replace := func(old, new string) []byte { return bytes.Replace(good, []byte(old), []byte(new), 1) }
	twice := *c.roster
	twice.Replicas = slices.Clone(c.roster.Replicas)
	twice.Replicas[1].MAS = twice.Replicas[0].MAS
	return map[string][]byte{
		"empty":      {},
		"cut":        good[:len(good)/2],
		"trailing":   append(slices.Clone(good), '\n'),
		"compact":    bytes.ReplaceAll(good, []byte("\n"), nil),
		"f-2":        replace(`"f": 1`, `"f": 2`),
		"f-0":        replace(`"f": 1`, `"f": 0`),
		"repeated":   replace(`"f": 1`, `"f": 1,`+"\n"+`  "f": 1`),
		"upper":      replace(`"f": 1`, `"F": 1`),
		"unknown":    replace(`"f": 1`, `"f": 1,`+"\n"+`  "g": 1`),
		"same-chip":  twice.Bytes(),
		"other-kind": []byte(`{"format":"bonafide/answer/v1"}`),
		"deep":       bytes.Repeat([]byte("["), 1<<20),
		"huge":       bytes.Repeat([]byte(" "), archive.MaxRoster+1),
	}
}

func (c *siege) rostersAtClient(t *testing.T) {
	c = c.at(t)
	for name, b := range c.badRosters() {
		if _, err := archive.ParseRoster(b); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
	for _, name := range []string{"cut", "compact", "f-2", "same-chip", "deep", "huge"} {
		c.fails(2, "", "get", "good/a", "-o", "-", "--roster", c.write("roster-"+name, c.badRosters()[name]))
	}
	c.fails(2, "no such file", "get", "good/a", "-o", "-", "--roster", filepath.Join(c.dir, "none"))
	c.fails(2, "", "get", "good/a", "-o", "-", "--roster", c.dir)
	c.everyByteOfRoster()
	foreign := c.foreignRosters()
	for name, b := range foreign {
		c.fails(6, "0 of 2 needed", "get", "good/a", "-o", "-", "--roster", c.write("foreign-"+name, b), "--timeout", "2s")
	}
	c.fails(9, "", "add", "foreign/a", c.write("in", []byte("in")), "--roster", c.write("foreign", foreign["name"]), "--timeout", "2s")
}

// everyByteOfRoster changes each byte of the roster: it is none any more, or
// that of another archive.
func (c *siege) everyByteOfRoster() {
	good, id := c.roster.Bytes(), c.roster.ID()
	for i := range good {
		b := slices.Clone(good)
		b[i] ^= 1
		if r, err := archive.ParseRoster(b); err == nil && r.ID() == id {
			c.t.Fatalf("byte %d of the roster does not count", i)
		}
	}
}

// foreignRosters are good ones, of other archives with the same replicas.
func (c *siege) foreignRosters() map[string][]byte {
	renamed := *c.roster
	renamed.Name = "another"
	pins := *c.roster
	pins.Replicas = slices.Clone(c.roster.Replicas)
	for i := range pins.Replicas {
		pins.Replicas[i].TLS[0] ^= 1
	}
	return map[string][]byte{"name": renamed.Bytes(), "pins": pins.Bytes()}
}

// rostersAtServe gives a replica that is not being served, and one that is, the
// wrong roster.
func (c *siege) rostersAtServe(t *testing.T) {
	c = c.at(t)
	spare := filepath.Join(c.dir, "spare")
	c.ok("init", "replica", "--dir", spare, "--id", "1", "--address", "127.0.0.1:9")
	for _, name := range []string{"empty", "trailing", "f-0"} {
		c.fails(2, "", "-q", "serve", "--dir", spare, "--roster", c.write("roster-"+name, c.badRosters()[name]))
	}
	good := filepath.Join(c.dir, "roster.json")
	c.fails(2, "another service key", "-q", "serve", "--dir", spare, "--roster", good)
	c.fails(2, "no such file", "-q", "serve", "--dir", spare)
	foreign := c.foreignRosters()
	c.fails(2, "serves archive", "-q", "serve", "--dir", c.replicaDir(1), "--roster", c.write("foreign", foreign["name"]))
	c.fails(2, "another service key", "-q", "serve", "--dir", c.replicaDir(1), "--roster", c.write("foreign", foreign["pins"]))
	if b, err := os.ReadFile(filepath.Join(c.replicaDir(1), "roster.json")); err != nil || !bytes.Equal(b, c.roster.Bytes()) {
		t.Errorf("the replica's roster changed: %v", err)
	}
}

// strangers have a key that stands in no roster.
func (c *siege) strangers(t *testing.T) {
	c = c.at(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.write("stranger.key", keyPEM(t, key))
	config := c.write("stranger.yaml", []byte("roster: roster.json\nwriter-key: stranger.key\n"))
	c.fails(9, "denied", "--config", config, "add", "strange/a", c.write("in", []byte("in")))
	s := archive.Submission{Archive: c.roster.ID(), Created: time.Now().UTC(), Bindings: c.submission(bindingOf("strange/a")).Bindings}
	s.Sign(key)
	up := archive.SignUpload(key, c.roster.ID(), archivetest.ContentOf([]byte("in")))
	forged := archive.SignUpload(c.writers[0], c.roster.ID(), archivetest.ContentOf([]byte("in")))
	forged.Signature[0] ^= 1
	for _, m := range c.roster.Replicas {
		// Nothing of the body but its first bytes is ever sent.
		const more = 1 << 20
		c.refusedEarly(m, 403, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", wire.PathAdd, more, s.Bytes()[:archive.SubmissionPrefix]))
		for _, u := range []archive.Upload{up, forged} {
			c.refusedEarly(m, 403, fmt.Sprintf("PUT %s%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s: %s\r\n\r\n",
				wire.PathContent, u.Digest, more, wire.HeaderUpload, wire.EncodeBytes(u.Bytes())))
		}
		c.refusedEarly(m, 403, fmt.Sprintf("PUT %s%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", wire.PathContent, up.Digest, more))
		c.refused(m, denied, request{what: "forged", method: "POST", path: wire.PathAdd, body: flipped(c.submission(bindingOf("strange/a")).Bytes())})
	}
}

func bindingOf(n archive.Name) archive.Binding {
	return archive.Binding{Name: n, Content: archivetest.ContentOf([]byte("here to stay"))}
}

// flipped is b with its last bit changed.
func flipped(b []byte) []byte {
	b = slices.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

// sockets sends garbage to the control sockets of watchdog and service process.
func (c *siege) sockets(t *testing.T) {
	c = c.at(t)
	run := filepath.Join(c.replicaDir(1), "run")
	for _, socket := range []string{"control", "service"} {
		for _, b := range []string{"\x00\xff\n", "\n", "{}\n", `{"do":"shutdown"}` + "\n", `{"do":7}` + "\n", `{"do":"state"`,
			strings.Repeat("[", 1<<20) + "\n", strings.Repeat("x", 1<<20), "GET / HTTP/1.1\r\n\r\n",
			"POST /v1/audit HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", ""} {
			conn, err := wire.DialUnix(t.Context(), run, socket)
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(2 * time.Second))
			io.WriteString(conn, b) // it may hang up in the middle
			if b != "" {
				conn.(*net.UnixConn).CloseWrite()
				io.Copy(io.Discard, io.LimitReader(conn, 1<<20))
				conn.Close()
				continue
			}
			t.Cleanup(func() { conn.Close() }) // half open
		}
	}
	c.auditClean(1)
	if out := c.ok("status", "--dir", c.replicaDir(1), "--json"); !bytes.Contains(out, []byte(`"id":1`)) {
		t.Errorf("status: %s", out)
	}
}

// twoServe starts second servers where there is one.
func (c *siege) twoServe(t *testing.T) {
	c = c.at(t)
	c.fails(11, "in use by another process", "-q", "serve", "--dir", c.replicaDir(2))
	dir := filepath.Join(c.dir, "trial")
	archivetest.Start(t, "-q", "serve", "--dir", dir, "--every", leapDays, "--listen", fmt.Sprintf("127.0.0.1:%d", archivetest.Ports(t, 8)))
	archivetest.Eventually(t, 60*time.Second, "the trial is made", func() bool {
		_, err := os.Stat(filepath.Join(dir, "roster.json"))
		return err == nil
	})
	c.fails(11, "in use by another process", "-q", "serve", "--dir", dir)
}

// takenPort starts a replica whose address another process has: it says so, and
// is well again when it is free.
func (c *siege) takenPort(t *testing.T) {
	c = c.at(t)
	c.serve[4].Stop(syscall.SIGTERM)
	m, _ := c.roster.Replica(4)
	l, err := net.Listen("tcp", m.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := c.serve[4].Restart(); err != nil {
		t.Fatal(err)
	}
	archivetest.Eventually(t, 60*time.Second, "the reason is told", func() bool {
		return strings.Contains(c.serve[4].Output(), "no epoch: update: listen for peers: listen tcp "+m.Address+": bind: address already in use")
	})
	l.Close()
	c.next()
}

// garbageInService leaves strangers connected to both ports of all replicas
// while they are asked.
func (c *siege) garbageInService(t *testing.T) {
	c = c.at(t)
	ctx, stop := context.WithCancel(t.Context())
	defer c.vandals(ctx).Wait()
	defer stop()
	for range 5 {
		if got := c.get("good/a"); got != "here to stay" {
			t.Errorf("got %q", got)
		}
	}
}

// garbageInPhase does the same during an update phase.
func (c *siege) garbageInPhase(t *testing.T) {
	c = c.at(t)
	ctx, stop := context.WithCancel(t.Context())
	defer c.vandals(ctx).Wait()
	defer stop()
	c.bind("good/b", "bound beside vandals")
	if got := c.get("good/b"); got != "bound beside vandals" {
		t.Errorf("got %q", got)
	}
}
