package wire

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree"
)

// Options say how a Client connects.
type Options struct {
	// AgreementKey is set by update processes: it is shown to peers that ask
	// for it, and peers in an update phase are accepted. Without it they give
	// ErrUpdating.
	AgreementKey ed25519.PrivateKey
	// Timeout bounds connecting and every wait without progress. Zero means 30
	// seconds. How long a whole request may take is the context's business.
	Timeout time.Duration
}

// Client speaks to one replica. Its methods may be called concurrently. They
// check who answers and bound what it sends; what the reply is worth the caller
// must verify.
type Client struct {
	id      uint32
	base    string
	http    *http.Client
	bulk    *http.Client // for uploads
	timeout time.Duration
}

// NewClient returns a client of replica m. It connects when first used.
func NewClient(m archive.Replica, r *archive.Roster, o Options) *Client {
	if o.Timeout <= 0 {
		o.Timeout = idleDefault
	}
	return &Client{
		id: m.ID, base: "https://" + m.Address, timeout: o.Timeout,
		http: newHTTP(m, o), bulk: newBulk(m, o),
	}
}

func newHTTP(m archive.Replica, o Options) *http.Client {
	t := transport(o)
	t.DialContext = (&net.Dialer{Timeout: o.Timeout}).DialContext
	t.TLSClientConfig = clientTLS(m, o.AgreementKey)
	t.TLSHandshakeTimeout = o.Timeout
	t.ForceAttemptHTTP2 = true
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: o.Timeout, PingTimeout: o.Timeout, MaxReadFrameSize: 256 << 10}
	return direct(t)
}

// newBulk returns an HTTP client for long bodies: HTTP/1.1, which does less for
// each piece of one than HTTP/2.
func newBulk(m archive.Replica, o Options) *http.Client {
	config := clientTLS(m, o.AgreementKey)
	config.NextProtos = []string{"http/1.1"}
	t := transport(o)
	t.DialTLSContext = dialBulk(&net.Dialer{Timeout: o.Timeout}, config)
	t.WriteBufferSize, t.MaxIdleConnsPerHost = gatherSize, maxBulk
	return direct(t)
}

// maxBulk is how many connections for long bodies are kept.
const maxBulk = 8

func transport(o Options) *http.Transport {
	return &http.Transport{
		ExpectContinueTimeout:  o.Timeout,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
		IdleConnTimeout:        time.Minute,
	}
}

// direct returns a client that follows nobody elsewhere.
func direct(t *http.Transport) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     t,
	}
}

// ID returns the replica's ID.
func (c *Client) ID() uint32 { return c.id }

// Close ends idle connections.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.bulk.CloseIdleConnections()
}

// HTTP returns the pinned HTTP client, for requests of other packages.
func (c *Client) HTTP() *http.Client { return c.http }

// URL returns the URL of a path at the replica.
func (c *Client) URL(path string) string { return c.base + path }

// Answer asks for an answer to a nonce. The caller verifies it.
func (c *Client) Answer(ctx context.Context, q AnswerRequest) (archive.Answer, error) {
	var a archive.Answer
	err := c.postJSON(ctx, PathAnswer, "application/json", q.Bytes(), archive.MaxAnswer, &a)
	return a, c.wrap("answer", err)
}

// ProofRange asks for one page of the names from `from` to `to` (nil: to the
// end), of at most limit names, under a head that was attested before.
func (c *Client) ProofRange(ctx context.Context, head archive.Digest, from, to []byte, limit int) (tree.Proof, error) {
	q := url.Values{"head": {head.String()}, "from": {EncodeBytes(from)}, "limit": {strconv.Itoa(limit)}}
	if to != nil {
		q.Set("to", EncodeBytes(to))
	}
	b, err := c.get(ctx, PathProof+"?"+q.Encode(), tree.MaxProof)
	return b, c.wrap("proof", err)
}

// History asks for the records of the epochs from `from` on, limit or fewer. It
// returns none if the replica has none so new.
func (c *Client) History(ctx context.Context, from archive.Epoch, limit int) ([]SignedRecord, error) {
	var h History
	path := fmt.Sprintf("%s?from=%d&limit=%d", PathHistory, from, min(limit, MaxHistory))
	err := c.getJSON(ctx, path, maxHistory, &h)
	if err == nil && len(h.Records) > MaxHistory {
		err = fmt.Errorf("%w: %d records", archive.ErrFormat, len(h.Records))
	}
	return h.Records, c.wrap("history", err)
}

// Add sends a submission.
func (c *Client) Add(ctx context.Context, s archive.Submission) (Ack, error) {
	var ack Ack
	err := c.postJSON(ctx, PathAdd, "application/octet-stream", s.Bytes(), MaxAck, &ack)
	return ack, c.wrap("add", err)
}

// Pending asks whether a name waits for the next update phase.
func (c *Client) Pending(ctx context.Context, n archive.Name) (PendingState, error) {
	var p PendingState
	err := c.getJSON(ctx, PathPending+"?name="+EncodeBytes([]byte(n)), MaxAck, &p)
	return p, c.wrap("pending", err)
}

