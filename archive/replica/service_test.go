package replica

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/soft"
)

// served is a replica's service process inside a test.
type served struct {
	*archivetest.Replica
	client *wire.Client
	stop   func()
	ended  func() error // waits for what ended the service by itself
}

func serviceConfig(t testing.TB, a *archivetest.Archive, r *archivetest.Replica) Config {
	return Config{
		Dir: r.Dir, ID: r.ID, Roster: a.Roster, MAS: r.MAS, ServiceKey: r.ServiceKey, Share: 1,
		Timeout: 2 * time.Second, Retry: 50 * time.Millisecond, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// startService serves a replica until the test ends or stop is called. edit may
// change its configuration.
func startService(t testing.TB, a *archivetest.Archive, r *archivetest.Replica, edit ...func(*Config)) *served {
	t.Helper()
	c := serviceConfig(t, a, r)
	for _, f := range edit {
		f(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, c) }()
	s := &served{Replica: r, client: wire.NewClient(r.Replica, a.Roster, wire.Options{Timeout: 5 * time.Second})}
	s.ended = func() error {
		err := <-done
		done = nil
		s.client.Close()
		return err
	}
	s.stop = func() {
		if cancel(); done == nil {
			return
		}
		if err := s.ended(); err != nil {
			t.Errorf("replica %d: %v", r.ID, err)
		}
	}
	t.Cleanup(s.stop)
	waitFor(t, "service of replica "+fmt.Sprint(r.ID), func() bool {
		st, err := s.client.Status(t.Context())
		return err == nil && !strings.Contains(st.Note, "being checked")
	})
	return s
}

// A service that cannot start gives up what it has opened: the next one finds the
// store free.
func TestServeLetsGo(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	r := a.Replicas[0]
	stuck := filepath.Join(r.Dir, "store", tmpDir, "stuck")
	archivetest.SmallDisk(t, stuck, 1<<20)
	if err := Serve(t.Context(), serviceConfig(t, a, r)); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("with a file that cannot be removed: %v, want %v", err, unix.EBUSY)
	}
	if err := unix.Unmount(stuck, 0); err != nil {
		t.Fatal(err)
	}
	startService(t, a, r)
}

// waitFor waits until ok.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(20 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("timed out: %s", what)
		}
	}
}

// files returns n small files under prefix.
func files(prefix string, n int) map[archive.Name][]byte {
	out := make(map[archive.Name][]byte)
	for i := range n {
		name := fmt.Sprintf("%s/%04d", prefix, i)
		out[archive.Name(name)] = []byte("content of " + name)
	}
	return out
}

// names returns n names under prefix that share one content.
func names(prefix string, n int) map[archive.Name][]byte {
	out := files(prefix, n)
	for name := range out {
		out[name] = []byte("shared")
	}
	return out
}

func get(t testing.TB, a *archivetest.Archive, s *served, n archive.Name) (archive.Entry, bool, error) {
	t.Helper()
	nonce := trust.Nonce(archive.DigestOf([]byte(rand.Text())))
	ans, err := s.client.Answer(t.Context(), wire.AnswerRequest{Nonce: nonce, Name: n})
	if err != nil {
		return archive.Entry{}, false, err
	}
	v, err := ans.Verify(a.Roster, s.ID, nonce)
	if err != nil {
		return archive.Entry{}, false, err
	}
	return archive.Lookup(v.View, n)
}

// A replica answers for present and absent names, whole ranges, further proofs
// under the attested head, history and contents.
func TestServeGet(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 20))
	s := startService(t, a, a.Replicas[0])
	e, ok, err := get(t, a, s, "a/0007")
	if err != nil || !ok || e.Content != archivetest.ContentOf([]byte("content of a/0007")) {
		t.Errorf("present: got %v, %t, %v", e, ok, err)
	}
	if _, ok, err := get(t, a, s, "b"); err != nil || ok {
		t.Errorf("absent: got %t, %v", ok, err)
	}
	t.Run("range", func(t *testing.T) { testRange(t, a, s) })
	t.Run("proof", func(t *testing.T) { testProofs(t, a, s) })
	t.Run("content", func(t *testing.T) { testContent(t, s, e) })
	h, err := s.client.History(t.Context(), 0, 10)
	if err != nil || len(h) != 1 || h[0].Record != string(a.Record.Bytes()) {
		t.Errorf("history: got %v, %v", h, err)
	}
	st, err := s.client.Status(t.Context())
	if err != nil || st.Epoch != 1 || st.Names != 20 || st.Head != a.Record.Head() || st.Mode != "service" || st.Damaged || st.Overdue || st.Note != "" {
		t.Errorf("status: got %+v, %v", st, err)
	}
}

