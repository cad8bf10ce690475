package consensus

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	cmted25519 "github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/p2p/conn"
	"go.uber.org/goleak"
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
		return append([]byte(fmt.Sprintf("good block of %d ", r.Self)), make([]byte, 3<<20)...), nil
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

// freeAddresses probes for n ports of the range of this package's tests
// (archivetest.Ports), and goes round in it: the ports of a member that is down are
// free to see and wanted again.
func freeAddresses(t testing.TB, n int) (out []string) {
	t.Helper()
	for tries := 0; len(out) < n; tries++ {
		if tries > 2500 {
			t.Fatal("no free ports")
		}
		addr := fmt.Sprintf("127.0.0.1:%d", 27_500+nextPort.Add(1)%2500)
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			out = append(out, addr)
		}
	}
	return out
}

var nextPort atomic.Uint32

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
	Vote: 300 * time.Millisecond, VoteDelta: 100 * time.Millisecond, Linger: 10 * time.Second}

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

// start starts a member, once an earlier process of it has let its address go.
func (c *cluster) start(id uint32) *process {
	c.t.Helper()
	r := c.roles[id-1]
	for late := time.Now().Add(patience); time.Now().Before(late); <-time.After(10 * time.Millisecond) {
		if l, err := net.Listen("tcp", r.Addresses[id-1]); err == nil {
			l.Close()
			break
		}
	}
	return c.run(r)
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
	rest, ok := p.listen(word, time.After(patience))
	if !ok {
		p.t.Fatalf("member %d: no %q", p.id, word)
	}
	return rest
}

const patience = 30 * time.Second

// listen is await that may give up.
func (p *process) listen(word string, limit <-chan time.Time) (string, bool) {
	p.t.Helper()
	for {
		select {
		case line, ok := <-p.lines:
			if !ok || strings.HasPrefix(line, "failed") {
				p.t.Fatalf("member %d ended before %q: %s", p.id, word, line)
			}
			if rest, ok := strings.CutPrefix(line, word); ok {
				return strings.TrimSpace(rest), true
			}
		case <-limit:
			return "", false
		}
	}
}

// sameDecision waits for all and returns what they decided. On a busy machine a
// member beyond the quorum may connect when the others have left: that one is
// left behind, as it would be by slow peers anywhere.
func (c *cluster) sameDecision(ps ...*process) string {
	c.t.Helper()
	quorum := 2*((len(c.roles)-1)/3) + 1
	decision, times := "", []string{}
	for _, p := range ps {
		limit := time.After(patience)
		if len(times) >= quorum {
			limit = time.After(time.Second)
		}
		took, ok := p.listen("took", limit)
		if !ok {
			continue
		}
		got := p.await("decided")
		if decision != "" && got != decision {
			c.t.Fatalf("member %d decided %q, another %q", p.id, got, decision)
		}
		decision, times = got, append(times, took)
	}
	c.t.Logf("decided %.20q; ms: %s", decision, times)
	if !strings.HasPrefix(decision, "good") || len(times) < min(quorum, len(ps)) {
		c.t.Fatalf("%d of %d decided %q", len(times), len(ps), decision)
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
			got := c.sameDecision(c.startExcept()...)
			if want := fmt.Sprintf("good block of %d", c.leader()); got != want {
				t.Logf("the first leader was passed over: %q, not %q", got, want)
			}
		})
	}
}

func TestAgreeWithoutOne(t *testing.T) {
	for absent := range uint32(4) {
		t.Run(fmt.Sprint(absent+1), func(t *testing.T) {
			c := newCluster(t, 4)
			t.Logf("leader %d", c.leader())
			c.sameDecision(c.startExcept(absent + 1)...)
		})
	}
}

func TestAgreeWithoutTwoOfSeven(t *testing.T) {
	c := newCluster(t, 7)
	leader := c.leader()
	c.sameDecision(c.startExcept(leader, leader%7+1)...)
}

// A leader without a block, or with one that the others refuse, costs a round.
func TestLeaderPassed(t *testing.T) {
	for _, act := range []string{"bad", "none", "panic", "wait"} {
		t.Run(act, func(t *testing.T) {
			c := newCluster(t, 4)
			leader := c.leader()
			c.roles[leader-1].Act = act
			got := c.sameDecision(c.startExcept()...)
			if got == fmt.Sprintf("good block of %d", leader) {
				t.Errorf("decided %q", got)
			}
		})
	}
}

