package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	member "github.com/bonafide-archive/bonafide/archive/replica"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// real is an archive whose replicas serve over TCP, and a client of it.
type real struct {
	*archivetest.Archive
	client *Client
	stop   map[uint32]func()
}

func newReal(t *testing.T, files map[archive.Name][]byte) *real {
	t.Helper()
	r := &real{Archive: archivetest.NewRoster(t, 4), stop: make(map[uint32]func())}
	r.Certify(t, files)
	c, err := New(Config{Roster: r.Roster, Key: r.Writer, StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	r.client = c
	r.start(t)
	return r
}

// start serves all replicas, and returns once each answers.
func (r *real) start(t *testing.T) {
	t.Helper()
	for _, m := range r.Replicas {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			done <- member.Serve(ctx, member.Config{Dir: m.Dir, ID: m.ID, Roster: r.Roster, MAS: m.MAS, ServiceKey: m.ServiceKey, Share: 1})
		}()
		r.stop[m.ID] = func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("replica %d: %v", m.ID, err)
			}
			delete(r.stop, m.ID)
		}
	}
	t.Cleanup(r.stopAll)
	for _, m := range r.client.replicas {
		err := retry(t.Context(), func(ctx context.Context) error { _, err := r.client.attested(ctx, m); return err })
		if err != nil {
			t.Fatalf("replica %d: %v", m.ID, err)
		}
	}
}

func (r *real) stopAll() {
	for _, stop := range maps.Clone(r.stop) {
		stop()
	}
}

// freeze makes replicas as SIGSTOP would: connections are made, and nothing
// ever comes over them.
func (r *real) freeze(t *testing.T, ids ...uint32) {
	t.Helper()
	for _, id := range ids {
		r.stop[id]()
		l, err := net.Listen("tcp", r.Replicas[id-1].Address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
}

func (r *real) one(t *testing.T, n archive.Name) Result {
	t.Helper()
	res, err := r.client.Get(t.Context(), n)
	if err != nil {
		t.Fatalf("Get(%s): %v", n, err)
	}
	return res[0]
}

func bytesItem(n archive.Name, b []byte) Item {
	return Item{Name: n, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

var realFiles = map[archive.Name][]byte{"docs/a": []byte("alpha"), "docs/b": []byte("beta"), "docs/empty": {}, "big": megabyte}

func TestRealReads(t *testing.T) {
	r := newReal(t, realFiles)
	for n, want := range realFiles {
		res := r.one(t, n)
		if res.Err != nil || res.Overdue || len(res.Warnings) != 0 {
			t.Fatalf("%s: %v, warnings %q", n, res.Err, res.Warnings)
		}
		if _, _, err := res.Receipt.Verify(r.Roster); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		path := filepath.Join(t.TempDir(), "out")
		if err := r.client.FetchFile(t.Context(), res.Entry.Content, path); err != nil {
			t.Fatalf("%s: %v", n, err)
		}
		if got, _ := os.ReadFile(path); !bytes.Equal(got, want) {
			t.Errorf("%s: other bytes", n)
		}
	}
	var listed []archive.Name
	_, err := r.client.List(t.Context(), "", func(n archive.Name, _ archive.Entry) error { listed = append(listed, n); return nil })
	if want := slices.Sorted(maps.Keys(realFiles)); err != nil || !slices.Equal(listed, want) {
		t.Errorf("ls: %v, %v", listed, err)
	}
	for _, st := range r.client.Status(t.Context()) {
		if st.Err != nil || st.AttestErr != nil || st.Verified.Record.Epoch != 1 || st.Status.Names != 4 {
			t.Errorf("status of %d: %+v", st.ID, st)
		}
	}
}

func TestRealWithTwoFrozen(t *testing.T) {
	r := newReal(t, realFiles)
	r.freeze(t, 1, 3)
	fresh, err := New(Config{Roster: r.Roster, Key: r.Writer})
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	within(t, time.Second, func() {
		res, err := fresh.Get(t.Context(), "docs/a", "nobody")
		var absent *AbsentError
		if err != nil || res[0].Err != nil || !errors.As(res[1].Err, &absent) {
			t.Fatalf("get: %v, %+v", err, res)
		}
		var out bytes.Buffer
		if err := fresh.Fetch(t.Context(), res[0].Entry.Content, &out); err != nil || out.String() != "alpha" {
			t.Errorf("fetch: %q, %v", out.String(), err)
		}
	})
}

func TestRealAddAndWait(t *testing.T) {
	r := newReal(t, realFiles)
	files := map[archive.Name][]byte{"new/x": []byte("x"), "new/y": append(bytes.Clone(megabyte), 'y')}
	items := []Item{bytesItem("new/x", files["new/x"]), bytesItem("new/y", files["new/y"])}
	var res AddResult
	for range 2 {
		var err error
		if res, err = r.client.Add(t.Context(), items); err != nil || res.Status != wire.AckPending || len(res.Failed) != 0 {
			t.Fatalf("add: %+v, %v", res, err)
		}
	}
	var absent *AbsentError
	if got := r.one(t, "new/x"); !errors.As(got.Err, &absent) || !absent.Pending {
		t.Errorf("before the phase: %v", got.Err)
	}
	r.stopAll()
	r.Certify(t, files)
	r.start(t)
	results, err := r.client.Wait(t.Context(), res.Bindings)
	if err != nil || results[0].Record.Epoch != 2 || results[1].Entry.Size != uint64(len(files["new/y"])) {
		t.Fatalf("wait: %+v, %v", results, err)
	}
	if res, err = r.client.Add(t.Context(), items); err != nil || res.Status != wire.AckBound {
		t.Errorf("once bound: %+v, %v", res, err)
	}
	r.conflicts(t)
}

// conflicts adds names of which some are bound to other content.
func (r *real) conflicts(t *testing.T) {
	t.Helper()
	var items []Item
	for i := range 150 {
		items = append(items, bytesItem(archive.Name(fmt.Sprintf("more/%d", i)), []byte("m")))
	}
	items = append(items, bytesItem("new/x", []byte("another")), bytesItem("docs/a", []byte("alpha")))
	res, err := r.client.Add(t.Context(), items)
	var c *ConflictError
	if !errors.As(err, &c) || c.Name != "new/x" || c.Bound.Digest != archive.DigestOf([]byte("x")) || c.Record.Epoch != 2 {
		t.Errorf("conflict: %v", err)
	}
	if len(res.Bindings) != 151 || len(res.Conflicts) != 1 {
		t.Errorf("%d bindings, %d conflicts", len(res.Bindings), len(res.Conflicts))
	}
}

func TestRealStranger(t *testing.T) {
	r := newReal(t, realFiles)
	c, err := New(Config{Roster: r.Roster, Key: archivetest.NewRoster(t, 4).Writer})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Add(t.Context(), []Item{bytesItem("x", []byte("x"))})
	wantErr(t, err, ErrDenied)
}