func testRange(t *testing.T, a *archivetest.Archive, s *served) {
	nonce := trust.Nonce{9}
	g := &wire.Range{From: []byte("a/0005"), To: []byte("a/0010"), Limit: 100}
	ans, err := s.client.Answer(t.Context(), wire.AnswerRequest{Nonce: nonce, Range: g})
	if err != nil {
		t.Fatal(err)
	}
	v, err := ans.Verify(a.Roster, s.ID, nonce)
	if err != nil {
		t.Fatal(err)
	}
	pairs, next, err := v.View.Page(g.From, g.To)
	if err != nil || len(pairs) != 5 || next != nil {
		t.Errorf("got %d pairs, next %q, %v", len(pairs), next, err)
	}
}

func testProofs(t *testing.T, a *archivetest.Archive, s *served) {
	names := []archive.Name{"a/0001", "nobody", "a/0000"}
	proofs, err := s.client.Proofs(t.Context(), a.Record.Head(), names)
	if err != nil || len(proofs) != len(names) {
		t.Fatalf("got %d proofs, %v", len(proofs), err)
	}
	for i, p := range proofs {
		view, err := archive.VerifyProof(a.Record, p)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok, err := archive.Lookup(view, names[i]); ok != (i != 1) || err != nil {
			t.Errorf("%s: got %t, %v", names[i], ok, err)
		}
	}
	var e *wire.Error
	if _, err := s.client.Proofs(t.Context(), archive.Digest{1}, names); !errors.As(err, &e) || e.Code != wire.CodeStaleHead || e.Record != string(a.Record.Bytes()) {
		t.Errorf("stale head: got %v", err)
	}
}

