package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// hostile are servers with the right TLS keys and nothing else right.
var hostile = map[string]http.HandlerFunc{
	"empty":   func(w http.ResponseWriter, r *http.Request) {},
	"hangs":   func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	"panics":  func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
	"null":    func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "null") },
	"nothing": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") },
	"html":    func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") },
	"redirects": func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://example.com/", http.StatusFound)
	},
	"endless": func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead { // writing would cost nothing and never fail
			<-r.Context().Done()
		}
		for b := []byte(strings.Repeat("[", 1<<16)); r.Context().Err() == nil; {
			w.Write(b)
		}
	},
	"claims length": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "9223372036854775807")
		io.WriteString(w, "x")
	},
	"negative size": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Range", "bytes 0--1/-1")
		w.WriteHeader(http.StatusPartialContent)
	},
	"deep": func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"format":`+strings.Repeat("[", 100_000))
	},
	"bare refusals": func(w http.ResponseWriter, r *http.Request) {
		wire.WriteError(w, &wire.Error{Code: wire.CodeConflict, Message: "\x1b[2J", Conflicts: make([]wire.Conflict, 50)})
	},
	"odd status": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(299); io.WriteString(w, "{}") },
	"no epoch": func(w http.ResponseWriter, r *http.Request) {
		wire.WriteError(w, wire.Errorf(wire.CodeNoEpoch, "%s", strings.Repeat("x", 1<<20)))
	},
	"random": func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, rand.IntN(1<<12))
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		w.WriteHeader(200 + 100*rand.IntN(4))
		w.Write(b)
	},
	"answers cut and garbled": nil, // set by the test
}

// serve runs h at a new loopback port with the TLS key of a replica, and
// returns a function that tells the key once it is known.
func serve(t *testing.T, l net.Listener, w *forge.World, id uint32, h http.Handler) {
	t.Helper()
	conf, err := wire.ServiceTLS(w.Key("tls", id))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(true)
	done := make(chan struct{})
	go func() { srv.Serve(tls.NewListener(l, conf)); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// hostileBed is a bed of two hostile servers over real TLS and two honest
// replicas.
func hostileBed(t *testing.T, handlers func(b *bed) [2]http.Handler) *bed {
	t.Helper()
	ls := []net.Listener{listen(t), listen(t)}
	b := newBed(t, "", "a", "b")
	addresses := []string{ls[0].Addr().String(), ls[1].Addr().String(), "127.0.0.1:1", "127.0.0.1:2"}
	b.World = forge.New(forge.Options{Seed: "hostile", Addresses: addresses})
	b.Advance(forge.Start.Add(6*time.Hour), nil, forge.Bind("a", "a"), forge.Bind("b", "b"))
	for i, l := range ls {
		serve(t, l, b.World, uint32(i+1), handlers(b)[i])
	}
	for _, f := range b.fakes {
		f.w = b.World
	}
	c, err := New(Config{
		Roster: b.Roster, Key: b.Writer, Now: b.wall, Timeout: 1500 * time.Millisecond,
		Dial: func(m archive.Replica) Peer {
			if m.ID > 2 {
				return b.fakes[m.ID-1]
			}
			return wire.NewClient(m, b.Roster, wire.Options{Timeout: time.Second})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	b.Client = c
	return b
}

// Two by two the hostile servers are set beside two honest replicas.
func TestHostileServers(t *testing.T) {
	names := slices.Sorted(maps.Keys(hostile))
	for pair := range slices.Chunk(names, 2) {
		t.Run(strings.Join(pair, ", "), func(t *testing.T) {
			t.Parallel()
			b := hostileBed(t, func(b *bed) (hs [2]http.Handler) {
				for i, n := range pair {
					if hs[i] = hostile[n]; hostile[n] == nil {
						hs[i] = garbler(b)
					}
				}
				return hs
			})
			b.besideTheHostile(t)
		})
	}
}

func (b *bed) besideTheHostile(t *testing.T) {
	t.Helper()
	checkPresent(t, b, b.one(t, "a"))
	var out strings.Builder
	if err := b.Client.Fetch(t.Context(), forge.Bind("a", "a").Content, &out); err != nil || out.String() != "a" {
		t.Errorf("fetch: %q, %v", out.String(), err)
	}
	if got := b.list(t, "", nil); len(got) != 2 {
		t.Errorf("ls: %v", got)
	}
	_, err := b.Client.Add(t.Context(), []Item{item("x", "x")})
	var nq *NoQuorumError
	if !errors.As(err, &nq) || nq.Got != 2 || len(nq.Replicas) != 2 {
		t.Errorf("add: %v", err)
	}
	b.stop(3)
	sts := b.Client.Status(t.Context())
	if sts[0].Verified != nil || sts[1].Verified != nil || sts[3].Verified == nil {
		t.Errorf("status: %+v", sts)
	}
}

// garbler answers as an honest replica would, with a few bytes changed, cut or
// put in.
func garbler(b *bed) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		q, err := wire.ParseAnswerRequest(body)
		if err != nil || q.Range != nil {
			wire.WriteError(w, wire.Errorf(wire.CodeUnavailable, "no"))
			return
		}
		e := b.Newest()
		out, _ := archive.EncodeJSON(b.Answer(1+rand.Uint32N(2), e, q.Nonce, e.Tree.Prove([]byte(q.Name))))
		for range 1 + rand.IntN(3) {
			i := rand.IntN(len(out))
			switch rand.IntN(3) {
			case 0:
				out[i] ^= byte(1 + rand.IntN(255))
			case 1:
				out = append(out[:i:i], out[min(len(out), i+1+rand.IntN(50)):]...)
			case 2:
				out = append(out[:i:i], append([]byte{byte(rand.Uint32())}, out[i:]...)...)
			}
		}
		w.Write(out)
	})
}

// A replica that shows another's key, or no TLS at all, is not listened to.
func TestWrongKeys(t *testing.T) {
	b := hostileBed(t, func(b *bed) [2]http.Handler { return [2]http.Handler{hostile["empty"], hostile["empty"]} })
	l := listen(t)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "SSH-2.0-garbage\r\n")
			c.Close()
		}
	}()
	m := b.Client.replicas[0].Replica
	m.Address = b.Client.replicas[1].Address
	b.Client.replicas[0].peer = wire.NewClient(m, b.Roster, wire.Options{Timeout: time.Second})
	m.Address = l.Addr().String()
	b.Client.replicas[1].peer = wire.NewClient(m, b.Roster, wire.Options{Timeout: time.Second})
	checkPresent(t, b, b.one(t, "a"))
	sts := b.Client.Status(t.Context())
	wantErr(t, sts[0].Err, wire.ErrPin)
	if sts[1].Err == nil {
		t.Error("garbage on the port is taken for a replica")
	}
}

// Nothing is left running when a client is done.
func TestNoLeaks(t *testing.T) {
	b := newBed(t, "", "a")
	b.stop(1, 2)
	before := runtime.NumGoroutine()
	for range 50 {
		checkPresent(t, b, b.one(t, "a"))
	}
	for range 1_000_000 {
		if runtime.NumGoroutine() <= before+2 {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}
