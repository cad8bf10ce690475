package replica

import (
	"bytes"
	"errors"
	"maps"
	"path/filepath"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/content"
)

// What was uploaded and never bound is collected after the submission age, small
// or large; what is bound, waits to be, or came later is not.
func TestCollect(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	kinds := func(prefix string) map[archive.Name][]byte {
		return map[archive.Name][]byte{
			archive.Name(prefix + "/small"): []byte("small " + prefix),
			archive.Name(prefix + "/large"): bytes.Repeat([]byte(prefix), content.Small),
			archive.Name(prefix + "/other"): []byte("other " + prefix),
		}
	}
	bound, waiting, unwanted, late := kinds("bound"), kinds("waiting"), kinds("unwanted"), kinds("late")
	a.Certify(t, bound)
	r := a.Replicas[0]
	removeAll(t, filepath.Join(r.Dir, storeDir, contentDir))
	upload := func(age time.Duration, all map[archive.Name][]byte) {
		s := startService(t, a, r, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(-age) } })
		defer s.stop()
		for _, b := range all {
			up := archive.SignUpload(a.Writer, a.Roster.ID(), archivetest.ContentOf(b))
			if err := s.client.PutContent(t.Context(), up, int64(len(b)), bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
		}
	}
	old := maps.Clone(bound)
	maps.Copy(old, waiting)
	maps.Copy(old, unwanted)
	upload(a.Roster.Limits.SubmissionAge.Std()+48*time.Hour, old)
	upload(a.Roster.Limits.SubmissionAge.Std()+24*time.Hour, nil) // a clean before the age
	for _, b := range old {
		wantContent(t, r, b, nil)
	}
	pending, err := openStore(t, a, r).Pending()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(pending.Put(a.Submission(time.Now(), waiting)), pending.close()); err != nil {
		t.Fatal(err)
	}
	upload(0, late) // a clean, then
	for range 2 {
		upload(0, nil)
		for _, all := range []map[archive.Name][]byte{bound, waiting, late} {
			for _, b := range all {
				wantContent(t, r, b, nil)
			}
		}
		for _, b := range unwanted {
			wantContent(t, r, b, ErrMissing)
		}
	}
}

// wantContent checks what a replica has on its disk.
func wantContent(t testing.TB, r *archivetest.Replica, want []byte, why error) {
	t.Helper()
	b, err := archivetest.ReadContent(r.Dir, archive.DigestOf(want))
	if !errors.Is(err, why) || why == nil && !bytes.Equal(b, want) {
		t.Errorf("content %.20q: %d bytes, %v, want %v", want, len(b), err, why)
	}
}
