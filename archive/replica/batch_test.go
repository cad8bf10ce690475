package replica

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/content"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// batchOf returns the signed list of contents, and their bytes behind each other.
func batchOf(key ed25519.PrivateKey, id archive.Digest, bodies ...[]byte) (archive.Uploads, []byte) {
	slices.SortFunc(bodies, func(a, b []byte) int {
		x, y := archive.DigestOf(a), archive.DigestOf(b)
		return bytes.Compare(x[:], y[:])
	})
	var all []archive.Sized
	for _, b := range bodies {
		all = append(all, archive.Sized{Digest: archive.DigestOf(b), Size: uint32(len(b))})
	}
	return archive.SignUploads(key, id, all), bytes.Join(bodies, nil)
}

// mixed returns contents that are kept in every way, one of them empty, some of
// odd sizes.
func mixed() map[archive.Name][]byte {
	all := make(map[archive.Name][]byte)
	for i, n := range []int{0, 1, 100, content.Small - 1, content.Small, content.Small + 1, 3*content.DirectBlock + content.Small, 500_000, 1 << 20, 1<<20 + 7, 2 << 20} {
		all[archive.Name(fmt.Sprintf("mixed/%02d", i))] = bytes.Repeat([]byte{byte(i)}, n)
	}
	return all
}

// Contents of all sizes that come together are held, for ever, and can be bound;
// sending them again changes nothing.
func TestServeBatch(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	r := a.Replicas[0]
	s := startService(t, a, r)
	var bodies [][]byte
	for _, b := range mixed() {
		bodies = append(bodies, b)
	}
	up, body := batchOf(a.Writer, a.Roster.ID(), bodies...)
	for range 2 {
		if err := s.client.PutContents(t.Context(), up, bytes.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
	s.stop()
	s = startService(t, a, r)
	if ack, err := s.client.Add(t.Context(), a.Submission(time.Now(), mixed())); err != nil || ack.Status != wire.AckPending {
		t.Fatalf("add: %+v, %v", ack, err)
	}
	for n, b := range mixed() {
		body, _, err := s.client.Content(t.Context(), archive.DigestOf(b), 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes, %v", n, len(got), err)
		}
		body.Close()
	}
	s.stop()
	p, err := openStore(t, a, r).Pending()
	if err != nil {
		t.Fatal(err)
	}
	if got := p.stored[up.Writer]; got != up.Size() {
		t.Errorf("the writer is charged %d bytes, want %d", got, up.Size())
	}
}

func TestServeBatchRefused(t *testing.T) {
	var narrow ed25519.PrivateKey
	a := archivetest.NewRoster(t, 4, func(r *archive.Roster) {
		pub, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		narrow = key
		r.Writers = append(r.Writers, archive.Writer{Key: archive.PublicKey(pub), Names: 10, Bytes: 100})
		r.Limits.ContentSize = 1 << 20
	})
	a.Certify(t, files("a", 1))
	s := startService(t, a, a.Replicas[0])
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	one, other := bytes.Repeat([]byte("1"), 101), bytes.Repeat([]byte("2"), 101)
	id := a.Roster.ID()
	sign := func(key ed25519.PrivateKey, id archive.Digest, b ...[]byte) []byte {
		up, _ := batchOf(key, id, b...)
		return up.Bytes()
	}
	unsigned, _ := batchOf(a.Writer, id, one)
	unsigned.Signature[0]++
	// Refused by the list alone: what follows never comes.
	for name, tt := range map[string]struct {
		list []byte
		want wire.Code
	}{
		"stranger":      {sign(stranger, id, one), wire.CodeDenied},
		"other archive": {sign(a.Writer, archive.Digest{}, one), wire.CodeDenied},
		"unsigned":      {unsigned.Bytes(), wire.CodeDenied},
		"over quota":    {sign(narrow, id, one), wire.CodeQuota},
		"too large":     {sign(a.Writer, id, make([]byte, 1<<20+1)), wire.CodeTooLarge},
		"no list":       {[]byte("bonafide/upload/v1\n" + string(make([]byte, 200))), wire.CodeBadRequest},
	} {
		never, end := io.Pipe()
		if got := s.post(t, &unending{io.MultiReader(bytes.NewReader(tt.list), never), never}, -1); !errors.Is(got, &wire.Error{Code: tt.want}) {
			t.Errorf("%s: got %v, want %s", name, got, tt.want)
		}
		end.Close()
	}
	list := sign(a.Writer, id, one, []byte("small"))
	for name, body := range map[string][]byte{
		"other bytes": slices.Concat(list, other, []byte("small")),
		"cut short":   slices.Concat(list, one[:50]),
		"longer":      slices.Concat(list, one, []byte("smaller")),
	} {
		if got := s.post(t, bytes.NewReader(body), int64(len(body))); !errors.Is(got, &wire.Error{Code: wire.CodeBadRequest}) {
			t.Errorf("%s: got %v", name, got)
		}
	}
	have, err := s.client.Have(t.Context(), []archive.Digest{archive.DigestOf(one), archive.DigestOf(other)})
	if err != nil || slices.Contains(have, true) {
		t.Errorf("refused contents are held: %v, %v", have, err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.Dir, "store", "tmp")); len(left) > 0 {
		t.Errorf("half-written: %v", left)
	}
	s.quotaIsFree(t, a, narrow)
}

// quotaIsFree uses all of a quota of 100 bytes, which refusals have not touched.
func (s *served) quotaIsFree(t *testing.T, a *archivetest.Archive, key ed25519.PrivateKey) {
	t.Helper()
	up, body := batchOf(key, a.Roster.ID(), bytes.Repeat([]byte("q"), 100))
	if err := s.client.PutContents(t.Context(), up, bytes.NewReader(body)); err != nil {
		t.Errorf("within the quota: %v", err)
	}
	more, body := batchOf(key, a.Roster.ID(), []byte("r"))
	if err := s.client.PutContents(t.Context(), more, bytes.NewReader(body)); !errors.Is(err, &wire.Error{Code: wire.CodeQuota}) {
		t.Errorf("over the quota: %v", err)
	}
}

// unending is a body that waits after its first bytes until it is closed.
type unending struct {
	io.Reader
	io.Closer
}

// post sends a batch as it is, and returns the refusal.
func (s *served) post(t *testing.T, body io.Reader, size int64) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.client.URL(wire.PathBatch), body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	resp, err := s.client.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode == http.StatusNoContent {
		return err
	}
	e := new(wire.Error)
	if err := archive.DecodeJSON(b, e); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return e
}

func TestServeHave(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	s := startService(t, a, a.Replicas[0])
	if _, err := s.client.Have(t.Context(), make([]archive.Digest, wire.MaxHave)); err != nil {
		t.Errorf("as many as may be: %v", err)
	}
	for n, want := range map[int]wire.Code{0: wire.CodeBadRequest, wire.MaxHave + 1: wire.CodeTooLarge} {
		if _, err := s.client.Have(t.Context(), make([]archive.Digest, n)); !errors.Is(err, &wire.Error{Code: want}) {
			t.Errorf("%d digests: got %v, want %s", n, err, want)
		}
	}
}