// Status asks what the replica says of itself.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.getJSON(ctx, PathStatus, MaxStatus, &s)
	return s, c.wrap("status", err)
}

// Content opens a content at offset and returns its whole size as the replica
// tells it. The bytes come from whoever answers: hash them. A read that finds no
// progress for the client's timeout fails.
func (c *Client) Content(ctx context.Context, d archive.Digest, offset int64) (io.ReadCloser, int64, error) {
	var ranges string
	if offset > 0 {
		ranges = fmt.Sprintf("bytes=%d-", offset)
	}
	body, size, err := c.content(ctx, d, offset, ranges)
	return body, size, c.wrap("content", err)
}

func (c *Client) content(ctx context.Context, d archive.Digest, offset int64, ranges string) (io.ReadCloser, int64, error) {
	ctx, w := watch(ctx, c.timeout)
	header := http.Header{}
	if ranges != "" {
		header.Set("Range", ranges)
	}
	resp, err := c.do(ctx, http.MethodGet, PathContent+d.String(), nil, header)
	if err != nil {
		return nil, 0, w.end(err)
	}
	size, err := contentSize(resp, offset)
	if err != nil {
		resp.Body.Close()
		return nil, 0, w.end(err)
	}
	return &watchedBody{watchedReader{resp.Body, w}, resp.Body}, size, nil
}

// ContentPart opens n bytes of a content, from offset on; otherwise it is as
// Content.
func (c *Client) ContentPart(ctx context.Context, d archive.Digest, offset, n int64) (io.ReadCloser, int64, error) {
	body, size, err := c.content(ctx, d, offset, fmt.Sprintf("bytes=%d-%d", offset, offset+n-1))
	return body, size, c.wrap("content", err)
}

// Blocks asks for a page of the digests of a content's blocks: MaxBlocks of
// them from block page*MaxBlocks on, or what there is. They are the replica's
// word until archive.Content.CheckBlocks has seen all.
func (c *Client) Blocks(ctx context.Context, d archive.Digest, page uint64) (archive.BlockList, error) {
	path := fmt.Sprintf("%s%s?page=%d", PathBlocks, d, page)
	b, err := c.get(ctx, path, MaxBlocks*int64(len(d)))
	if err != nil {
		return nil, c.wrap("blocks", err)
	}
	l, err := archive.ParseBlockList(b, MaxBlocks)
	return l, c.wrap("blocks", err)
}

// contentSize returns the whole size, once it is sure that the body begins at
// offset.
func contentSize(resp *http.Response, offset int64) (int64, error) {
	if offset == 0 && resp.StatusCode == http.StatusOK && resp.ContentLength >= 0 {
		return resp.ContentLength, nil
	}
	var first, last, size int64
	cr := resp.Header.Get("Content-Range")
	if n, err := fmt.Sscanf(cr, "bytes %d-%d/%d", &first, &last, &size); n != 3 || err != nil || first != offset || size < offset {
		return 0, fmt.Errorf("%w: range %q from %d", archive.ErrFormat, cr, offset)
	}
	return size, nil
}

func (c *Client) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("replica %d: %s: %w", c.id, what, err)
}

func (c *Client) getJSON(ctx context.Context, path string, limit int64, v any) error {
	b, err := c.get(ctx, path, limit)
	if err != nil {
		return err
	}
	return archive.DecodeJSON(b, v)
}

func (c *Client) get(ctx context.Context, path string, limit int64) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return readBounded(resp.Body, limit)
}

func (c *Client) postJSON(ctx context.Context, path, contentType string, body []byte, limit int64, v any) error {
	b, err := c.post(ctx, path, contentType, body, limit)
	if err != nil {
		return err
	}
	return archive.DecodeJSON(b, v)
}

func (c *Client) post(ctx context.Context, path, contentType string, body []byte, limit int64) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodPost, path, body, http.Header{"Content-Type": {contentType}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return readBounded(resp.Body, limit)
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, header http.Header) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL(path), r)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	return c.send(req)
}

// send returns a successful response, or the replica's Error.
func (c *Client) send(req *http.Request) (*http.Response, error) { return c.sendBy(c.http, req) }

func (c *Client) sendBy(h *http.Client, req *http.Request) (*http.Response, error) {
	resp, err := h.Do(req)
	if err != nil {
		return nil, plain(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, readError(resp)
}

// plain takes method and URL off an error: they say nothing that the caller
// does not know.
func plain(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

func readError(resp *http.Response) error {
	e := new(Error)
	b, err := readBounded(resp.Body, MaxError)
	if err == nil && len(b) > 0 && archive.DecodeJSON(b, e) == nil && statuses[e.Code] == resp.StatusCode {
		return e
	}
	for code, status := range statuses { // a reply to HEAD has no body
		if status == resp.StatusCode {
			return Errorf(code, "HTTP status %d", status)
		}
	}
	return fmt.Errorf("%w: HTTP status %d", archive.ErrFormat, resp.StatusCode)
}

func readBounded(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", archive.ErrFormat, limit)
	}
	return b, nil
}