func testContent(t *testing.T, s *served, e archive.Entry) {
	body, size, err := s.client.Content(t.Context(), e.Digest, 3)
	if err != nil || size != int64(e.Size) {
		t.Fatalf("got %d, %v", size, err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); string(b) != "tent of a/0007" {
		t.Errorf("got %q, %v", b, err)
	}
	have, err := s.client.Have(t.Context(), []archive.Digest{{}, e.Digest, {1}})
	if err != nil || !slices.Equal(have, []bool{false, true, false}) {
		t.Errorf("have: got %v, %v", have, err)
	}
}

// upAndAdd uploads all files, then submits them.
func upAndAdd(t testing.TB, a *archivetest.Archive, s *served, sub archive.Submission, all map[archive.Name][]byte) (wire.Ack, error) {
	t.Helper()
	for _, b := range all {
		up := archive.SignUpload(a.Writer, a.Roster.ID(), archivetest.ContentOf(b))
		if err := s.client.PutContent(t.Context(), up, int64(len(b)), bytes.NewReader(b)); err != nil {
			return wire.Ack{}, err
		}
	}
	return s.client.Add(t.Context(), sub)
}

// Before the first epoch a replica answers no Get, but takes Adds; they are
// there after a restart, and not twice.
func TestServeAddFirst(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	r := a.Replicas[0]
	if err := r.MAS.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := startService(t, a, r)
	if _, _, err := get(t, a, s, "a"); !errors.Is(err, &wire.Error{Code: wire.CodeNoEpoch}) {
		t.Errorf("get: got %v, want %s", err, wire.CodeNoEpoch)
	}
	all := files("n", 3)
	all["empty"] = nil
	all["big"] = bytes.Repeat([]byte("0123456789abcdef"), 200_000) // several blocks
	sub := a.Submission(time.Now(), all)
	for range 2 {
		ack, err := upAndAdd(t, a, s, sub, all)
		if err != nil || ack.Status != wire.AckPending || ack.Epoch != 1 || !ack.Due.After(time.Now()) {
			t.Fatalf("got %+v, %v", ack, err)
		}
		if p, err := s.client.Pending(t.Context(), "big"); err != nil || !p.Pending {
			t.Errorf("pending: got %+v, %v", p, err)
		}
		st, err := s.client.Status(t.Context())
		if err != nil || st.Pending != 5 || st.PendingBytes != sub.Size() {
			t.Errorf("status: got %d names, %d bytes, %v", st.Pending, st.PendingBytes, err)
		}
		s.stop()
		s = startService(t, a, r)
	}
	got, err := os.ReadFile(archivetest.ContentPath(r.Dir, archivetest.ContentOf(all["big"]).Digest))
	if err != nil || !bytes.Equal(got, all["big"]) {
		t.Errorf("content on the disk: %d bytes, %v", len(got), err)
	}
}

// What an Add is refused for.
func TestServeAddRefused(t *testing.T) {
	_, stranger, _ := ed25519.GenerateKey(rand.Reader)
	_, narrow, _ := ed25519.GenerateKey(rand.Reader)
	a := archivetest.NewRoster(t, 4, func(r *archive.Roster) {
		r.Limits.ContentSize = 1 << 20
		r.Writers = append(r.Writers, archive.Writer{Key: archive.PublicKey(narrow.Public().(ed25519.PublicKey)), Prefixes: []string{"n/"}, Names: 2, Bytes: 100})
	})
	a.Certify(t, map[archive.Name][]byte{"old": []byte("bound"), "old2": []byte("bound2")})
	s := startService(t, a, a.Replicas[0])
	now := time.Now()
	held := map[archive.Name][]byte{"new": []byte("bound")} // its content is here
	by := func(key ed25519.PrivateKey, at time.Time, all map[archive.Name][]byte) archive.Submission {
		sub := a.Submission(at, all)
		sub.Sign(key)
		return sub
	}
	forged := by(a.Writer, now, held)
	forged.Signature[0]++
	blocks := by(a.Writer, now, held)
	blocks.Bindings[0].Blocks[0]++
	blocks.Sign(a.Writer)
	elsewhere := by(a.Writer, now, held)
	elsewhere.Archive[0]++
	elsewhere.Sign(a.Writer)
	three := map[archive.Name][]byte{"n/1": []byte("bound"), "n/2": []byte("bound"), "n/3": []byte("bound")}
	tests := []struct {
		name string
		sub  archive.Submission
		want wire.Code
	}{
		{"stranger", by(stranger, now, held), wire.CodeDenied},
		{"forged", forged, wire.CodeDenied},
		{"other archive", elsewhere, wire.CodeDenied},
		{"not his names", by(narrow, now, held), wire.CodeDenied},
		{"too many names", by(narrow, now, three), wire.CodeQuota},
		{"too old", by(a.Writer, now.Add(-31*24*time.Hour), held), wire.CodeBadRequest},
		{"not yet", by(a.Writer, now.Add(2*time.Hour), held), wire.CodeBadRequest},
		{"content not here", by(a.Writer, now, map[archive.Name][]byte{"new": []byte("?")}), wire.CodeMissing},
		{"wrong block root", blocks, wire.CodeBadRequest},
		{"conflict", by(a.Writer, now, map[archive.Name][]byte{"old": []byte("bound2"), "old2": []byte("bound2")}), wire.CodeConflict},
	}
	for _, tt := range tests {
		_, err := s.client.Add(t.Context(), tt.sub)
		if !errors.Is(err, &wire.Error{Code: tt.want}) {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
		var e *wire.Error
		if tt.want == wire.CodeConflict && errors.As(err, &e) {
			entry, _, err := e.Bound(a.Roster, e.Conflicts[0])
			if len(e.Conflicts) != 1 || err != nil || entry.Content != archivetest.ContentOf([]byte("bound")) {
				t.Errorf("conflict: got %v, %v, %v", e.Conflicts, entry, err)
			}
		}
	}
	ack, err := s.client.Add(t.Context(), by(a.Writer, now, map[archive.Name][]byte{"old": []byte("bound")}))
	if err != nil || ack.Status != wire.AckBound || ack.Epoch != 1 {
		t.Errorf("same again: got %+v, %v", ack, err)
	}
	if st, _ := s.client.Status(t.Context()); st.Pending != 0 {
		t.Errorf("%d names pending of refused submissions", st.Pending)
	}
	t.Run("uploads", func(t *testing.T) { testUploadRefused(t, a, s, stranger, narrow) })
}

func testUploadRefused(t *testing.T, a *archivetest.Archive, s *served, stranger, narrow ed25519.PrivateKey) {
	b := []byte("upload")
	c := archivetest.ContentOf(b)
	big := archive.Content{Digest: c.Digest, Size: 1<<20 + 1}
	long := archive.Content{Digest: c.Digest, Size: 101}
	id := a.Roster.ID()
	tests := []struct {
		name string
		up   archive.Upload
		size int64
		body io.Reader
		want wire.Code
	}{
		{"stranger", archive.SignUpload(stranger, id, c), 6, poison{t}, wire.CodeDenied},
		{"other archive", archive.SignUpload(a.Writer, archive.Digest{}, c), 6, poison{t}, wire.CodeDenied},
		{"unsigned", archive.Upload{Archive: id, Digest: c.Digest, Size: 6}, 6, poison{t}, wire.CodeDenied},
		{"other length", archive.SignUpload(a.Writer, id, c), 7, poison{t}, wire.CodeBadRequest},
		{"too large", archive.SignUpload(a.Writer, id, big), int64(big.Size), poison{t}, wire.CodeTooLarge},
		{"over quota", archive.SignUpload(narrow, id, long), int64(long.Size), poison{t}, wire.CodeQuota},
		{"other bytes", archive.SignUpload(a.Writer, id, c), 6, strings.NewReader("uploaf"), wire.CodeBadRequest},
	}
	for _, tt := range tests {
		if err := s.client.PutContent(t.Context(), tt.up, tt.size, tt.body); !errors.Is(err, &wire.Error{Code: tt.want}) {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
	if have, err := s.client.Have(t.Context(), []archive.Digest{c.Digest}); err != nil || have[0] {
		t.Errorf("a refused content is held: %v, %v", have, err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.Dir, "store", "tmp")); len(left) > 0 {
		t.Errorf("half-written: %v", left)
	}
}

// poison is a body that must not be read.
type poison struct{ t *testing.T }

func (p poison) Read([]byte) (int, error) {
	p.t.Error("body was read")
	return 0, io.EOF
}

// A body that a stranger never ends is not read past its first bytes.
func TestServeStrangerBody(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	s := startService(t, a, a.Replicas[0])
	prefix := a.Submission(time.Now(), map[archive.Name][]byte{"x": nil}).Bytes()[:archive.SubmissionPrefix]
	prefix[len(prefix)-1]++ // another writer
	body, w := io.Pipe()
	defer w.Close()
	go w.Write(prefix) // and then nothing
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, s.client.URL(wire.PathAdd), body)
	resp, err := s.client.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("got %s", resp.Status)
	}
}

// Strangers who begin submissions and do not go on keep no writer out.
func TestServeStrangersWait(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	s := startService(t, a, a.Replicas[0])
	body, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 2 * maxAdds {
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, s.client.URL(wire.PathAdd), io.NopCloser(body))
		sent := make(chan struct{})
		req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { close(sent) }}))
		wg.Go(func() {
			if resp, err := s.client.HTTP().Do(req); err == nil {
				resp.Body.Close()
			}
		})
		<-sent
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.client.Add(ctx, a.Submission(time.Now(), files("a", 1))); err != nil {
		t.Error(err)
	}
}

