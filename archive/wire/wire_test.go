package wire_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

// serve serves h as replica r until the test ends.
func serve(t *testing.T, r *archivetest.Replica, config *tls.Config, h http.Handler) {
	t.Helper()
	l, err := net.Listen("tcp", r.Address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0)}
	go srv.ServeTLS(l, "", "")
	t.Cleanup(func() { srv.Close() })
}

func serviceTLS(t *testing.T, key ed25519.PrivateKey) *tls.Config {
	t.Helper()
	c, err := wire.ServiceTLS(key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mutualTLS(t *testing.T, key ed25519.PrivateKey, r *archive.Roster) *tls.Config {
	t.Helper()
	c, err := wire.MutualTLS(key, r)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func client(t *testing.T, a *archivetest.Archive, m archive.Replica, o wire.Options) *wire.Client {
	t.Helper()
	c := wire.NewClient(m, a.Roster, o)
	t.Cleanup(c.Close)
	return c
}

// Who shows which key to whom, and what comes of it.
func TestPins(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	one, two := a.Replicas[0], a.Replicas[1]
	stranger := a.Writer
	tests := []struct {
		name   string
		server *tls.Config
		key    ed25519.PrivateKey // of the client
		want   error
		peer   uint32 // that the server sees
	}{
		{"service, client", serviceTLS(t, one.ServiceKey), nil, nil, 0},
		{"service, peer", serviceTLS(t, one.ServiceKey), two.AgreementKey, nil, 0},
		{"another's service key", serviceTLS(t, two.ServiceKey), nil, wire.ErrPin, 0},
		{"a stranger's key", serviceTLS(t, stranger), nil, wire.ErrPin, 0},
		{"another's agreement key", mutualTLS(t, two.AgreementKey, a.Roster), two.AgreementKey, wire.ErrPin, 0},
		{"update, client", mutualTLS(t, one.AgreementKey, a.Roster), nil, wire.ErrUpdating, 0},
		{"update, peer", mutualTLS(t, one.AgreementKey, a.Roster), two.AgreementKey, nil, 2},
		{"update, stranger", mutualTLS(t, one.AgreementKey, a.Roster), stranger, errAny, 0},
		{"update, service key", mutualTLS(t, one.AgreementKey, a.Roster), two.ServiceKey, errAny, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := one.Replica
			m.Address = archivetest.FreeAddress(t)
			at := *one
			at.Replica = m
			var peer uint32
			serve(t, &at, tt.server, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				peer, _ = wire.PeerID(r.TLS, a.Roster)
				if r.ProtoMajor != 2 || r.TLS.Version != tls.VersionTLS13 {
					t.Errorf("got %s over TLS %x, want HTTP/2 over TLS 1.3", r.Proto, r.TLS.Version)
				}
				wire.WriteJSON(w, wire.Status{Replica: 1})
			}))
			_, err := client(t, a, m, wire.Options{AgreementKey: tt.key}).Status(t.Context())
			if tt.want == errAny && err == nil || tt.want != errAny && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if peer != tt.peer {
				t.Errorf("server saw peer %d, want %d", peer, tt.peer)
			}
		})
	}
}

var errAny = errors.New("any error")

