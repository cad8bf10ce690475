package replica

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/content"
)

func TestParseSubset(t *testing.T) {
	for _, s := range []string{"", "1/1", "3/7"} {
		if got, err := ParseSubset(s); err != nil || got.String() != s {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"0/3", "4/3", "1", "/", "1/", "a/b", "1/2/3", "-1/2", "1/99999999999"} {
		if got, err := ParseSubset(s); err == nil {
			t.Errorf("%q: got %v", s, got)
		}
	}
}

// The parts of an audit are all of it, each content in one: damage shows in the
// part that it is in, under one of its names.
func TestAuditSubset(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	all := files("a", 40)
	all["twice"] = all["a/0007"]
	a.Certify(t, all)
	r := a.Replicas[0]
	d := archive.DigestOf(all["a/0007"])
	flipByte(t, archivetest.ContentPath(r.Dir, d), 0)
	var contents, damaged uint64
	const parts = 5
	for n := range uint64(parts) {
		st := new(story)
		report, err := Audit(t.Context(), serviceConfig(t, a, r), AuditOptions{Subset: Subset{n + 1, parts}}, st.emit)
		if err != nil {
			t.Fatal(err)
		}
		if report.Names != 41 || report.Subset != fmt.Sprintf("%d/5", n+1) || report.Contents == 40 {
			t.Errorf("got %+v", report)
		}
		if has := (Subset{n + 1, parts}).Has(d); report.Sound() == has || has && !strings.Contains(st.String(), `content of "a/0007"`) {
			t.Errorf("got %+v\n%s", report, st)
		}
		contents, damaged = contents+report.Contents, damaged+report.Damaged
	}
	if contents != 40 || damaged != 1 {
		t.Errorf("%d contents, %d damaged in all parts", contents, damaged)
	}
}

// An audit that was interrupted goes on where it was, and still reads
// everything; a mark that is wrong changes nothing but the order.
func TestAuditResumes(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	a.Certify(t, files("a", 1))
	store := openStore(t, a, a.Replicas[0])
	var items []content.Item
	all := make(map[archive.Digest]bool)
	for i := range 20 {
		b := bytes.Repeat([]byte{byte(i)}, content.Small+1)
		d := archive.DigestOf(b)
		if err := store.PutContent(t.Context(), d, int64(len(b)), bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		_, place, err := store.contents.Locate(d)
		if err != nil {
			t.Fatal(err)
		}
		all[d] = true
		items = append(items, content.Item{Digest: d, Place: place})
	}
	newAudit := func() *auditor {
		x := newAuditor(serviceConfig(t, a, a.Replicas[0]), store, nil, AuditOptions{}, nil)
		x.resume, x.listed.items = true, items
		return x
	}
	ordered := newAudit().listed.inOrder()
	ctx, cancel := context.WithCancel(t.Context())
	x := newAudit()
	x.pace = &pace{0.999} // one at a time
	x.emit = nil
	m := x.mark()
	m.passed(ordered[11].Place)
	m.save()
	cancel()
	if err := x.checkListed(ctx); err == nil {
		t.Error("no error of an interrupted audit")
	}
	path := filepath.Join(store.dir, markFile)
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	got := newAudit().mark().first(ordered)
	if len(got) != 20 || got[0] != ordered[11] || got[19] != ordered[10] {
		t.Errorf("begins with %v", got[0])
	}
	for _, text := range []string{"", "x", "ffffffffffffffff\n", "0000000000000000\n", strings.Repeat("f", 99)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		seen := make(map[archive.Digest]bool)
		for _, it := range newAudit().mark().first(ordered) {
			seen[it.Digest] = true
		}
		x := newAudit()
		if err := x.checkListed(t.Context()); err != nil || len(seen) != len(all) || x.report.Contents != 20 {
			t.Errorf("%q: %d of %d contents, %v", text, len(seen), len(all), err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%q: the mark is kept after the end", text)
		}
	}
}

// BenchmarkRepairContents measures how fast a replica that has lost all its
// small contents gets them back over loopback.
func BenchmarkRepairContents(b *testing.B) {
	a := archivetest.NewRoster(b, 4)
	const n = 4000
	all := make(map[archive.Name][]byte)
	for i := range n {
		all[archive.Name(fmt.Sprintf("f/%d", i))] = bytes.Repeat([]byte(fmt.Sprintf("%07d ", i)), 128)
	}
	a.Certify(b, all)
	r := a.Replicas[0]
	startService(b, a, a.Replicas[1])
	startService(b, a, a.Replicas[2])
	for b.Loop() {
		b.StopTimer()
		removeAll(b, filepath.Join(r.Dir, storeDir, contentDir))
		removeAll(b, filepath.Dir(archivetest.PackPath(r.Dir)))
		b.StartTimer()
		report, st := audit(b, a, r, true)
		if report.Repaired != n {
			b.Fatalf("got %+v\n%s", report, st)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "contents/s")
}