// The pages in answers are short, whatever is asked for: 256 are made at a time.
func TestAnswerPage(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", wire.MaxFirst+10))
	s := startService(t, a, a.Replicas[0])
	for asked, want := range map[int]int{1: 1, wire.MaxFirst: wire.MaxFirst, wire.MaxPage: wire.MaxFirst, 1 << 40: wire.MaxFirst} {
		ans, err := s.client.Answer(t.Context(), wire.AnswerRequest{Range: &wire.Range{Limit: asked}})
		if err != nil {
			t.Fatal(err)
		}
		view, err := archive.VerifyProof(a.Record, ans.Proof)
		if err != nil {
			t.Fatal(err)
		}
		if pairs, _, err := view.Page(nil, nil); len(pairs) != want || err != nil {
			t.Errorf("%d names asked for: got %d, %v; want %d", asked, len(pairs), err, want)
		}
	}
}

// A gate holds as many as it should, and closes when they have left.
func TestGate(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	g := newGate(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { inside <- struct{}{}; <-leave }), 2)
	ask := func() int {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		return w.Code
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { ask() })
		<-inside
	}
	if got := ask(); got != http.StatusServiceUnavailable {
		t.Errorf("third of two: got %d", got)
	}
	leave <- struct{}{}
	waitFor(t, "one to leave", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.n == 1 })
	wg.Go(func() { ask() })
	<-inside
	close(leave)
	g.close(time.Minute)
	if got := ask(); got != http.StatusServiceUnavailable {
		t.Errorf("shut: got %d", got)
	}
	wg.Wait()
}

