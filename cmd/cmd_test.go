package cmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/replica"
)

func TestExitStatus(t *testing.T) {
	liar := &client.NoQuorumError{Need: 2, Replicas: map[uint32]error{1: archive.ErrIntegrity, 2: client.ErrUpdating}}
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitDone},
		{errors.New("disk"), exitFailure},
		{usagef("no"), exitUsage},
		{archive.Name("/").Check(), exitUsage},
		{archive.ErrRoster, exitUsage},
		{allOf([]error{nil, liar}), exitPartial},
		{&client.AbsentError{}, exitAbsent},
		{archive.ErrIntegrity, exitIntegrity},
		{archive.ErrFormat, exitIntegrity},
		{liar, exitUnavailable},
		{replica.ErrTooFew, exitUnavailable},
		{client.ErrStale, exitStale},
		{&client.ConflictError{}, exitConflict},
		{client.ErrDenied, exitDenied},
		{client.ErrQuota, exitDenied},
		{archive.ErrNotWriter, exitDenied},
		{withHint(withStatus(exitLocked, errors.New("x")), "y"), exitLocked},
	} {
		if got := exitStatus(fmt.Errorf("wrapped: %w", c.err)); c.err != nil && got != c.want {
			t.Errorf("%v: exit status %d, want %d", c.err, got, c.want)
		}
	}
}

func TestAllOf(t *testing.T) {
	a, b := withStatus(exitUnavailable, errors.New("a")), withStatus(exitIntegrity, errors.New("b"))
	for _, c := range []struct {
		errs []error
		want int
	}{
		{[]error{nil, nil}, exitDone},
		{[]error{a}, exitUnavailable},
		{[]error{a, a}, exitUnavailable},
		{[]error{a, b}, exitFailure},
		{[]error{a, nil, b}, exitPartial},
	} {
		if got := exitStatus(allOf(c.errs)); got != c.want {
			t.Errorf("%v: exit status %d, want %d", c.errs, got, c.want)
		}
	}
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"häuser/a b.txt": "häuser/a b.txt",
		"a\x1b[2Jb":      `a\x1b[2Jb`,
		"a\u202eb":       `a\u202eb`,
		"a\nb\u0085c":    `a\nb\u0085c`,
		"a\xffb":         `a\xffb`,
		"\uFFFD":         "\uFFFD",
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTerminalTakesTextOnly(t *testing.T) {
	var out bytes.Buffer
	if _, err := (textOnly{&out}).Write([]byte("täxt\n\tmore\r\n")); err != nil {
		t.Errorf("text: %v", err)
	}
	out.Reset()
	for _, steering := range []string{"\x1b[2J", "\x00", "a\u009bb", "\x7f"} {
		if _, err := (textOnly{&out}).Write([]byte(steering)); exitStatus(err) != exitUsage || out.Len() > 0 {
			t.Errorf("%q: %v, wrote %q", steering, err, out.String())
		}
	}
}

func TestPanicsAreNotShown(t *testing.T) {
	var out, errs bytes.Buffer
	a := &app{printer: newPrinter(&out, &errs)}
	status := func() (status int) {
		defer func() { status = a.fail(a.panicked(recover())) }()
		panic("tree: bad path")
	}()
	if status != exitFailure || strings.Contains(errs.String(), "tree") || !strings.Contains(errs.String(), "bonafide: hint: ") {
		t.Errorf("status %d, said %q", status, errs.String())
	}
}

// TestManual makes the pages anew and compares.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	if err := WriteManual(dir); err != nil {
		t.Fatal(err)
	}
	want, got := pages(t, dir), pages(t, "../man")
	for name, page := range want {
		if !bytes.Equal(got[name], page) {
			t.Errorf("man/%s is not current: go generate ./man", name)
		}
	}
	for name := range got {
		if want[name] == nil {
			t.Errorf("man/%s belongs to no command: go generate ./man", name)
		}
	}
}

func pages(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.[157]"))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]byte)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(f, ".1") && !bytes.Contains(b, []byte("130  interrupted")) {
			t.Errorf("%s lacks the exit statuses", f)
		}
		all[filepath.Base(f)] = b
	}
	return all
}

// TestTrialIsMadeWhole cuts the making of a trial off wherever the disk changes
// and expects the next start to end with one whole trial.
func TestTrialIsMadeWhole(t *testing.T) {
	w := trialWish{every: "@every 1m", listen: "127.0.0.1:7400"}
	parts := []string{"replica-1", "replica-2", "replica-3", "replica-4", rosterFile}
	for moved := -2; moved <= len(parts); moved++ {
		t.Run(fmt.Sprintf("%d", moved), func(t *testing.T) {
			tr := trialAt(t.TempDir())
			cut(t, tr, w, moved, parts)
			if exists(tr.path(rosterFile)) && moved < len(parts) {
				t.Fatal("a trial in part shows its roster")
			}
			checkTrial(t, tr, w)
			checkTrial(t, tr, w)
		})
	}
}