// A block of 3 MB: ten members with 4,000 pieces each, and a carried one.
func TestLargeBlock(t *testing.T) {
	c := newCluster(t, 4)
	for i := range c.roles {
		c.roles[i].Act = "big"
		c.roles[i].Timeouts.Propose = 5 * time.Second
	}
	c.sameDecision(c.startExcept()...)
}

func TestLargestBlock(t *testing.T) {
	conf := newCluster(t, 1).roles[0].config()
	want := append([]byte("good"), make([]byte, MaxBlock-4)...)
	conf.Propose = func(context.Context) ([]byte, error) { return want, nil }
	if got, err := Agree(t.Context(), conf); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	conf.Dir, conf.Timeouts.Propose = t.TempDir(), 50*time.Millisecond
	want = append(want, 0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := Agree(ctx, conf); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one byte more: %v", err)
	}
}

// eventually polls for what another process does.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick, limit := time.NewTicker(2*time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never: %s", what)
		}
	}
}

func signed(dir string) bool {
	j := &journal{dir: dir}
	_, err := j.readVotes()
	return err == nil && j.last.Height > 0
}

func TestResumeAfterKill(t *testing.T) {
	c := newCluster(t, 4)
	victim := c.leader()
	second, third := victim%4+1, (victim+1)%4+1
	ps := []*process{c.start(second)}
	dir, before := c.roles[victim-1].Dir, &journal{}
	for range 15 {
		p := c.start(victim)
		if signed(dir) {
			p.await("proposing") // from its log: it signed that proposal before
		} else {
			eventually(t, "a vote is signed", func() bool { return signed(dir) })
		}
		p.kill()
		after, _, err := readJournal(dir)
		if err != nil {
			t.Fatal("killed, and cannot resume:", err)
		}
		contradicts(t, before, after)
		before = after
	}
	ps = append(ps, c.start(victim), c.start(third))
	c.sameDecision(ps...)
}

// contradicts fails if a restarted member went back, or signed a step twice.
func contradicts(t *testing.T, before, after *journal) {
	t.Helper()
	a, b := before.last, after.last
	order := cmp.Or(cmp.Compare(a.Height, b.Height), cmp.Compare(a.Round, b.Round), cmp.Compare(a.Step, b.Step))
	if order > 0 || order == 0 && !bytes.Equal(a.SignBytes, b.SignBytes) {
		t.Fatalf("signed %+v, then %+v", a, b)
	}
}