// Hostile requests are refused with the right status, and the service lives.
func TestServeHostile(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 3))
	s := startService(t, a, a.Replicas[0])
	head := a.Record.Head().String()
	tests := []struct {
		method, path string
		body         io.Reader
		want         int
	}{
		{"GET", wire.PathProof, nil, 400},
		{"GET", wire.PathProof + "?head=" + head, nil, 400},
		{"GET", wire.PathProofs, nil, 404},
		{"POST", wire.PathProofs, strings.NewReader(""), 400},
		{"POST", wire.PathProofs, strings.NewReader(string(make([]byte, 32)) + "\x00\x02.."), 400},
		{"POST", wire.PathProofs, strings.NewReader(string(make([]byte, 32)) + "\x00\x01a"), 412},
		{"POST", wire.PathProofs, strings.NewReader(strings.Repeat("x", wire.MaxProofsRequest+1)), 413},
		{"GET", wire.PathProof + "?head=" + head + "&from=&limit=-1", nil, 400},
		{"GET", wire.PathProof + "?head=" + head + "&from=&limit=99999999999999999999", nil, 400},
		{"GET", wire.PathProof + "?head=" + head + "&limit=1&from=" + strings.Repeat("A", 9000), nil, 400},
		{"GET", wire.PathHistory + "?from=-1&limit=1", nil, 400},
		{"GET", wire.PathHistory + "?from=18446744073709551615&limit=64", nil, 200},
		{"GET", wire.PathContent + "../../mas/state.json", nil, 404},
		{"GET", wire.PathContent + "%2e%2e%2f%2e%2e%2fmas%2fstate.json", nil, 404},
		{"GET", wire.PathContent + strings.Repeat("A", 64), nil, 400},
		{"GET", wire.PathContent + strings.Repeat("a", 64), nil, 404},
		{"DELETE", wire.PathContent + strings.Repeat("a", 64), nil, 404},
		{"PUT", wire.PathContent + strings.Repeat("a", 64), strings.NewReader("x"), 403},
		{"POST", wire.PathAnswer, strings.NewReader("{"), 400},
		{"POST", wire.PathAnswer, strings.NewReader(strings.Repeat("x", wire.MaxRequest+1)), 413},
		{"POST", wire.PathAdd, strings.NewReader(""), 400},
		{"POST", wire.PathAdd, strings.NewReader(strings.Repeat("x", 1000)), 400},
		{"GET", wire.PathPending + "?name=AA", nil, 400},
		{"GET", "/", nil, 404},
	}
	for _, tt := range tests {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, s.client.URL(tt.path), tt.body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.client.HTTP().Do(req)
		if err != nil {
			t.Errorf("%s %s: %v", tt.method, tt.path, err)
			continue
		}
		if resp.Body.Close(); resp.StatusCode != tt.want {
			t.Errorf("%s %.60s: got %d, want %d", tt.method, tt.path, resp.StatusCode, tt.want)
		}
	}
	if _, ok, err := get(t, a, s, "a/0001"); !ok || err != nil {
		t.Errorf("afterwards: got %t, %v", ok, err)
	}
}

