package cmd

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive/archivetest"
)

// shown is one command of the README and what it prints there.
type shown struct{ command, want string }

// firstSession returns the commands of the README's first session. One that is empty
// stands where the reader presses Ctrl-C.
func firstSession(t *testing.T) (all []shown) {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "\n## A first session\n")
	text, _, _ = strings.Cut(text, "\n## ")
	open := false
	for line := range strings.SplitSeq(text, "\n") {
		code, indented := strings.CutPrefix(line, "    ")
		command, ok := strings.CutPrefix(code, "$ ")
		switch {
		case indented && ok:
			all, open = append(all, shown{command: command}), true
		case indented && open:
			all[len(all)-1].want += code + "\n"
		case strings.Contains(line, "Stop the server with Ctrl-C"):
			all, open = append(all, shown{}), false
		default:
			open = false
		}
	}
	return all
}

// What differs from one run to the next: times, keys, directories and ports, and with
// them the width of columns.
var differs = []struct {
	pattern *regexp.Regexp
	as      string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "DATE"},
	{regexp.MustCompile(`\d\d:\d\d:\d\d`), "TIME"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDRESS"},
	{regexp.MustCompile(`archive [0-9a-f]{64}`), "archive ID"},
	{regexp.MustCompile(`\b[0-9a-f]{8}\b`), "HEAD"},
	{regexp.MustCompile(`root [0-9a-f]{12}`), "root ROOT"}, // of entries that name the writer's key
	{regexp.MustCompile(`signed by \d \d \d`), "signed by a quorum"},
	{regexp.MustCompile(` +`), " "},
}

func timeless(s, home string) string {
	s = strings.ReplaceAll(s, home, "/home/me")
	for _, d := range differs {
		s = d.pattern.ReplaceAllString(s, d.as)
	}
	return s
}

// TestReadme runs the README's first session as it stands there, but for the port.
func TestReadme(t *testing.T) {
	t.Parallel()
	session := firstSession(t)
	if len(session) < 12 || session[0].command != "bonafide serve" {
		t.Fatalf("found %v", session)
	}
	bin, home := t.TempDir(), t.TempDir()
	if err := archivetest.Build(bin); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"a.txt": "bound once, for ever\n", "b.txt": "something else\n"} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shell := func(line string) *exec.Cmd {
		cmd := exec.Command("sh", "-c", "exec "+line)
		cmd.Dir, cmd.Env = home, []string{"HOME=" + home, "PATH=" + bin + ":" + os.Getenv("PATH"), "TZ=UTC"}
		return cmd
	}
	awaitFreshMinute(t)
	serve, said := startServer(t, shell("bonafide serve --listen "+net.JoinHostPort(trialHost, strconv.Itoa(ports.take()))))
	if got, want := timeless(said, home), timeless(session[0].want, home); got != want {
		t.Fatalf("serve says\n%s\nwant\n%s", got, want)
	}
	for _, s := range session[1:] {
		if s.command == "" {
			if err := serve.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			_ = serve.Wait()
			continue
		}
		out, _ := shell(s.command).CombinedOutput() // the statuses are in other sessions
		if got, want := timeless(string(out), home), timeless(s.want, home); got != want {
			t.Fatalf("%s says\n%s\nwant\n%s", s.command, got, want)
		}
	}
}

// awaitFreshMinute waits until no update phase of a trial, which come every minute, can
// come into the session.
func awaitFreshMinute(t *testing.T) {
	t.Helper()
	now := time.Now()
	next := now.Truncate(time.Minute).Add(time.Minute)
	if next.Sub(now) > 40*time.Second {
		return
	}
	select {
	case <-time.After(next.Sub(now)):
	case <-t.Context().Done():
	}
}

// startServer starts a server and returns what it says until it is ready.
func startServer(t *testing.T, cmd *exec.Cmd) (*exec.Cmd, string) {
	t.Helper()
	out := &notedWriter{ready: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}
	})
	select {
	case <-out.ready:
	case <-time.After(scriptLimit):
	}
	return cmd, out.String()
}

// notedWriter keeps what is written, until a line ends with ready.
type notedWriter struct {
	mu    sync.Mutex
	text  bytes.Buffer
	done  bool
	ready chan struct{}
}

func (w *notedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done {
		w.text.Write(b)
		if w.done = bytes.HasSuffix(w.text.Bytes(), []byte(" ready\n")); w.done {
			close(w.ready)
		}
	}
	return len(b), nil
}

func (w *notedWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}
