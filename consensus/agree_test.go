package consensus

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A member of these tests is a process of its own: the test binary, started
// again with a role in its environment.
const roleVariable = "BONAFIDE_CONSENSUS_TEST_ROLE"

func TestMain(m *testing.M) {
	if text := os.Getenv(roleVariable); text != "" {
		os.Exit(play(text))
	}
	os.Exit(m.Run())
}

// role is what a member process does.
type role struct {
	Dir       string
	Name      string // of the instance
	Self      uint32
	Addresses []string // of members 1, 2, ...
	Act       string   // what Propose and Check do
	Seed      uint32   // of the key, if not Self's
	Timeouts  Timeouts
	Verbose   bool
}

// play runs Agree and prints, a line each, "proposing", "refused", "decided BLOCK".
func play(text string) int {
	var r role
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		panic(err)
	}
	start := time.Now()
	block, err := Agree(context.Background(), r.config())
	if err != nil {
		fmt.Println("failed", err)
		return 1
	}
	fmt.Println("took", time.Since(start).Milliseconds())
	fmt.Println("decided", string(block[:min(len(block), 64)]))
	return 0
}

func (r role) config() Config {
	seed := r.Seed
	if seed == 0 {
		seed = r.Self
	}
	c := Config{Dir: r.Dir, Instance: sha256.Sum256([]byte(r.Name)), Self: r.Self,
		Key: testKey(seed), Timeouts: r.Timeouts, Propose: r.propose, Check: r.check}
	for i, a := range r.Addresses {
		id := uint32(i + 1)
		if id == r.Self {
			c.Members = append(c.Members, Member{id, a, testKey(seed).Public().(ed25519.PublicKey)})
			continue
		}
		c.Members = append(c.Members, Member{id, a, testPublic(id)})
	}
	if r.Verbose {
		c.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return c
}

func (r role) propose(ctx context.Context) ([]byte, error) {
	fmt.Println("proposing")
	switch r.Act {
	case "bad":
		return []byte("bad block"), nil
	case "none":
		return nil, errors.New("no block")
	case "panic":
		panic("no block")
	case "wait":
		<-ctx.Done()
		return nil, ctx.Err()
	case "big":
		return append([]byte(fmt.Sprintf("good block of %d ", r.Self)), make([]byte, MaxBlock-64)...), nil
	}
	return []byte(fmt.Sprintf("good block of %d", r.Self)), nil
}

func (r role) check(b []byte) error {
	if r.Act == "bad" || bytes.HasPrefix(b, []byte("good")) {
		return nil
	}
	fmt.Println("refused")
	return errors.New("not good")
}

func testKey(n uint32) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte{'k', byte(n)})
	return ed25519.NewKeyFromSeed(seed[:])
}

func testPublic(n uint32) ed25519.PublicKey { return testKey(n).Public().(ed25519.PublicKey) }

// freeAddresses probes for n ports outside the range from which the system
// itself picks, so that no client connection takes one in between.
func freeAddresses(t testing.TB, n int) (out []string) {
	t.Helper()
	for tries := 0; len(out) < n; tries++ {
		if tries > 10000 {
			t.Fatal("no free ports")
		}
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			out = append(out, addr)
		}
	}
	return out
}

// cluster is a set of member processes of one instance.
type cluster struct {
	t     *testing.T
	roles []role
}

func newCluster(t *testing.T, n int) *cluster {
	c := &cluster{t: t}
	addrs, dir := freeAddresses(t, n), t.TempDir()
	for i := range n {
		id := uint32(i + 1)
		c.roles = append(c.roles, role{Dir: filepath.Join(dir, fmt.Sprint(id)), Name: t.Name(),
			Self: id, Addresses: addrs, Timeouts: short, Verbose: os.Getenv("VERBOSE") != ""})
	}
	return c
}

var short = Timeouts{Propose: 800 * time.Millisecond, ProposeDelta: 200 * time.Millisecond,
	Vote: 300 * time.Millisecond, VoteDelta: 100 * time.Millisecond}

// leader returns the member that leads round 0.
func (c *cluster) leader() uint32 {
	conf := c.roles[0].config()
	genesis, err := conf.genesis()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, m := range conf.Members {
		if peerID(m.Key) == peerID(genesis.Validators.GetProposer().PubKey.Bytes()) {
			return m.ID
		}
	}
	c.t.Fatal("no leader")
	return 0
}

// process is a running member.
type process struct {
	t     *testing.T
	id    uint32
	cmd   *exec.Cmd
	lines chan string
}

func (c *cluster) start(id uint32) *process {
	c.t.Helper()
	return c.run(c.roles[id-1])
}

func (c *cluster) run(r role) *process {
	c.t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	p := &process{t: c.t, id: r.Self, cmd: cmd, lines: make(chan string, 1000)}
	go p.read(out)
	c.t.Cleanup(p.kill)
	return p
}

func (p *process) read(out io.Reader) {
	defer close(p.lines)
	for s := bufio.NewScanner(out); s.Scan(); {
		p.lines <- s.Text()
	}
}

// kill is kill -9.
func (p *process) kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// await returns what follows word on the next line that begins with it.
func (p *process) await(word string) string {
	p.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("member %d ended before %q", p.id, word)
			}
			if rest, ok := strings.CutPrefix(line, word); ok {
				return strings.TrimSpace(rest)
			}
			if strings.HasPrefix(line, "failed") {
				p.t.Fatalf("member %d: %s", p.id, line)
			}
		case <-limit:
			p.t.Fatalf("member %d: no %q", p.id, word)
		}
	}
}

// sameDecision waits for all and returns what they decided.
func sameDecision(t *testing.T, ps ...*process) string {
	t.Helper()
	decision, took := "", ""
	for _, p := range ps {
		took += " " + p.await("took")
		got := p.await("decided")
		if decision != "" && got != decision {
			t.Fatalf("member %d decided %q, another %q", p.id, got, decision)
		}
		decision = got
	}
	t.Logf("decided %q; ms:%s", decision, took)
	if !strings.HasPrefix(decision, "good") {
		t.Fatalf("decided %q", decision)
	}
	return decision
}

func (c *cluster) startExcept(absent ...uint32) (ps []*process) {
	c.t.Helper()
next:
	for _, r := range c.roles {
		for _, id := range absent {
			if r.Self == id {
				continue next
			}
		}
		ps = append(ps, c.run(r))
	}
	return ps
}

func TestAgree(t *testing.T) {
	for _, n := range []int{1, 4, 7} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := newCluster(t, n)
			got := sameDecision(t, c.startExcept()...)
			if want := fmt.Sprintf("good block of %d", c.leader()); got != want {
				t.Logf("the first leader was passed over: %q, not %q", got, want)
			}
		})
	}
}
