package archivetest_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// What a replica may say to a bad request.
const (
	badRequest = wire.CodeBadRequest
	denied     = wire.CodeDenied
)

// request is one that a client of ours would not make.
type request struct {
	what, method, path string // method "": GET
	header             http.Header
	body               []byte
	stream             io.Reader // in place of body
}

// send sends r to a replica and returns the reply with at most a megabyte of
// its body.
func (c *siege) send(m archive.Replica, r request) (*http.Response, []byte) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	body := r.stream
	if body == nil {
		body = bytes.NewReader(r.body)
	}
	w := c.raw[m.ID]
	req, err := http.NewRequestWithContext(ctx, r.method, w.URL("/"), body)
	if err != nil {
		c.t.Fatal(err)
	}
	if path, query, _ := strings.Cut(r.path, "?"); true {
		req.URL.Opaque, req.URL.RawQuery = "//"+m.Address+path, query
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	resp, err := w.HTTP().Do(req)
	if err != nil {
		c.t.Errorf("replica %d: %s: %v", m.ID, r.what, err)
		return &http.Response{}, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		c.t.Errorf("replica %d: %s: %v", m.ID, r.what, err)
	}
	return resp, b
}

// refused wants a refusal with the given code.
func (c *siege) refused(m archive.Replica, code wire.Code, r request) {
	c.t.Helper()
	resp, b := c.send(m, r)
	e := new(wire.Error)
	if err := archive.DecodeJSON(b, e); err != nil || e.Code != code || e.Message == "" || len(b) > 4<<10 {
		c.t.Errorf("replica %d: %s: HTTP status %d, %.200q, want %s", m.ID, r.what, resp.StatusCode, b, code)
	}
}

// answered wants an HTTP status.
func (c *siege) answered(m archive.Replica, status int, r request) []byte {
	c.t.Helper()
	resp, b := c.send(m, r)
	if resp.StatusCode != status {
		c.t.Errorf("replica %d: %s: HTTP status %d, %.200q, want %d", m.ID, r.what, resp.StatusCode, b, status)
	}
	return b
}

// dialTLS connects to a replica as a stranger may, who pins nothing.
func dialTLS(ctx context.Context, m archive.Replica, protocol string) (*tls.Conn, error) {
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}}}
	conn, err := d.DialContext(ctx, "tcp", m.Address)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn.(*tls.Conn), nil
}

// refusedEarly sends the beginning of a request and wants the reply before the
// rest.
func (c *siege) refusedEarly(m archive.Replica, status int, head string) {
	c.t.Helper()
	conn, err := dialTLS(c.t.Context(), m, "http/1.1")
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, head); err != nil {
		c.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		c.t.Errorf("replica %d: %.80q: %v", m.ID, head, err)
		return
	}
	resp.Body.Close()
	if resp.StatusCode != status {
		c.t.Errorf("replica %d: %.80q: HTTP status %d, want %d", m.ID, head, resp.StatusCode, status)
	}
}

func query(pairs ...string) string {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	return "?" + q.Encode()
}

