package archivetest

import (
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
)

// An absent replica comes back in the next epoch, and every certificate holds.
func TestCertify(t *testing.T) {
	a := NewRoster(t, 4)
	a.Certify(t, map[archive.Name][]byte{"a": []byte("1")}, 4)
	rec := a.Certify(t, map[archive.Name][]byte{"b": []byte("2"), "c": nil})
	if rec.Epoch != 2 || rec.Names != 3 || len(rec.Joined) != 4 {
		t.Fatalf("got %+v", rec)
	}
	for _, r := range a.Replicas {
		if st := r.Statement(t); st.Counter != 2 || archive.Digest(st.Slots.Head) != rec.Head() {
			t.Errorf("replica %d: %+v", r.ID, st)
		}
	}
}
