package archivetest_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A network is a bridge in this process's network namespace and, behind it, a host
// in a namespace of its own for each replica. What goes from host to host is
// forwarded by the bridge, where nftables may drop it; this process has an address
// on it and reaches all. Make one in a process of Apart.
type network struct {
	t     testing.TB
	hosts []*os.File // namespaces, from replica 1 on
	ears  []*ear
	rate  string // of the links, in tc's words; "": as they come
}

// ear listens on a host, at earPort.
type ear struct {
	calls net.Listener
	sound net.PacketConn
	heard [maxHosts]atomic.Int64 // datagrams from each host
}

const (
	earPort     = 700
	replicaPort = 7000
	maxHosts    = 8
	bridge      = "hub"
)

func newNetwork(t testing.TB, n int) *network {
	t.Helper()
	w := &network{t: t}
	w.tool(nil, "ip", "link", "set", "lo", "up")
	w.tool(nil, "ip", "link", "add", bridge, "type", "bridge")
	w.tool(nil, "ip", "address", "add", hostIP(0)+"/24", "dev", bridge)
	w.tool(nil, "ip", "link", "set", bridge, "up")
	for id := range uint32(n) {
		w.hosts = append(w.hosts, newNamespace(t))
		w.connect(id + 1)
		w.listen(id + 1)
	}
	w.allow()
	return w
}

// hostIP returns the address of a replica's host; that of the bridge for 0.
func hostIP(id uint32) string { return fmt.Sprintf("10.77.0.%d", id+1) }

// addresses returns where replicas may listen.
func (w *network) addresses() (all []string) {
	for id := range uint32(len(w.hosts)) {
		all = append(all, fmt.Sprintf("%s:%d", hostIP(id+1), replicaPort))
	}
	return all
}

