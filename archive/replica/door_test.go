package replica

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// Strangers take the places of strangers, oldest first; a replica comes in among
// them, stays, and takes only its own places.
func TestDoor(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	config, err := wire.MutualTLS(a.Replicas[0].AgreementKey, a.Roster)
	must(t, err)
	l, err := net.Listen("tcp", a.Replicas[0].Address)
	must(t, err)
	d := newDoor(a.Roster)
	d.strangers, d.ofPeers = 4, 2
	s := &http.Server{TLSConfig: config, ConnState: d.state, ErrorLog: log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "in") })}
	go s.ServeTLS(l, "", "")
	t.Cleanup(func() { s.Close() })

	peer := func() *wire.Client {
		c := wire.NewClient(a.Replicas[0].Replica, a.Roster, wire.Options{AgreementKey: a.Replicas[1].AgreementKey, Timeout: 5 * time.Second})
		t.Cleanup(c.Close)
		return c
	}
	ask := func(c *wire.Client) {
		t.Helper()
		resp, err := c.HTTP().Get(c.URL("/"))
		must(t, err)
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); string(b) != "in" {
			t.Errorf("answered %q", b)
		}
	}
	first := peer()
	ask(first)
	var held []net.Conn
	for range 12 {
		c, err := net.Dial("tcp", a.Replicas[0].Address)
		must(t, err)
		defer c.Close()
		held = append(held, c)
	}
	for _, c := range held[:8] { // each makes room for another
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a stranger was not shown out: %v", err)
		}
	}
	ask(first)
	ask(peer())
	for range 5 {
		ask(peer())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.come) > 4 || len(d.peers[2]) > 2 {
		t.Errorf("%d strangers, %d connections of replica 2", len(d.come), len(d.peers[2]))
	}
}

// A peer has so many requests under way at once and no more, and another is answered
// beside them.
func TestAskedAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.reset(1)
	_, err := played(t.Context(), c.config(1), nil, func(ctx context.Context, p *phase) (Outcome, error) {
		ctx, cancel := context.WithCancel(ctx)
		var all sync.WaitGroup
		defer all.Wait()
		defer cancel()
		p.publishBase()
		status := func(from *wire.Client, after int) int {
			path := fmt.Sprintf("%s?run=%s&after=%d", pathBoard, p.board.run, after)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.URL(path), nil)
			if err != nil {
				return 0
			}
			resp, err := from.HTTP().Do(req)
			if err != nil {
				return 0
			}
			resp.Body.Close()
			return resp.StatusCode
		}
		peer := func(id uint32) *wire.Client {
			return wire.NewClient(c.Replicas[0].Replica, c.Roster, wire.Options{AgreementKey: c.Replicas[id-1].AgreementKey})
		}
		greedy, other := peer(2), peer(3)
		defer greedy.Close()
		defer other.Close()
		if s := status(greedy, 0); s != http.StatusOK {
			t.Errorf("status %d", s)
		}
		const beyond = 8
		ended := make(chan int, maxAsked+beyond)
		for range maxAsked + beyond {
			all.Go(func() { ended <- status(greedy, 1) }) // there is nothing to be had for 10 s
		}
		for range beyond {
			if s := <-ended; s != http.StatusServiceUnavailable {
				t.Errorf("beyond the bound: status %d", s)
			}
		}
		if s := status(other, 0); s != http.StatusOK {
			t.Errorf("another peer: status %d", s)
		}
		if len(ended) > 0 {
			t.Errorf("%d more refused", len(ended))
		}
		return Outcome{}, nil
	})
	must(t, err)
}

// intruders hold, flood and shout at the addresses of update processes.
type intruders struct {
	t       *testing.T
	key     ed25519.PrivateKey // no replica's
	roster  *archive.Roster
	all     sync.WaitGroup
	refused atomic.Int64 // connections that came to an end
}

// again does one intrusion over and over, each time the last one has been ended
// by the other side, or was not let in.
func (x *intruders) again(ctx context.Context, addr string, do func(context.Context, net.Conn)) {
	x.all.Go(func() {
		for ctx.Err() == nil {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err != nil {
				pause(ctx, 50*time.Millisecond) // not open yet, or full
				continue
			}
			stop := context.AfterFunc(ctx, func() { c.Close() })
			do(ctx, c)
			stop()
			c.Close()
			x.refused.Add(1)
			pause(ctx, 20*time.Millisecond)
		}
	})
}

// hold says half a word and waits to be shown out.
func (x *intruders) hold(_ context.Context, c net.Conn) {
	c.Write([]byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01}) // the beginning of a ClientHello
	io.Copy(io.Discard, c)
}

// shout sends garbage for as long as anybody takes it.
func (x *intruders) shout(_ context.Context, c net.Conn) {
	for b := bytes.Repeat([]byte("garbage "), 1<<12); ; {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// pose shakes hands with a key of nobody's and sends a request without end.
func (x *intruders) pose(ctx context.Context, c net.Conn) {
	cert, err := wire.NewCertificate(x.key)
	if err != nil {
		x.t.Error(err)
		return
	}
	t := tls.Client(c, &tls.Config{
		InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
		VerifyConnection: func(cs tls.ConnectionState) error { _, err := wire.PeerID(&cs, x.roster); return err },
	})
	if t.HandshakeContext(ctx) != nil { // or a service process is there, which is for all
		return
	}
	if _, err := io.WriteString(t, "POST "+pathHello+" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"); err != nil {
		return
	}
	x.all.Go(func() {
		if b, _ := io.ReadAll(io.LimitReader(t, 1<<10)); len(b) > 0 {
			x.t.Errorf("an intruder got an answer: %.40q", b)
		}
	})
	for b := make([]byte, 1<<16); ; {
		if _, err := t.Write(b); err != nil {
			return
		}
	}
}

// Intruders at all doors of all update processes, of both kinds, from before they
// open until they close: the phase ends as ever, with all replicas in it.
func TestIntruders(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.add(c.files(20, "n"), c.all()...)
	_, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	x := &intruders{t: t, key: key, roster: c.Roster}
	ctx, cancel := context.WithCancel(t.Context())
	for _, r := range c.Replicas {
		for _, addr := range []string{r.Address, r.Agreement} {
			for range 20 {
				x.again(ctx, addr, x.hold)
			}
			x.again(ctx, addr, x.shout)
			x.again(ctx, addr, x.pose)
		}
	}
	began := time.Now()
	c.phase(t.Context(), c.all()...)
	took := time.Since(began)
	cancel()
	x.all.Wait()
	if rec := c.agreed(1, c.all()...); rec.Names != 20 || len(rec.Joined) != 4 || rec.Tick != 1 {
		t.Errorf("record: %s", rec.Bytes())
	}
	if n := x.refused.Load(); n < 100 {
		t.Errorf("%d intrusions ended", n)
	}
	t.Logf("%d intrusions ended; phase of %s", x.refused.Load(), took.Round(time.Millisecond))
}
