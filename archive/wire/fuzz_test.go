package wire

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
)

// FuzzProofs: a request for proofs, and its reply, is refused or has one encoding.
func FuzzProofs(f *testing.F) {
	f.Add(ProofsRequest{Names: []archive.Name{"a", "b/c"}}.Bytes(), AppendProof(AppendProof(nil, []byte("one")), nil))
	f.Add(make([]byte, 40), []byte{0, 0, 0, 9, 1})
	f.Fuzz(func(t *testing.T, request, reply []byte) {
		if q, err := ParseProofsRequest(request); err == nil && !bytes.Equal(q.Bytes(), request) {
			t.Errorf("request: %q encodes as %q", request, q.Bytes())
		}
		all, err := ParseProofs(reply, 3)
		if err != nil {
			return
		}
		var again []byte
		for _, p := range all {
			again = AppendProof(again, p)
		}
		if !bytes.Equal(again, reply) || len(all) > 3 {
			t.Errorf("reply: %q encodes as %q", reply, again)
		}
	})
}

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
