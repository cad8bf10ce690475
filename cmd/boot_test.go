package cmd

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/watchdog"
)

func TestUpdateLockLocks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	if got := Execute([]string{"init", "replica", "--dir", dir, "--id", "1", "--address", "127.0.0.1:9"}, nil, io.Discard, io.Discard); got != 0 {
		t.Fatalf("init replica: status %d", got)
	}
	m, err := openMember(dir)
	if err != nil {
		t.Fatal(err)
	}
	mas, err := m.openMAS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer mas.Close()
	if err := mas.Store(t.Context(), trust.Slots{Epoch: 1}); err != nil {
		t.Fatalf("before the lock: %v", err)
	}
	for range 2 {
		if got := Execute([]string{"update", "--lock", "--dir", dir}, nil, io.Discard, io.Discard); got != 0 {
			t.Fatalf("update --lock: status %d", got)
		}
		if err := mas.Store(t.Context(), trust.Slots{Epoch: 2}); !errors.Is(err, trust.ErrMode) {
			t.Fatalf("store after the lock: %v", err)
		}
	}
}

// systemd hears that a replica is ready only when its service child runs, which
// is after the lock.
func TestNotify(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	h := new(host)
	h.changed(watchdog.State{Phase: watchdog.PhaseUpdate, Child: 1})
	h.changed(watchdog.State{Phase: watchdog.PhaseService})
	notify("WATCHDOG=1")
	h.changed(watchdog.State{Phase: watchdog.PhaseService, Child: 2})
	l.SetReadDeadline(time.Now().Add(30 * time.Second))
	for _, want := range []string{"WATCHDOG=1", "READY=1"} {
		b := make([]byte, 64)
		n, err := l.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("heard %q, %v, want %q", b[:n], err, want)
		}
	}
}
