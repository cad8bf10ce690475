package replica

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// What cannot be opened as a file at all is damage like any other: the audit
// goes on, and repairs it.
func TestAuditOddFiles(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 20))
	startService(t, a, a.Replicas[1])
	r := a.Replicas[0]
	path := filepath.Join(r.Dir, storeDir, treeFile)
	for name, damage := range map[string]func() error{
		"a link to itself": func() error { return errors.Join(os.Remove(path), os.Symlink(path, path)) },
		"empty":            func() error { return os.Truncate(path, 0) },
	} {
		must(t, damage())
		if report, st := audit(t, a, r, false); report.Damaged == 0 || st.count(EventDamage, PartTree) == 0 {
			t.Errorf("%s: found %+v\n%s", name, report, st)
		}
		if report, st := audit(t, a, r, true); !report.Sound() {
			t.Errorf("%s: repaired %+v\n%s", name, report, st)
		}
		if report, st := audit(t, a, r, false); report.Damaged > 0 {
			t.Errorf("%s: afterwards %+v\n%s", name, report, st)
		}
	}
}

// A pending buffer that is damaged while it is served takes no more Adds, shows
// in an audit, and ends the process; the next one keeps what can be read of it.
func TestServePendingDamaged(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	r := a.Replicas[0]
	s := startService(t, a, r)
	held := map[archive.Name][]byte{"x": []byte("content of a/0000")}
	if _, err := s.client.Add(t.Context(), a.Submission(time.Now(), held)); err != nil {
		t.Fatal(err)
	}
	s.stop()

	ended := make(chan error, 1)
	var log logBuffer
	c := loggingTo(serviceConfig(t, a, r), &log)
	go func() { ended <- Serve(t.Context(), c) }()
	waitFor(t, "service", func() bool { st, err := StatusServed(t.Context(), r.Dir); return err == nil && st.Note == "" })
	path := filepath.Join(r.Dir, storeDir, pendingFile)
	whole, err := os.ReadFile(path)
	must(t, err)
	must(t, overwrite(path, make([]byte, len(whole))))
	// The service's own audit may be first to find it, and end the process.
	if report, err := AuditServed(t.Context(), r.Dir, AuditOptions{}, nil); err == nil && report.Damaged != 1 {
		t.Errorf("audit: %+v", report)
	}
	client := wire.NewClient(r.Replica, a.Roster, wire.Options{Timeout: 5 * time.Second})
	defer client.Close()
	for _, n := range []archive.Name{"y", "z"} {
		held := map[archive.Name][]byte{n: []byte("content of a/0000")}
		if ack, err := client.Add(t.Context(), a.Submission(time.Now(), held)); err == nil {
			t.Errorf("acknowledged: %+v", ack)
		}
	}
	if err := <-ended; !errors.Is(err, ErrDamaged) {
		t.Errorf("served: %v", err)
	}

	must(t, overwrite(path, whole))
	flipInFile(t, path, "submissions") // the rows are out of reach
	s = startService(t, a, r, func(c *Config) { *c = loggingTo(*c, &log) })
	if !strings.Contains(log.String(), "the pending buffer was damaged") {
		t.Errorf("not told: %s", log.String())
	}
	if st, err := s.client.Status(t.Context()); err != nil || st.Pending != 1 {
		t.Errorf("%d names were saved, %v, want 1\n%s", st.Pending, err, log.String())
	}
	if _, err := s.client.Add(t.Context(), a.Submission(time.Now(), held)); err != nil {
		t.Errorf("add: %v", err)
	}
}