// Service code does not start before the MAS is locked.
func TestServeUpdateMode(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	if err := Serve(t.Context(), serviceConfig(t, a, a.Replicas[0])); !errors.Is(err, ErrUpdateMode) {
		t.Errorf("got %v, want %v", err, ErrUpdateMode)
	}
}

// unlocking is a MAS that falls back into update mode while it is served.
type unlocking struct {
	trust.MAS
	reset func()
	calls atomic.Int32
}

func (m *unlocking) Lookup(ctx context.Context, n trust.Nonce) (trust.Attestation, error) {
	if m.calls.Add(1) > 1 {
		m.reset()
	}
	return m.MAS.Lookup(ctx, n)
}

// An attestation made in update mode over a client's nonce would be a vote if
// the nonce is chosen so: it never leaves the replica.
func TestServeNoVoteForClients(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	r := a.Replicas[0]
	s := startService(t, a, r, func(c *Config) {
		// A device reset: the replica's device is changed behind the service.
		c.MAS = &unlocking{MAS: r.MAS, reset: func() { resetDevice(t, r) }}
	})
	ans, err := s.client.Answer(t.Context(), wire.AnswerRequest{Nonce: archive.CommitNonce(archive.Digest{1}, archive.Digest{2}), Name: "a/0000"})
	if !errors.Is(err, &wire.Error{Code: wire.CodeUnavailable}) || len(ans.Attestation) > 0 {
		t.Errorf("got %v, attestation of %d bytes", err, len(ans.Attestation))
	}
	if err := s.ended(); !errors.Is(err, ErrUpdateMode) {
		t.Errorf("the service ended with %v, want %v", err, ErrUpdateMode)
	}
}

// What is bound, by whomever, or too old is dropped when the service starts; the
// rest stays.
func TestServeDropsBound(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 2))
	r := a.Replicas[0]
	store := openStore(t, a, r)
	pending, err := store.Pending()
	if err != nil {
		t.Fatal(err)
	}
	bound := map[archive.Name][]byte{"a/0000": []byte("lost"), "a/0001": []byte("lost")}
	half := map[archive.Name][]byte{"a/0000": []byte("x"), "b": []byte("y")}
	keep := a.Submission(time.Now(), half)
	for _, sub := range []archive.Submission{a.Submission(time.Now(), bound), a.Submission(time.Now().Add(-32*24*time.Hour), half), keep} {
		if err := pending.Put(sub); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	s := startService(t, a, r)
	waitFor(t, "two submissions to go", func() bool {
		st, err := s.client.Status(t.Context())
		return err == nil && st.Pending == 2
	})
	s.stop()
	pending, err = openStore(t, a, r).Pending()
	if err != nil {
		t.Fatal(err)
	}
	var left []archive.Digest
	if err := pending.Each(func(s archive.Submission) error { left = append(left, s.Digest()); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || left[0] != keep.Digest() {
		t.Errorf("left: %v, want %s", left, keep.Digest())
	}
}

// An Add is not acknowledged into a buffer that was removed under the service;
// the process ends, so that the next one makes a new buffer.
func TestServeLostBuffer(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, serviceConfig(t, a, a.Replicas[0])) }()
	c := wire.NewClient(a.Replicas[0].Replica, a.Roster, wire.Options{})
	defer c.Close()
	waitFor(t, "service", func() bool { _, err := c.Status(t.Context()); return err == nil })
	store := filepath.Join(a.Replicas[0].Dir, storeDir)
	if err := os.Rename(store, store+".gone"); err != nil { // at once, whatever the service is writing
		t.Fatal(err)
	}
	all := files("b", 1)
	ack, err := upAndAdd(t, a, &served{client: c}, a.Submission(time.Now(), all), all)
	if err == nil {
		t.Errorf("got %+v", ack)
	}
	if err := <-done; !errors.Is(err, errLost) {
		t.Errorf("got %v, want %v", err, errLost)
	}
}

func openStore(t testing.TB, a *archivetest.Archive, r *archivetest.Replica) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(r.Dir, storeDir), a.Roster)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// resetDevice is a device reset behind the back of whoever has it open.
func resetDevice(t testing.TB, r *archivetest.Replica) {
	if err := soft.Reset(filepath.Join(r.Dir, "mas")); err != nil {
		t.Error(err)
	}
}