// cut leaves a trial as it is when so many parts have been moved: -2 is in the
// midst of making it, -1 just made.
func cut(t *testing.T, tr trial, w trialWish, moved int, parts []string) {
	t.Helper()
	if moved == -2 {
		if err := os.MkdirAll(tr.path(trialMaking, "replica-1", masDir), 0o700); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := tr.make(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	made := trial{tr.path(trialMade), ""}
	if moved >= 0 {
		if err := tr.installConfig(made); err != nil {
			t.Fatal(err)
		}
	}
	for _, part := range parts[:max(0, moved)] {
		if err := os.Rename(made.path(part), tr.path(part)); err != nil {
			t.Fatal(err)
		}
	}
}

func checkTrial(t *testing.T, tr trial, w trialWish) {
	t.Helper()
	r, err := tr.open(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	members, err := membersIn(tr.dir)
	if err != nil || len(members) != r.N() {
		t.Fatalf("%d members, %v", len(members), err)
	}
	for _, m := range members {
		if _, err := m.roster(); err != nil {
			t.Error(err)
		}
	}
	settings, err := parseConfig(filepath.Join(tr.configDir(), configFile))
	if err != nil {
		t.Fatal(err)
	}
	key, err := loadKey(settings["writer-key"].(string))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Admit(r.ID(), archive.KeyIDOf(publicOf(key))); err != nil {
		t.Error(err)
	}
	for _, left := range []string{trialMaking, trialMade} {
		if exists(tr.path(left)) {
			t.Errorf("%s is left over", left)
		}
	}
}

func TestTrialKeepsAForeignConfiguration(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_DATA_HOME", filepath.Join(home, "data"))
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
	mine := filepath.Join(configHome(), configFile)
	if err := os.MkdirAll(configHome(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mine, []byte("roster: elsewhere.json\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tr := trialAt(dataHome())
	if err := os.MkdirAll(tr.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	checkTrial(t, tr, trialWish{listen: "127.0.0.1:7400"})
	if b, _ := os.ReadFile(mine); string(b) != "roster: elsewhere.json\n" {
		t.Errorf("configuration is now %q", b)
	}
	if got := tr.configDir(); got != tr.dir {
		t.Errorf("the trial's configuration is in %s", got)
	}
}

func TestTrialHasAHome(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_DATA_HOME", filepath.Join(home, "data"))
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
	tr := trialAt(dataHome())
	for range 2 { // the second time in place of a trial that was removed
		if err := os.MkdirAll(tr.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		checkTrial(t, tr, trialWish{listen: "127.0.0.1:7400"})
		if got := tr.configDir(); got != configHome() {
			t.Errorf("the trial's configuration is in %s", got)
		}
		if err := os.RemoveAll(tr.dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTrialLeavesStrangersAlone(t *testing.T) {
	tr := trialAt(t.TempDir())
	if err := os.Mkdir(tr.path("replica-9"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.open(t.Context(), trialWish{}); exitStatus(err) != exitUsage {
		t.Errorf("opened with %v", err)
	}
}

func TestTrialKeepsWhatItWasMadeWith(t *testing.T) {
	tr := trialAt(t.TempDir())
	checkTrial(t, tr, trialWish{listen: "127.0.0.1:7400"})
	for _, w := range []trialWish{{replicas: 7}, {every: "@every 2m"}, {mas: masSwtpm}, {listen: "127.0.0.1:7500"}} {
		if _, err := tr.open(t.Context(), w); exitStatus(err) != exitUsage {
			t.Errorf("%+v: %v", w, err)
		}
	}
}

func TestPeriod(t *testing.T) {
	for s, want := range map[archive.Schedule]time.Duration{"@every 10s": 10 * time.Second, "*/5 * * * *": 5 * time.Minute, "0 */6 * * *": 6 * time.Hour} {
		if got := period(s); got != want {
			t.Errorf("period(%s) = %s, want %s", s, got, want)
		}
	}
}

func TestLogFileIsBounded(t *testing.T) {
	l := &logFile{name: filepath.Join(t.TempDir(), "x.log")}
	defer l.Close()
	line := bytes.Repeat([]byte("x"), 1<<20)
	for range 10 {
		if n, err := l.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	for _, name := range []string{l.name, l.name + ".old"} {
		fi, err := os.Stat(name)
		if err != nil || fi.Size() > maxLog {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
}

func TestInterruptStopsWaitingForInput(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := spool(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("spool returned %v", err)
	}
}
