package wire

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// SyncRate is how slow a replica's disk may be, in bytes a second: so long is a
// reply waited for once all bytes of an upload are sent.
const SyncRate = 20 << 20

// Have asks which contents the replica holds, of at most MaxHave.
func (c *Client) Have(ctx context.Context, digests []archive.Digest) ([]bool, error) {
	var q []byte
	for _, d := range digests {
		q = append(q, d[:]...)
	}
	b, err := c.post(ctx, PathHave, "application/octet-stream", q, MaxHave/8)
	if err != nil {
		return nil, c.wrap("have", err)
	}
	have, err := ParseBitmap(b, len(digests))
	return have, c.wrap("have", err)
}

// Bitmap returns one bit for each of have, the first the highest of the first
// byte, and zeros up to a whole byte.
func Bitmap(have []bool) []byte {
	b := make([]byte, (len(have)+7)/8)
	for i, h := range have {
		if h {
			b[i/8] |= 0x80 >> (i % 8)
		}
	}
	return b
}

// ParseBitmap parses what Bitmap returns of n.
func ParseBitmap(b []byte, n int) ([]bool, error) {
	have := make([]bool, n)
	for i := range have {
		have[i] = i/8 < len(b) && b[i/8]&(0x80>>(i%8)) != 0
	}
	if !bytes.Equal(b, Bitmap(have)) {
		return nil, fmt.Errorf("%w: bitmap of %d bytes for %d", archive.ErrFormat, len(b), n)
	}
	return have, nil
}

// PutContents uploads many contents under a writer's signed leave: body is their
// bytes, in its order, one after another. All are on the replica's disk when it
// returns nil. It fails when the replica takes no bytes for the client's timeout.
func (c *Client) PutContents(ctx context.Context, up archive.Uploads, body io.Reader) error {
	list := up.Bytes()
	size := int64(len(list)) + int64(up.Size())
	err := c.upload(ctx, http.MethodPost, PathBatch, nil, size, size, io.MultiReader(bytes.NewReader(list), body))
	return c.wrap("upload", err)
}

// PutContent uploads a content under a writer's signed leave. It fails when the
// replica takes no bytes for the client's timeout.
func (c *Client) PutContent(ctx context.Context, up archive.Upload, size int64, body io.Reader) error {
	err := c.upload(ctx, http.MethodPut, PathContent+up.Digest.String(), leave(up), size, size, body)
	return c.wrap("upload", err)
}

// Partial asks how much of a content the replica has of an upload by this writer
// that was interrupted.
func (c *Client) Partial(ctx context.Context, d archive.Digest, writer archive.KeyID) (uint64, error) {
	var p Partial
	err := c.getJSON(ctx, fmt.Sprintf("%s%s?writer=%s", PathPartial, d, writer), MaxAck, &p)
	return p.Bytes, c.wrap("partial", err)
}

// ResumeContent is PutContent of the bytes from offset on, for a replica that
// has those before.
func (c *Client) ResumeContent(ctx context.Context, up archive.Upload, offset uint64, body io.Reader) error {
	path := fmt.Sprintf("%s%s?from=%d", PathContent, up.Digest, offset)
	return c.wrap("upload", c.upload(ctx, http.MethodPut, path, leave(up), int64(up.Size-offset), int64(up.Size), body))
}

// leave is the header of an upload that can be refused before its body is sent.
func leave(up archive.Upload) http.Header {
	return http.Header{HeaderUpload: {EncodeBytes(up.Bytes())}, "Expect": {"100-continue"}}
}

// upload sends a body of size bytes. The replica has then whole bytes to hash and
// to sync.
func (c *Client) upload(ctx context.Context, method, path string, header http.Header, size, whole int64, body io.Reader) error {
	ctx, w := watch(ctx, c.timeout)
	w.last = c.timeout + time.Duration(whole/SyncRate)*time.Second
	sent := &lentBody{r: &watchedReader{body, w}}
	defer sent.Close()
	req, err := http.NewRequestWithContext(ctx, method, c.URL(path), sent)
	if err != nil {
		return w.end(err)
	}
	if req.ContentLength = size; size == 0 {
		req.Body = http.NoBody
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := c.sendBy(c.bulk, req)
	if err != nil {
		return w.end(err)
	}
	w.end(nil)
	return resp.Body.Close()
}

// lentBody is a body that is not read any more once it is closed, though the
// transport may outlast its request.
type lentBody struct {
	mu sync.Mutex
	r  io.Reader // nil: closed
}

func (b *lentBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, io.ErrClosedPipe
	}
	return b.r.Read(p)
}

// Close waits for a Read under way.
func (b *lentBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = nil
	return nil
}