// requests are malformed, not canonical, or ask for what makes no sense.
func (c *siege) requests(t *testing.T) {
	c = c.at(t)
	st, err := c.status(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.roster.Replicas {
		for _, r := range badRequests(c, st.Head.String()) {
			c.refused(m, badRequest, r)
		}
		for _, r := range oddRequests(st.Head.String()) {
			c.answered(m, http.StatusOK, r)
		}
		c.refused(m, wire.CodeStaleHead, request{what: "another head", path: wire.PathProof + query("head", strings.Repeat("0", 64), "from", "", "limit", "1")})
		c.refused(m, wire.CodeStaleHead, proofsRequest(archive.Digest{}, "a"))
		c.refused(m, wire.CodeMissing, request{what: "another method", method: "DELETE", path: wire.PathStatus})
		c.refused(m, wire.CodeMissing, request{what: "no method", method: "BREW", path: wire.PathAdd})
		c.refused(m, wire.CodeMissing, request{what: "no path", path: "/v1/phase/board"})
		c.refused(m, wire.CodeMissing, request{what: "dots", path: "/v1/content/../../../../etc/passwd"})
		c.refusedEarly(m, http.StatusRequestHeaderFieldsTooLarge, "GET /v1/status HTTP/1.1\r\nHost: x\r\nX-Long: "+strings.Repeat("x", 64<<10))
	}
	c.unharmed()
}

func badRequests(c *siege, head string) (all []request) {
	nonce := strings.Repeat("0", 64)
	for _, b := range []string{"", "null", "[]", "{", "{}", `{"nonce":"` + nonce + `"}`, `{"nonce":"00","name":"a"}`,
		`{"nonce":"` + nonce + `","name":"a"} `, ` {"nonce":"` + nonce + `","name":"a"}`, `{"nonce":"` + nonce + `", "name":"a"}`,
		`{"name":"a","nonce":"` + nonce + `"}`, `{"nonce":"` + nonce + `","NAME":"a"}`, `{"nonce":"` + nonce + `","name":"a","name":"a"}`,
		`{"nonce":"` + nonce + `","name":"\u0061"}`, `{"nonce":"` + nonce + `","name":"a","range":{"from":"","to":"","limit":1}}`,
		`{"nonce":"` + nonce + `","range":{"from":"","to":"","limit":0}}`, `{"nonce":"` + nonce + `","range":{"from":"","to":"","limit":1e3}}`,
		`{"nonce":"` + nonce + `","range":{"from":"","to":"","limit":99999999999999999999}}`,
		strings.Repeat("[", wire.MaxRequest)} {
		all = append(all, request{what: "answer " + b[:min(len(b), 120)], method: "POST", path: wire.PathAnswer, body: []byte(b)})
	}
	for _, q := range []string{"", "?from=1", "?limit=1", "?from=-1&limit=1", "?from=99999999999999999999&limit=1", "?from=1&limit=0", "?from=a&limit=b"} {
		all = append(all, request{what: "history " + q, path: wire.PathHistory + q})
	}
	for _, q := range []string{"", "?from=YQ&limit=1", query("head", head), query("head", strings.ToUpper(head)+"A", "from", "YQ", "limit", "1"), query("head", head[1:], "from", "YQ", "limit", "1"),
		query("head", head, "from", "YQ==", "limit", "1"), query("head", head, "from", "Y\nQ", "limit", "1"), query("head", head, "from", "*", "limit", "1"), query("head", head, "from", "YR", "limit", "1"),
		query("head", head, "from", "", "limit", "0"), query("head", head, "from", "", "limit", "-1"), query("head", head, "from", "", "limit", "99999999999999999999"),
		query("head", head, "from", wire.EncodeBytes(make([]byte, archive.MaxName+2)), "limit", "1")} {
		all = append(all, request{what: "proof " + q, path: wire.PathProof + q})
	}
	d, _ := archive.ParseDigest(head)
	all = append(all, proofsRequest(d), proofsRequest(d, slices.Repeat([]archive.Name{"a"}, wire.MaxProofs+1)...), proofsRequest(d, "a", ""), proofsRequest(d, "a", "\xff"))
	for what, b := range map[string][]byte{"nothing": {}, "half a head": make([]byte, 16), "torn": append(d[:], 0, 9, 'a'), "half a length": append(d[:], 0)} {
		all = append(all, request{what: "proofs: " + what, method: "POST", path: wire.PathProofs, body: b})
	}
	for _, d := range []string{"00", strings.Repeat("0", 63), strings.Repeat("G", 64), strings.Repeat("A", 64), strings.Repeat("0", 65)} {
		all = append(all, request{what: "content " + d, path: wire.PathContent + d})
	}
	for what, b := range badSubmissions(c) {
		all = append(all, request{what: "add " + what, method: "POST", path: wire.PathAdd, body: b})
	}
	return all
}

func proofsRequest(head archive.Digest, names ...archive.Name) request {
	return request{what: fmt.Sprintf("proofs %.120q", names), method: "POST", path: wire.PathProofs, body: wire.ProofsRequest{Head: head, Names: names}.Bytes()}
}

func badSubmissions(c *siege) map[string][]byte {
	one, two := bindingOf("sub/1"), bindingOf("sub/2")
	good := c.submission(one).Bytes()
	old := archive.Submission{Archive: c.roster.ID(), Created: time.Unix(1, 0).UTC(), Bindings: []archive.Binding{one}}
	old.Sign(c.writers[0])
	future := archive.Submission{Archive: c.roster.ID(), Created: time.Unix(1<<40, 0).UTC(), Bindings: []archive.Binding{one}}
	future.Sign(c.writers[0])
	larger := one
	larger.Size++
	many := make([]archive.Binding, archive.MaxBindings+1)
	for i := range many {
		many[i] = bindingOf(archive.Name(fmt.Sprintf("sub/%06d", i)))
	}
	hash := slices.Clone(good)
	hash[archive.SubmissionPrefix+8] = 0x13
	count := slices.Clone(good)
	copy(count[archive.SubmissionPrefix+9:], "\xff\xff\xff\xff")
	return map[string][]byte{
		"nothing": {}, "cut": good[:len(good)-1], "trailing": append(slices.Clone(good), 0), "prefix alone": good[:archive.SubmissionPrefix],
		"half a prefix": good[:archive.SubmissionPrefix/2], "no names": c.submission().Bytes(), "too many names": c.submission(many...).Bytes(),
		"out of order": c.submission(two, one).Bytes(), "twice": c.submission(one, one).Bytes(), "another hash": hash, "a huge count": count,
		"too old": old.Bytes(), "from the future": future.Bytes(), "another size": c.submission(larger).Bytes(),
		"JSON": []byte(`{"archive":"` + strings.Repeat("0", 100) + `"}`),
	}
}

// oddRequests are strange and have an answer all the same; none of them may
// make a replica believe that its own tree is damaged.
func oddRequests(head string) (all []request) {
	high, long := wire.EncodeBytes([]byte("z")), wire.EncodeBytes(bytes.Repeat([]byte{0xff}, archive.MaxName+1))
	low, zeros := wire.EncodeBytes([]byte("a")), wire.EncodeBytes(make([]byte, archive.MaxName+1))
	for _, q := range []string{query("head", head, "from", high, "to", low, "limit", "1"), query("head", head, "from", low, "to", low, "limit", "1"),
		query("head", head, "from", "", "to", "", "limit", "1"), query("head", head, "from", low, "to", "", "limit", "1"),
		query("head", head, "from", long, "limit", "1"), query("head", head, "from", zeros, "to", long, "limit", "2147483647"),
		query("head", head, "from", "", "limit", "9223372036854775807")} {
		all = append(all, request{what: "proof " + q, path: wire.PathProof + q})
	}
	wide := bytes.Repeat([]byte{0xff}, archive.MaxName+1)
	for _, g := range []wire.Range{{From: []byte("z"), To: []byte("a"), Limit: 1}, {From: []byte("a"), To: []byte("a"), Limit: 1}, {From: wide, To: wide, Limit: 1},
		{From: []byte{}, To: wide, Limit: 1 << 30}, {From: make([]byte, archive.MaxName+1), To: []byte{}, Limit: 1}} {
		all = append(all, request{what: fmt.Sprintf("answer %.20q", g.From), method: "POST", path: wire.PathAnswer, body: wire.AnswerRequest{Range: &g}.Bytes()})
	}
	longest := archive.Name(strings.Repeat("n", archive.MaxName))
	n := wire.AnswerRequest{Name: longest}
	d, _ := archive.ParseDigest(head)
	return append(all, proofsRequest(d, slices.Repeat([]archive.Name{longest}, wire.MaxProofs)...), request{what: "the longest name", method: "POST", path: wire.PathAnswer, body: n.Bytes()},
		request{what: "the last epoch", path: wire.PathHistory + "?from=18446744073709551615&limit=9223372036854775807"},
		request{what: "a body to GET", path: wire.PathStatus, body: []byte("body")})
}

// endless bodies are cut off at their bound.
func (c *siege) endless(t *testing.T) {
	c = c.at(t)
	good := c.submission(bindingOf("endless/a")).Bytes()
	up := archive.SignUpload(c.writers[0], c.roster.ID(), archivetest.ContentOf([]byte("endless")))
	for _, m := range c.roster.Replicas[:2] {
		c.refused(m, wire.CodeTooLarge, request{what: "answer", method: "POST", path: wire.PathAnswer, stream: zeros{}})
		c.refused(m, badRequest, request{what: "add from zero", method: "POST", path: wire.PathAdd, stream: zeros{}})
		c.refused(m, wire.CodeTooLarge, request{what: "add", method: "POST", path: wire.PathAdd, stream: io.MultiReader(bytes.NewReader(good), zeros{})})
		c.refused(m, badRequest, request{what: "upload", method: "PUT", path: wire.PathContent + up.Digest.String(), stream: zeros{},
			header: http.Header{wire.HeaderUpload: {wire.EncodeBytes(up.Bytes())}}})
		c.answered(m, http.StatusOK, request{what: "status", path: wire.PathStatus, stream: zeros{}})
		for _, path := range []string{wire.PathAnswer, wire.PathAdd} {
			c.refusedEarly(m, 400, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", path))
			c.refusedEarly(m, 400, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", path))
		}
		c.refusedEarly(m, 400, fmt.Sprintf("PUT %s%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s: %s\r\n\r\n",
			wire.PathContent, up.Digest, int64(1)<<62, wire.HeaderUpload, wire.EncodeBytes(up.Bytes())))
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// cutBodies end before they have come to their length.
func (c *siege) cutBodies(t *testing.T) {
	c = c.at(t)
	good := c.submission(bindingOf("cut/a")).Bytes()
	content := archivetest.ContentOf([]byte("never whole"))
	up := archive.SignUpload(c.writers[0], c.roster.ID(), content)
	for _, m := range c.roster.Replicas {
		for _, head := range []string{
			fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", wire.PathAdd, len(good), good[:len(good)-1]),
			fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{", wire.PathAnswer),
			fmt.Sprintf("PUT %s%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s: %s\r\n\r\nnever",
				wire.PathContent, up.Digest, content.Size, wire.HeaderUpload, wire.EncodeBytes(up.Bytes())),
		} {
			c.cut(m, head)
		}
		if _, err := archivetest.ReadContent(c.replicaDir(m.ID), content.Digest); err == nil {
			t.Errorf("replica %d keeps half a content", m.ID)
		}
	}
}

// cut sends the beginning of a request, hangs up for good or in one direction,
// and wants nothing but a refusal.
func (c *siege) cut(m archive.Replica, head string) {
	c.t.Helper()
	for _, half := range []bool{true, false} {
		conn, err := dialTLS(c.t.Context(), m, "http/1.1")
		if err != nil {
			c.t.Fatal(err)
		}
		io.WriteString(conn, head)
		if half {
			conn.CloseWrite()
			if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil && resp.StatusCode != http.StatusBadRequest {
				c.t.Errorf("replica %d: %.80q: HTTP status %d", m.ID, head, resp.StatusCode)
			}
		}
		conn.Close()
	}
}

// uploads that are not what was signed leave nothing behind.
func (c *siege) uploads(t *testing.T) {
	c = c.at(t)
	body := []byte("what was signed")
	content := archivetest.ContentOf(body)
	sign := func(x archive.Content) http.Header {
		return http.Header{wire.HeaderUpload: {wire.EncodeBytes(archive.SignUpload(c.writers[0], c.roster.ID(), x).Bytes())}}
	}
	other, huge, absurd := content, content, content
	other.Digest[0] ^= 1
	huge.Size, absurd.Size = c.roster.Limits.ContentSize+1, 1<<63
	put := func(what string, d archive.Digest, h http.Header, b string) request {
		return request{what: what, method: "PUT", path: wire.PathContent + d.String(), header: h, body: []byte(b)}
	}
	for _, m := range c.roster.Replicas {
		c.refused(m, badRequest, put("other bytes", content.Digest, sign(content), "what was forged"))
		c.refused(m, badRequest, put("more bytes", content.Digest, sign(content), "what was signed, and more"))
		c.refused(m, badRequest, put("no bytes", content.Digest, sign(content), ""))
		c.refused(m, badRequest, put("another digest", other.Digest, sign(content), string(body)))
		c.refused(m, badRequest, put("a huge size", content.Digest, sign(huge), string(body)))
		c.refused(m, badRequest, put("an absurd size", content.Digest, sign(absurd), string(body)))
		c.refused(m, denied, put("no leave", content.Digest, nil, string(body)))
		c.refused(m, denied, put("a bad leave", content.Digest, http.Header{wire.HeaderUpload: {"*"}}, string(body)))
		c.refusedEarly(m, 413, fmt.Sprintf("PUT %s%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s: %s\r\n\r\n",
			wire.PathContent, huge.Digest, huge.Size, wire.HeaderUpload, sign(huge).Get(wire.HeaderUpload)))
		c.refused(m, wire.CodeMissing, request{what: "not uploaded", method: "POST", path: wire.PathAdd,
			body: c.submission(archive.Binding{Name: "uploads/a", Content: content}).Bytes()})
		for _, d := range []archive.Digest{content.Digest, other.Digest} {
			if _, err := archivetest.ReadContent(c.replicaDir(m.ID), d); err == nil {
				t.Errorf("replica %d keeps what was refused", m.ID)
			}
		}
	}
}

// ranges that make no sense are answered with what there is, or refused.
func (c *siege) ranges(t *testing.T) {
	c = c.at(t)
	content := archivetest.ContentOf([]byte("here to stay"))
	path := wire.PathContent + content.Digest.String()
	for _, x := range []struct {
		header string
		status int
	}{
		{"bytes=0-", 206}, {"bytes=5-7", 206}, {"bytes=-5", 206}, {"bytes=0-9223372036854775807", 206}, {"bytes=-9223372036854775807", 206},
		{"bytes=12-", 416}, {"bytes=9223372036854775807-", 416}, {"bytes=99999999999999999999-", 416}, {"bytes=7-5", 416}, {"bytes=--5", 416},
		{"bytes=a-b", 416}, {"bytes=" + strings.Repeat("0-,", 2000) + "0-", 200}, {"bytes=" + strings.Repeat("0-0,", 2000) + "0-0", 200},
		{"rows=0-1", 416},
	} {
		resp, b := c.send(c.roster.Replicas[0], request{what: "range " + x.header, path: path, header: http.Header{"Range": {x.header}}})
		if resp.StatusCode != x.status || len(b) > 1<<10 {
			t.Errorf("range %.40q: HTTP status %d and %d bytes, want %d", x.header, resp.StatusCode, len(b), x.status)
		}
	}
}

// vandals keep strangers connected to both ports of every replica until ctx
// ends: some talk garbage, most say nothing or stop in the middle.
func (c *siege) vandals(ctx context.Context) *sync.WaitGroup {
	all := new(sync.WaitGroup)
	for _, m := range c.roster.Replicas {
		for _, address := range []string{m.Address, m.Agreement} {
			for _, talk := range [][]byte{nil, []byte("GET / HTTP/1.1\r\n\r\n"), bytes.Repeat([]byte{0xa5}, 64<<10), hello[:len(hello)/2], hello,
				append([]byte{0x16, 3, 1, 0xff, 0xff}, make([]byte, 100)...)} {
				all.Go(func() { vandal(ctx, address, talk) })
			}
		}
		all.Go(func() { chatterer(ctx, m) })
	}
	return all
}

// hello begins a TLS connection.
var hello = func() []byte {
	a, b := net.Pipe()
	go tls.Client(a, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake()
	buf := make([]byte, 4<<10)
	n, _ := b.Read(buf)
	b.Close()
	return buf[:n]
}()

// vandal connects again and again, three times at once, says its line and stays.
func vandal(ctx context.Context, address string, talk []byte) {
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for ctx.Err() == nil {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
				if err != nil {
					breathe(ctx)
					continue
				}
				end := context.AfterFunc(ctx, func() { conn.Close() })
				conn.Write(talk)
				conn.SetReadDeadline(time.Now().Add(3 * time.Second))
				io.Copy(io.Discard, conn)
				end()
				conn.Close()
				breathe(ctx)
			}
		})
	}
	all.Wait()
}

// chatterer completes its handshakes and then talks garbage as HTTP/2.
func chatterer(ctx context.Context, m archive.Replica) {
	for ctx.Err() == nil {
		if conn, err := dialTLS(ctx, m, "h2"); err == nil {
			conn.SetDeadline(time.Now().Add(time.Second))
			io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
			conn.Write(bytes.Repeat([]byte{0xff}, 32<<10))
			io.Copy(io.Discard, io.LimitReader(conn, 1<<20))
			conn.Close()
		}
		breathe(ctx)
	}
}

// breathe keeps the vandals from taking the machine from those they disturb.
func breathe(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
}
