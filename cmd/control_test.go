package cmd

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust/watchdog"
)

// idle is a device and a schedule that nothing happens to.
type idle struct{}

func (idle) Reset(context.Context) error     { return nil }
func (idle) Lock(context.Context) error      { return nil }
func (idle) Next(time.Time) time.Time        { return time.Time{} }
func (idle) child(context.Context) *exec.Cmd { return exec.Command("false") }

// controlled serves the control socket of a watchdog that does not run.
func controlled(t *testing.T) *host {
	t.Helper()
	h := &host{member: member{ID: 3, dir: t.TempDir()}}
	if err := os.Mkdir(h.path(runDir), 0o700); err != nil {
		t.Fatal(err)
	}
	w := watchdog.New(watchdog.Config{Schedule: idle{}, Device: idle{}, Update: idle{}.child, Service: idle{}.child})
	l, err := wire.ListenUnix(h.path(runDir), controlSocket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { h.control(ctx, l, w); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return h
}

func TestControlAnswers(t *testing.T) {
	h := controlled(t)
	h.report = &childReport{Epoch: 7, Joined: []uint32{1, 2, 3}}
	r, err := h.ask(t.Context(), doState)
	if err != nil || r.Replica != 3 || r.Watchdog != os.Getpid() || r.Phase != watchdog.PhaseStarting || r.Report.Epoch != 7 {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, err := h.ask(t.Context(), "dance"); err != nil || !strings.Contains(r.Error, "unknown request") {
		t.Errorf("got %+v, %v", r, err)
	}
	if fi, err := os.Stat(h.path(runDir, controlSocket)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", fi, err)
	}
}

func TestControlTakesNothingElse(t *testing.T) {
	h := controlled(t)
	for name, garbage := range map[string][]byte{
		"no JSON": []byte("GET / HTTP/1.1\r\n\r\n"), "too long": bytes.Repeat([]byte("x"), maxControl+1),
		"another type": []byte("[1]\n"), "nothing": {},
	} {
		conn, err := wire.DialUnix(t.Context(), h.path(runDir), controlSocket)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = conn.Write(garbage) // the other side may have gone
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		if b, _ := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("%s: answered %q", name, b)
		}
		conn.Close()
	}
	if _, err := h.ask(t.Context(), doState); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestControlOfNobody(t *testing.T) {
	m := member{ID: 1, dir: filepath.Join(t.TempDir(), strings.Repeat("long", 40))}
	if err := os.MkdirAll(m.path(runDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ask(t.Context(), doState); exitStatus(err) != exitUnavailable {
		t.Errorf("got %v", err)
	}
}

// TestReports: what an update child prints is bounded, and one that prints
// nothing has failed.
func TestReports(t *testing.T) {
	h := &host{}
	if rp := h.collect("over its time limit"); rp.Status != exitFailure || rp.Error != "over its time limit" {
		t.Errorf("of a silent child: %+v", rp)
	}
	h.updateOutput(bytes.Repeat([]byte("x"), 2*maxControl))
	if rp := h.collect("killed"); rp.Error != "killed" {
		t.Errorf("of a noisy child: %+v", rp)
	}
	h.updateOutput([]byte(encode(childReport{Epoch: 4, Advanced: true})))
	if rp := h.collect(""); rp.Epoch != 4 || !rp.Advanced || h.latest().Epoch != 4 {
		t.Errorf("got %+v", rp)
	}
}

func (h *host) updateOutput(b []byte) {
	h.output = new(bounded)
	_, _ = h.output.Write(b)
}
