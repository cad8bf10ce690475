package wire

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
)

// FuzzReplies: whatever a replica replies is one of the things it may say, in
// its one encoding, or an error.
func FuzzReplies(f *testing.F) {
	f.Add([]byte(`{"status":"pending","due":"2026-01-01T00:00:00Z","epoch":1}`), 200, "bytes 0-9/10")
	f.Add([]byte(`{"code":"stale-head","message":"m"}`), 409, "bytes 5-9/10")
	f.Add([]byte(`{"records":[]}`), 206, "")
	f.Fuzz(func(t *testing.T, b []byte, status int, contentRange string) {
		for _, v := range []any{new(Ack), new(PendingState), new(Status), new(History), new(Error)} {
			if archive.DecodeJSON(b, v) != nil {
				continue
			}
			if again, err := archive.EncodeJSON(v); err != nil || !bytes.Equal(again, b) {
				t.Errorf("%T: %q encodes as %q, %v", v, b, again, err)
			}
		}
		resp := &http.Response{StatusCode: status, Body: io.NopCloser(bytes.NewReader(b)), ContentLength: int64(len(b)), Header: http.Header{"Content-Range": {contentRange}}}
		if size, err := contentSize(resp, 5); err == nil && size < 5 {
			t.Errorf("size %d from 5 on", size)
		}
		var e *Error
		if err := readError(resp); err == nil || errors.As(err, &e) && statuses[e.Code] != status {
			t.Errorf("status %d: %v", status, err)
		}
	})
}