// newNamespace returns a network namespace that lasts as long as this process.
func newNamespace(t testing.TB) *os.File {
	t.Helper()
	var ns *os.File
	var err error
	inNamespace(t, func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() { ns, err = thisNamespace() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// thisNamespace returns the network namespace of the calling thread.
func thisNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// inNamespace calls f on a thread that enter has taken to another network
// namespace: sockets that f itself opens, and processes that it starts, are there.
func inNamespace(t testing.TB, enter func() error, f func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := thisNamespace()
	if err == nil {
		err = enter()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		defer home.Close()
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Fatal(err) // the thread stays locked, and ends with the goroutine
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// at calls f on the host of a replica, as inNamespace does; without a network,
// here.
func (w *network) at(id uint32, f func()) {
	if w == nil {
		f()
		return
	}
	w.t.Helper()
	inNamespace(w.t, func() error { return unix.Setns(int(w.hosts[id-1].Fd()), unix.CLONE_NEWNET) }, f)
}

// tool runs a program that must end well, with f, if any, as its descriptor 3, and
// returns what it printed.
func (w *network) tool(f *os.File, name string, args ...string) string {
	w.t.Helper()
	c := exec.Command(name, args...)
	if f != nil {
		c.ExtraFiles = []*os.File{f}
	}
	out, err := c.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

func port(id uint32) string { return fmt.Sprint("port", id) }

// connect plugs a host in.
func (w *network) connect(id uint32) {
	w.t.Helper()
	w.tool(w.hosts[id-1], "ip", "link", "add", port(id), "type", "veth", "peer", "name", "eth0", "netns", "/proc/self/fd/3")
	w.tool(nil, "ip", "link", "set", port(id), "master", bridge, "up")
	w.at(id, func() {
		w.tool(nil, "ip", "link", "set", "lo", "up")
		w.tool(nil, "ip", "address", "add", hostIP(id)+"/24", "dev", "eth0")
		w.tool(nil, "ip", "link", "set", "eth0", "up")
	})
}

// listen has a host listen for datagrams, and for calls, of which it reads all and
// then answers with a byte.
func (w *network) listen(id uint32) {
	w.t.Helper()
	e, where := new(ear), fmt.Sprintf("%s:%d", hostIP(id), earPort)
	w.at(id, func() {
		var err, err2 error
		e.sound, err = net.ListenPacket("udp4", where)
		e.calls, err2 = net.Listen("tcp4", where)
		if err := errors.Join(err, err2); err != nil {
			w.t.Fatal(err)
		}
	})
	w.t.Cleanup(func() { e.sound.Close(); e.calls.Close() })
	w.ears = append(w.ears, e)
	go e.hear()
	go e.answer()
}

func (e *ear) hear() {
	for {
		_, from, err := e.sound.ReadFrom(make([]byte, 1))
		if err != nil {
			return
		}
		host := from.(*net.UDPAddr).AddrPort().Addr().As4()[3] - 1
		e.heard[host].Add(1)
	}
}

func (e *ear) answer() {
	for {
		c, err := e.calls.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(io.Discard, c)
			c.Write([]byte{1})
		}()
	}
}

// say sends n datagrams from one host to another.
func (w *network) say(from, to uint32, n int) {
	w.t.Helper()
	w.at(from, func() {
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(earAt(to)))
		for i := 0; i < n && err == nil; i++ {
			_, err = c.Write([]byte{1})
		}
		if err != nil {
			w.t.Fatal(err)
		}
		c.Close()
	})
}

func earAt(id uint32) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(hostIP(id)), earPort)
}

// call sends n bytes over a connection from one host to another and waits for the
// answer.
func (w *network) call(from, to uint32, n int, limit time.Duration) (err error) {
	var c net.Conn
	w.at(from, func() { c, err = net.DialTimeout("tcp4", earAt(to).String(), limit) })
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if _, err = c.Write(make([]byte, n)); err == nil {
		err = c.(*net.TCPConn).CloseWrite()
	}
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	return err
}

// A drop is a rule by which packets are lost on their way from one host to another.
type drop struct {
	from, to uint32 // 0, 0: any
	match    string // which ones, in nft's words; "": all
}

// calls are the packets that open a connection.
const calls = "tcp flags & (syn | ack) == syn"

func (d drop) String() string {
	if d.from == 0 {
		return "ether type ip " + d.match + " counter drop"
	}
	return fmt.Sprintf("ip saddr %s ip daddr %s %s counter drop", hostIP(d.from), hostIP(d.to), d.match)
}

// between returns the rules by which none of some hosts gets anything from any of
// others.
func between(from, to []uint32) (all []drop) {
	for _, a := range from {
		for _, b := range to {
			all = append(all, drop{from: a, to: b})
		}
	}
	return all
}

// apart returns the rules by which two groups of hosts get nothing from each other.
func apart(some, others []uint32) []drop {
	return append(between(some, others), between(others, some)...)
}

// wall is the ruleset with the given rules, at once in place of what was there.
func wall(drops []drop) string {
	var b strings.Builder
	b.WriteString("table bridge wall\ndelete table bridge wall\ntable bridge wall {\nchain forward {\ntype filter hook forward priority 0; policy accept;\n")
	for _, d := range drops {
		b.WriteString(d.String() + "\n")
	}
	b.WriteString("}\n}\n")
	return b.String()
}

// forbid puts up a wall of the given rules, and narrows each link to a rate of
// tc's words, if there is one.
func (w *network) forbid(drops []drop, rate string) {
	w.t.Helper()
	c := exec.Command("nft", "-f", "-")
	c.Stdin = strings.NewReader(wall(drops))
	if out, err := c.CombinedOutput(); err != nil {
		w.t.Fatalf("nft: %v: %s", err, out)
	}
	for id := uint32(1); rate != w.rate && int(id) <= len(w.hosts); id++ {
		if rate == "" {
			w.tool(nil, "tc", "qdisc", "delete", "dev", port(id), "root")
		} else {
			w.tool(nil, "tc", "qdisc", "replace", "dev", port(id), "root", "tbf", "rate", rate, "burst", "8kb", "latency", "300ms")
		}
	}
	w.rate = rate
}

// allow heals the network.
func (w *network) allow() { w.t.Helper(); w.forbid(nil, "") }

var counted = regexp.MustCompile(`counter packets (\d+) bytes`)

// dropped returns how many packets each rule has taken.
func (w *network) dropped() (all []int64) {
	w.t.Helper()
	for _, m := range counted.FindAllStringSubmatch(w.tool(nil, "nft", "list", "chain", "bridge", "wall", "forward"), -1) {
		n, _ := strconv.ParseInt(m[1], 10, 64)
		all = append(all, n)
	}
	return all
}

// pairs calls f for each host and each other one, side by side.
func (w *network) pairs(f func(from, to uint32)) {
	var all sync.WaitGroup
	for a := range uint32(len(w.hosts)) {
		for b := range uint32(len(w.hosts)) {
			if a != b {
				all.Go(func() { f(a+1, b+1) })
			}
		}
	}
	all.Wait()
}

// bites returns nil if the network is broken in just the way that the rules and
// the rate say, and each rule has taken packets.
func (w *network) bites(drops []drop, rate string) error {
	w.t.Helper()
	before := w.dropped()
	if len(before) != len(drops) {
		return fmt.Errorf("%d rules, want %d", len(before), len(drops))
	}
	errs := []error{w.feels(drops, rate)}
	for i, n := range w.dropped() {
		if n == before[i] {
			errs = append(errs, fmt.Errorf("nothing is dropped by: %s", drops[i]))
		}
	}
	return errors.Join(errs...)
}

// feels returns nil if, to those who use it, the network is broken as the rules and
// the rate say: hosts that are cut off from one another hear and reach nothing,
// and all others do; or some packets are lost; and all is slow.
func (w *network) feels(drops []drop, rate string) (err error) {
	w.t.Helper()
	if len(drops) == 1 && drops[0].from == 0 {
		err = w.loses()
	} else {
		err = w.separates(drops)
	}
	if rate != "" {
		err = errors.Join(err, w.slows())
	}
	return err
}

// separates compares who hears whom, and who reaches whom, with the rules.
func (w *network) separates(drops []drop) error {
	deaf, unreached := make(map[[2]uint32]bool), make(map[[2]uint32]bool)
	for _, d := range drops {
		unreached[[2]uint32{d.from, d.to}] = true
		if d.match == "" {
			deaf[[2]uint32{d.from, d.to}], unreached[[2]uint32{d.to, d.from}] = true, true
		}
	}
	var mu sync.Mutex
	var errs []error
	w.pairs(func(from, to uint32) {
		pair := [2]uint32{from, to}
		heard := make(chan error, 1)
		go func() { heard <- w.heard(from, to, !deaf[pair]) }()
		err := errors.Join(w.reached(from, to, !unreached[pair]), <-heard)
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	})
	return errors.Join(errs...)
}

// cutOff is for how long a host tries to reach one that it is cut off from.
const cutOff = 250 * time.Millisecond

// heard compares whether a datagram gets from one host to another with want. Where
// it must not, one has the time of a call across the cut.
func (w *network) heard(from, to uint32, want bool) error {
	n := &w.ears[to-1].heard[from]
	before := n.Load()
	w.say(from, to, 1)
	limit := 5 * time.Second
	if !want {
		limit = cutOff
	}
	if got := comes(limit, func() bool { return n.Load() > before }); got != want {
		return fmt.Errorf("%d hears %d: %v, want %v", to, from, got, want)
	}
	return nil
}

// comes polls cond until it holds, at most for limit.
func comes(limit time.Duration, cond func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); pause(time.Millisecond) {
		if cond() {
			return true
		}
	}
	return cond()
}

// reached compares whether one host can call another with want. One that cannot
// must get no answer: a refusal would come from the other.
func (w *network) reached(from, to uint32, want bool) error {
	limit := 5 * time.Second
	if !want {
		limit = cutOff
	}
	err := w.call(from, to, 1, limit)
	var late net.Error
	switch {
	case want && err != nil:
		return fmt.Errorf("%d does not reach %d: %w", from, to, err)
	case !want && !(errors.As(err, &late) && late.Timeout()):
		return fmt.Errorf("%d calls %d, and gets: %v; want no answer", from, to, err)
	}
	return nil
}

// loses wants some of many datagrams to be lost, and some not.
func (w *network) loses() error {
	const many = 200
	n := &w.ears[1].heard[1]
	before := n.Load()
	w.say(1, 2, many)
	comes(cutOff, func() bool { return n.Load() == before+many })
	if got := n.Load() - before; got == 0 || got == many {
		return fmt.Errorf("%d of %d datagrams arrive", got, many)
	}
	return nil
}

// slows wants bytes to take longer than they do on links that are not narrowed,
// each time: one call may be slow because a packet is lost, or the machine busy.
func (w *network) slows() error {
	for range 8 {
		began := time.Now()
		if err := w.call(1, 2, 64<<10, 30*time.Second); err != nil {
			return err
		}
		if took := time.Since(began); took < 200*time.Millisecond {
			return fmt.Errorf("64 KiB take %s", took)
		}
	}
	return nil
}

// whole wants every host to hear and to reach every other.
func (w *network) whole() {
	w.t.Helper()
	if err := w.bites(nil, ""); err != nil {
		w.t.Fatalf("a network without faults: %v", err)
	}
}

// needsEachRule wants the network to feel other than it should with any one of the
// rules left out, or the rate.
func (w *network) needsEachRule(drops []drop, rate string) {
	w.t.Helper()
	for i := range drops {
		w.forbid(slices.Delete(slices.Clone(drops), i, i+1), rate)
		if w.feels(drops, rate) == nil {
			w.t.Errorf("not felt to be left out: %s", drops[i])
		}
	}
	if w.forbid(drops, ""); rate != "" && w.feels(drops, rate) == nil {
		w.t.Errorf("not felt to be left out: a rate of %s", rate)
	}
	w.allow()
}