// What a hostile replica may send, and that the client neither believes nor
// waits for it.
func TestHostileReplies(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	d := archive.DigestOf([]byte("x"))
	endless := func(w http.ResponseWriter) {
		for b := bytes.Repeat([]byte("a"), 1<<16); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}
	tests := []struct {
		name  string
		reply func(http.ResponseWriter, *http.Request)
		call  func(*wire.Client) error
	}{
		{"endless status", func(w http.ResponseWriter, _ *http.Request) { endless(w) }, callStatus},
		{"endless error", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); endless(w) }, callStatus},
		{"not the one form", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{ }`) }, callStatus},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/v1/status", http.StatusFound) }, callStatus},
		{"unknown code", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) }, callStatus},
		{"too many records", func(w http.ResponseWriter, _ *http.Request) {
			wire.WriteJSON(w, wire.History{Records: make([]wire.SignedRecord, wire.MaxHistory+1)})
		}, func(c *wire.Client) error { _, err := c.History(context.Background(), 1, 1000); return err }},
		{"endless proof", func(w http.ResponseWriter, _ *http.Request) { endless(w) },
			func(c *wire.Client) error {
				_, err := c.ProofRange(context.Background(), d, []byte("x"), nil, 1)
				return err
			}},
		{"endless proofs", func(w http.ResponseWriter, _ *http.Request) { endless(w) },
			func(c *wire.Client) error {
				_, err := c.Proofs(context.Background(), d, []archive.Name{"x"})
				return err
			}},
		{"no proof", func(w http.ResponseWriter, _ *http.Request) {},
			func(c *wire.Client) error {
				_, err := c.Proofs(context.Background(), d, []archive.Name{"x"})
				return err
			}},
		{"proofs of more names", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 8)) },
			func(c *wire.Client) error {
				_, err := c.Proofs(context.Background(), d, []archive.Name{"x"})
				return err
			}},
		{"content from elsewhere", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "whole") },
			func(c *wire.Client) error { _, _, err := c.Content(context.Background(), d, 3); return err }},
		{"content of unknown length", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() },
			func(c *wire.Client) error { _, _, err := c.Content(context.Background(), d, 0); return err }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := *a.Replicas[0]
			r.Address = archivetest.FreeAddress(t)
			serve(t, &r, serviceTLS(t, r.ServiceKey), http.HandlerFunc(tt.reply))
			if err := tt.call(client(t, a, r.Replica, wire.Options{})); err == nil {
				t.Error("no error")
			}
		})
	}
}

func callStatus(c *wire.Client) error { _, err := c.Status(context.Background()); return err }

// A peer that stalls in the middle of a content is given up, whether it sends
// nothing or a trickle.
func TestSlowContent(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	r := a.Replicas[0]
	serve(t, r, serviceTLS(t, r.ServiceKey), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
				io.WriteString(w, "x")
				w.(http.Flusher).Flush()
			}
		}
	}))
	body, size, err := client(t, a, r.Replica, wire.Options{Timeout: 200 * time.Millisecond}).Content(t.Context(), archive.Digest{}, 0)
	if err != nil || size != 1000000 {
		t.Fatalf("got %d, %v", size, err)
	}
	defer body.Close()
	if _, err := io.Copy(io.Discard, body); !errors.Is(err, wire.ErrSlow) {
		t.Errorf("got %v, want %v", err, wire.ErrSlow)
	}
}

// A replica that takes no bytes of an upload is given up.
func TestSlowUpload(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	r := a.Replicas[0]
	serve(t, r, serviceTLS(t, r.ServiceKey), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body.Read(make([]byte, 1))
		<-r.Context().Done()
	}))
	b := bytes.Repeat([]byte("b"), 20<<20)
	up := archive.SignUpload(a.Writer, a.Roster.ID(), archivetest.ContentOf(b))
	c := client(t, a, r.Replica, wire.Options{Timeout: 300 * time.Millisecond})
	if err := c.PutContent(t.Context(), up, int64(len(b)), bytes.NewReader(b)); !errors.Is(err, wire.ErrSlow) {
		t.Errorf("got %v, want %v", err, wire.ErrSlow)
	}
}

// Every code arrives as it was sent, and a refused upload is not sent at all.
func TestErrors(t *testing.T) {
	codes := []wire.Code{wire.CodeBadRequest, wire.CodeDenied, wire.CodeQuota, wire.CodeConflict, wire.CodeMissing,
		wire.CodeUnavailable, wire.CodeStaleHead, wire.CodeDamaged, wire.CodeNoEpoch, wire.CodeTooLarge, wire.CodeFull}
	a := archivetest.NewRoster(t, 4)
	r := a.Replicas[0]
	var code wire.Code
	var read int
	serve(t, r, serviceTLS(t, r.ServiceKey), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wire.WriteError(w, wire.Errorf(code, "why %s", code))
	}))
	c := client(t, a, r.Replica, wire.Options{})
	for _, code = range codes {
		_, err := c.Status(t.Context())
		var e *wire.Error
		if !errors.As(err, &e) || e.Code != code || e.Message != "why "+string(code) || !errors.Is(err, &wire.Error{Code: code}) {
			t.Errorf("%s: got %v", code, err)
		}
		body := readFunc(func(b []byte) (int, error) { read += len(b); return len(b), nil })
		up := archive.SignUpload(a.Writer, a.Roster.ID(), archive.Content{Size: 1 << 30})
		if err := c.PutContent(t.Context(), up, 1<<30, body); !errors.Is(err, &wire.Error{Code: code}) {
			t.Errorf("upload: got %v, want %s", err, code)
		}
	}
	if read > 0 {
		t.Errorf("sent %d bytes of a body that was refused", read)
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }

func TestParseAnswerRequest(t *testing.T) {
	const nonce = `"nonce":"0101010101010101010101010101010101010101010101010101010101010101"`
	tests := []struct {
		in string
		ok bool
	}{
		{`{` + nonce + `,"name":"a/b"}`, true},
		{`{` + nonce + `,"range":{"from":"YQ==","to":"","limit":10}}`, true},
		{`{` + nonce + `}`, false},
		{`{` + nonce + `,"name":"a/../b"}`, false},
		{`{` + nonce + `,"name":"a","range":{"from":"","to":"","limit":1}}`, false},
		{`{` + nonce + `,"range":{"from":"","to":"","limit":0}}`, false},
		{`{` + nonce + `,"range":{"from":"` + strings.Repeat("AAAA", 400) + `","to":"","limit":1}}`, false},
		{`{` + nonce + `,"name":"a"} `, false},
		{`{"name":"a"}`, false},
		{`{"nonce":"01","name":"a"}`, false},
		{strings.Repeat("x", wire.MaxRequest+1), false},
	}
	for _, tt := range tests {
		q, err := wire.ParseAnswerRequest([]byte(tt.in))
		if (err == nil) != tt.ok {
			t.Errorf("%.80s: got %v", tt.in, err)
		}
		if err == nil && string(q.Bytes()) != tt.in {
			t.Errorf("%s: encodes as %s", tt.in, q.Bytes())
		}
	}
}

func FuzzParseAnswerRequest(f *testing.F) {
	f.Add(wire.AnswerRequest{Nonce: trust.Nonce{1}, Name: "a"}.Bytes())
	f.Add(wire.AnswerRequest{Range: &wire.Range{From: []byte("a"), To: []byte{0xff}, Limit: 3}}.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := wire.ParseAnswerRequest(b); err == nil && !bytes.Equal(q.Bytes(), b) {
			t.Errorf("%q encodes as %q", b, q.Bytes())
		}
	})
}

// A conflict is believed only with a proof under a certified record.
func TestBound(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, map[archive.Name][]byte{"a": []byte("1"), "b": []byte("2")})
	m := new(tree.Memory)
	for _, p := range a.Pairs() {
		if err := m.Put(p.Name, p.Val); err != nil {
			t.Fatal(err)
		}
	}
	good := wire.Error{Record: string(a.Record.Bytes()), Certificate: a.Certificate.Bytes()}
	e, rec, err := good.Bound(a.Roster, wire.Conflict{Name: "a", Proof: m.Prove([]byte("a"))})
	if err != nil || e.Content != archivetest.ContentOf([]byte("1")) || rec.Epoch != 1 {
		t.Errorf("got %v, %v, %v", e, rec.Epoch, err)
	}
	for name, c := range map[string]wire.Conflict{
		"absent":       {Name: "c", Proof: m.Prove([]byte("c"))},
		"another name": {Name: "c", Proof: m.Prove([]byte("a"))},
		"no proof":     {Name: "a"},
	} {
		if _, _, err := good.Bound(a.Roster, c); !errors.Is(err, archive.ErrIntegrity) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	bad := good
	bad.Certificate = a.Certificate.Bytes()[:100]
	if _, _, err := bad.Bound(a.Roster, wire.Conflict{Name: "a", Proof: m.Prove([]byte("a"))}); !errors.Is(err, archive.ErrIntegrity) {
		t.Errorf("no certificate: got %v", err)
	}
}

// Sockets work below any path, are private, and replace one left behind.
func TestUnix(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	for range 2 {
		l, err := wire.ListenUnix(dir, "service")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				io.WriteString(c, "hello")
				c.Close()
			}
		}()
		c, err := wire.DialUnix(t.Context(), dir, "service")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); string(b) != "hello" {
			t.Errorf("got %q, %v", b, err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "service"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestDecodeBytes(t *testing.T) {
	for in, ok := range map[string]bool{"": true, "YQ": true, "YQ==": false, "YR": false, "Y\nQ": false, strings.Repeat("A", 40): false} {
		if _, err := wire.DecodeBytes(in, 20); (err == nil) != ok {
			t.Errorf("%q: got %v", in, err)
		}
	}
}
