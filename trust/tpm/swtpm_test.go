package tpm_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

// TestMain is also the parent that TestDiesWithParent kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BONAFIDE_TEST_SWTPM_PARENT"); dir != "" {
		s, err := tpm.StartSwtpm(context.Background(), filepath.Join(dir, "mas"), filepath.Join(dir, "run"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(s.Pid())
		select {}
	}
	os.Exit(m.Run())
}

func TestDiesWithParent(t *testing.T) {
	needSwtpm(t)
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), "BONAFIDE_TEST_SWTPM_PARENT="+t.TempDir())
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	must(t, err)
	must(t, parent.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, parent.Process.Kill())
	_ = parent.Wait()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if n != 1 || err != nil {
		t.Errorf("swtpm outlives its parent (%v)", err)
	}
}

// The state outlives the process, and a new process is a device reset.
func TestSwtpmAgain(t *testing.T) {
	s, dir := startSwtpm(t)
	id, _, err := tpm.Provision(t.Context(), s.Target(), tpm.Setup{}, rand.Reader)
	must(t, err)
	d := trusttest.Device{Identity: id}
	m := open(t, s.Target())
	must(t, m.Store(t.Context(), trusttest.Slots(1)))
	must(t, m.Lock(t.Context()))
	before := state(t, d, m)
	must(t, s.Stop())
	again, err := tpm.StartSwtpm(t.Context(), filepath.Join(dir, "mas"), filepath.Join(dir, "run"))
	must(t, err)
	defer again.Stop()
	after := state(t, d, m)
	if after.Slots != before.Slots || after.Mode != trust.ModeUpdate || after.Counts == before.Counts {
		t.Errorf("got %+v after %+v", after, before)
	}
}

// A killed swtpm comes back with the next power cycle.
func TestSwtpmKilled(t *testing.T) {
	s, d := provision(t)
	m := d.Open(t)
	must(t, m.Store(t.Context(), trusttest.Slots(1)))
	must(t, m.Lock(t.Context()))
	must(t, unix.Kill(s.Pid(), unix.SIGKILL))
	cycle(t, s)
	if got := state(t, d, m); got.Slots != trusttest.Slots(1) || got.Mode != trust.ModeUpdate {
		t.Errorf("got %+v, want the stored slots in update mode", got)
	}
}

// A client that holds the socket can make others wait, but not stop a power
// cycle.
func TestSocketHeld(t *testing.T) {
	s, d := provision(t)
	m := d.Open(t)
	conn, err := net.Dial("unix", s.Target().Socket)
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte{0x80}) // the beginning of a command
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.Lookup(ctx, trust.Nonce{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("look up: got %v, want deadline exceeded", err)
	}
	cycle(t, s)
	if got := state(t, d, m).Mode; got != trust.ModeUpdate {
		t.Errorf("got %v mode, want update", got)
	}
}

func TestLongPath(t *testing.T) {
	needSwtpm(t)
	dir := filepath.Join(t.TempDir(), "with, comma", strings.Repeat("long", 40))
	s, err := tpm.StartSwtpm(t.Context(), filepath.Join(dir, "mas"), filepath.Join(dir, "run"))
	must(t, err)
	defer s.Stop()
	_, _, err = tpm.Provision(t.Context(), s.Target(), tpm.Setup{}, rand.Reader)
	must(t, err)
	open(t, s.Target())
	cycle(t, s)
}

func TestProvisionTwice(t *testing.T) {
	s, d := provision(t)
	if _, _, err := tpm.Provision(t.Context(), s.Target(), tpm.Setup{}, rand.Reader); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want ErrExist", err)
	}
	state(t, d, d.Open(t))
}

func TestOpenNothing(t *testing.T) {
	s, dir := startSwtpm(t)
	if _, err := tpm.Open(t.Context(), s.Target()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty tpm: got %v, want ErrNotExist", err)
	}
	for _, target := range []tpm.Target{
		{}, {Device: "a", Socket: "b"}, {Device: filepath.Join(dir, "none")}, {Device: dir},
		{Socket: filepath.Join(dir, "none")}, {Socket: dir + "/none/tpm.sock"},
	} {
		if _, err := tpm.Open(t.Context(), target); err == nil {
			t.Errorf("opened %+v", target)
		}
	}
}

func TestClosed(t *testing.T) {
	_, d := provision(t)
	m := d.Open(t)
	must(t, m.Close())
	must(t, m.Close())
	if err := m.Lock(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

// TestTools reads the device with the tools that its users have.
func TestTools(t *testing.T) {
	s, d := provision(t)
	needTools(t)
	m := d.Open(t)
	must(t, m.Store(t.Context(), trusttest.Slots(1)))
	must(t, m.Lock(t.Context()))
	if got := tool(t, s, "tpm2_nvread", "0x0181B0F1"); got != string(trusttest.Slots(1).Bytes()) {
		t.Errorf("tpm2_nvread shows %x", got)
	}
	if got := tool(t, s, "tpm2_nvreadpublic", "0x0181B0F1"); !strings.Contains(got, "writelocked") {
		t.Errorf("tpm2_nvreadpublic does not show the lock: %s", got)
	}
	if got := state(t, d, m); got.Slots != trusttest.Slots(1) || got.Mode != trust.ModeService {
		t.Errorf("got %+v after the tools", got)
	}
}

// needTools skips where the tools of the TPM software stack are not installed.
func needTools(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("tpm2_nvread"); err == nil {
		return
	}
	if os.Getenv("BONAFIDE_REQUIRE_SWTPM") == "1" {
		t.Fatal("tpm2_nvread is not installed, and BONAFIDE_REQUIRE_SWTPM=1")
	}
	t.Skip("tpm2_nvread is not installed (apt install tpm2-tools)")
}

func tool(t *testing.T, s *tpm.Swtpm, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = filepath.Dir(s.Target().Socket)
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path=tpm.sock")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	must(t, err)
	return string(out)
}

// Killing the swtpm in the middle of stores loses none that was acknowledged,
// and never tears the slots.
func TestSwtpmKilledWhileStoring(t *testing.T) {
	s, d := provision(t)
	m := d.Open(t)
	i := byte(0)
	for round := range 12 {
		left := round + 1 // stores before the kill
		acked := make(chan byte)
		go func(i byte) {
			defer close(acked)
			for ; m.Store(t.Context(), trusttest.Slots(i)) == nil; i++ {
				acked <- i
			}
		}(i + 1)
		for last := range acked {
			i = last
			if left--; left == 0 {
				must(t, unix.Kill(s.Pid(), unix.SIGKILL))
			}
		}
		cycle(t, s)
		if got := state(t, d, m).Slots; got != trusttest.Slots(i) && got != trusttest.Slots(i+1) {
			t.Fatalf("got %+v, want those of store %d or %d", got, i, i+1)
		}
	}
}