func TestResumeAfterDecision(t *testing.T) {
	c := newCluster(t, 4)
	decision := c.sameDecision(c.startExcept()...)
	again := c.start(1) // alone
	if got := c.sameDecision(again); got != decision {
		t.Errorf("decided %q, then %q", decision, got)
	}
	path := filepath.Join(c.roles[0].Dir, "decided")
	if err := os.WriteFile(path, []byte("bad"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Agree(t.Context(), c.roles[0].config()); !errors.Is(err, ErrSpent) {
		t.Errorf("changed decision: %v, want ErrSpent", err)
	}
}

func TestKeyIsNotWritten(t *testing.T) {
	c := newCluster(t, 4)
	c.sameDecision(c.startExcept()...)
	key := testKey(1)
	forms := [][]byte{key.Seed(), []byte(base64.StdEncoding.EncodeToString(key)[:40]),
		[]byte(fmt.Sprintf("%x", key.Seed())), []byte(fmt.Sprintf("%X", key.Seed()))}
	err := filepath.WalkDir(c.roles[0].Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, f := range forms {
			if bytes.Contains(b, f) {
				t.Errorf("%s holds the key", path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A member that starts when the others have decided and left waits for its
// caller, who gets the block elsewhere.
func TestLateStart(t *testing.T) {
	c := newCluster(t, 4)
	c.sameDecision(c.startExcept(4)...)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := Agree(ctx, c.roles[3].config())
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("returned after %v", d)
	}
}

func TestCancelWhileProposing(t *testing.T) {
	c := newCluster(t, 4)
	r := c.roles[c.leader()-1]
	conf := r.config()
	ctx, cancel := context.WithCancel(t.Context())
	conf.Timeouts.Propose = time.Hour
	conf.Propose = func(ctx context.Context) ([]byte, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if _, err := Agree(ctx, conf); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

func TestAgreeLeavesNothingRunning(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent(), // the engine never closes its log's file for good:
		goleak.IgnoreAnyFunction("github.com/cometbft/cometbft/libs/autofile.OpenAutoFile.func1"),
		goleak.IgnoreAnyFunction("github.com/cometbft/cometbft/libs/autofile.(*AutoFile).closeFileRoutine"))
	c := newCluster(t, 1)
	if _, err := Agree(t.Context(), c.roles[0].config()); err != nil {
		t.Fatal(err)
	}
}

func TestHaltIsAnError(t *testing.T) {
	conf := newCluster(t, 1).roles[0].config()
	conf.Check = func([]byte) error { return os.RemoveAll(conf.Dir) } // so the vote cannot be kept
	if _, err := Agree(t.Context(), conf); !errors.Is(err, ErrHalted) {
		t.Errorf("got %v, want ErrHalted", err)
	}
}

func TestCheckPanicIsRefusal(t *testing.T) {
	c := newCluster(t, 1)
	conf := c.roles[0].config()
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	conf.Check = func([]byte) error {
		if asked++; asked > 1 {
			cancel()
		}
		panic("hostile")
	}
	if _, err := Agree(ctx, conf); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

// An engine that follows the same chain under a key that no member has is let
// in nowhere: it learns nothing, and hinders nobody.
func TestIntruder(t *testing.T) {
	c := newCluster(t, 4)
	members := []*process{c.start(1), c.start(2)}
	spy := c.roles[3].config()
	spy.Key, spy.Log = testKey(99), slog.New(slog.DiscardHandler)
	e, _ := startEngine(t, spy)
	for _, m := range spy.Members[:2] {
		knock(t, e, m)
		garbage(t, m.Address)
	}
	members = append(members, c.start(3))
	c.sameDecision(members...)
	select {
	case b := <-e.blocks.decided:
		t.Errorf("the intruder learned %q", b)
	default:
	}
	if e.machine.GetRoundState().Proposal != nil {
		t.Error("the intruder got a proposal")
	}
}

func startEngine(t *testing.T, c Config) (e *engine, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	j, err := openJournal(c.Dir, c.Instance)
	if err != nil {
		t.Fatal(err)
	}
	e, err = newEngine(ctx, c, j)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.start(ctx); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { cancel(); e.stop() })
	t.Cleanup(stop)
	return e, stop
}

// A dial that outlives its engine ends without the key, which is cleared by then
// here as it is in a phase, and proves nothing to the other side.
func TestDialAfterStop(t *testing.T) {
	conf := newCluster(t, 2).roles[1].config()
	conf.Log = slog.New(slog.DiscardHandler)
	l, err := net.Listen("tcp", conf.Members[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e, stop := startEngine(t, conf)
	stop()
	clear(conf.Key)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := conn.MakeSecretConnection(c, cmted25519.PrivKey(testKey(1))); err == nil {
				t.Error("the dialler proved a key that is gone")
			}
			c.Close()
		}
	}()
	knock(t, e, conf.Members[0])
}

// knock dials m until it has been let in or turned away ten times.
func knock(t *testing.T, e *engine, m Member) {
	t.Helper()
	addr, err := netAddress(m)
	if err != nil {
		t.Fatal(err)
	}
	answers := 0
	eventually(t, "the member answers", func() bool {
		err := e.network.sw.DialPeerWithAddress(addr)
		if refused := (*net.OpError)(nil); !errors.As(err, &refused) {
			answers++
		}
		return answers >= 10
	})
}

func garbage(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write(bytes.Repeat([]byte("garbage "), 1000)); err != nil {
		t.Log(err) // already closed: as well
	}
}

// A member whose port is full of strangers reaches the others by itself: all
// agree as ever.
func TestFloodedPort(t *testing.T) {
	c := newCluster(t, 4)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var turned atomic.Int64
	for i := range maxIncoming + 50 {
		all.Go(func() {
			for ctx.Err() == nil {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.roles[0].Addresses[0])
				if err != nil { // not open yet, or no more
					select {
					case <-ctx.Done():
					case <-time.After(50 * time.Millisecond):
					}
					continue
				}
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				if i%2 == 0 {
					conn.Write([]byte("garbage"))
				}
				io.Copy(io.Discard, conn) // until it is shown out
				stop()
				conn.Close()
				turned.Add(1)
			}
		})
	}
	flooded := c.start(1)
	eventually(t, "strangers are shown out", func() bool { return turned.Load() > 20 })
	c.sameDecision(append([]*process{flooded}, c.startExcept(1)...)...)
	cancel()
	all.Wait()
	t.Logf("%d strangers shown out", turned.Load())
}
