package cmd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/client"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", sideBySide)
	testscript.Main(m, map[string]func(){
		"bonafide": func() { os.Exit(Execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// sideBySide is how many scripts run at a time: they mostly wait, for schedules and
// for what does not answer.
const sideBySide = "5"

// TestScript runs the shell sessions in testdata/script, each with real
// processes.
func TestScript(t *testing.T) {
	bin := t.TempDir()
	if err := archivetest.Build(bin); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Deadline:            time.Now().Add(scriptsLimit),
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup:               func(env *testscript.Env) error { return setupScript(env, bin) },
		Condition:           scriptCondition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await": await, "status": expectStatus, "flip": flipByte, "pid": pidOf, "signal": signalPid, "field": field, "interrupt": interrupt,
			"eventually": eventually, "appears": appears, "keep": keepState, "rollback": rollBackState,
		},
	})
}

// setupScript gives each script ports, a home and a schedule of its own, and the
// program in bin, if there is one.
func setupScript(env *testscript.Env, bin string) error {
	port := ports.take()
	env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
	for name, v := range map[string]string{
		"HOME": env.WorkDir, "XDG_CONFIG_HOME": filepath.Join(env.WorkDir, "config"),
		"XDG_DATA_HOME": filepath.Join(env.WorkDir, "data"), "XDG_STATE_HOME": filepath.Join(env.WorkDir, "state"),
		"ADDR": net.JoinHostPort(trialHost, strconv.Itoa(port)), "SELDOM": seldom, "TZ": "UTC", "ESC": "\x1b[2J",
	} {
		env.Setenv(name, v)
	}
	for i := 1; i <= 4; i++ {
		env.Setenv(fmt.Sprintf("ADDR%d", i), net.JoinHostPort(trialHost, strconv.Itoa(port+2*i-2)))
	}
	return nil
}

// ports hands out blocks of ports of this package's range (archivetest.Ports).
var ports = &portBlocks{next: firstPort + portBlock*rand.IntN(100)}

const (
	portBlock           = 20
	firstPort, lastPort = 25_000, 27_480 // of blocks
)

type portBlocks struct {
	mu   sync.Mutex
	next int
}

func (b *portBlocks) take() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		at := b.next
		b.next += portBlock
		if b.next > lastPort {
			b.next = firstPort
		}
		if portsFree(trialHost, at, portBlock) {
			return at
		}
	}
}

// needs are the conditions of scripts: the programs that must be here, and the
// variable that says that they are.
var needs = map[string]struct {
	tools    []string
	required string
}{
	"swtpm":  {[]string{"swtpm"}, "BONAFIDE_REQUIRE_SWTPM"},
	"tools":  {[]string{"swtpm", "tpm2_clear"}, "BONAFIDE_REQUIRE_SWTPM"},
	"maker":  {[]string{"swtpm", "swtpm_setup", "swtpm_localca", "certtool"}, "BONAFIDE_REQUIRE_SWTPM"}, // a maker of TPMs, with its CA
	"restic": {[]string{"restic"}, "BONAFIDE_REQUIRE_GUARDED"},
	"borg":   {[]string{"borg"}, "BONAFIDE_REQUIRE_GUARDED"},
	"git":    {[]string{"git"}, "BONAFIDE_REQUIRE_GUARDED"},
}

func scriptCondition(cond string) (bool, error) {
	need, known := needs[cond]
	if !known {
		return false, fmt.Errorf("unknown condition %q", cond)
	}
	for _, tool := range need.tools {
		_, err := exec.LookPath(tool)
		if err != nil && os.Getenv(need.required) != "" {
			return false, fmt.Errorf("%s must be here: %w", tool, err)
		}
		if err != nil {
			return false, nil
		}
	}
	return true, nil
}

// scriptsLimit is how long all scripts may take together; what hangs is killed
// then.
const scriptsLimit = 8 * time.Minute

// scriptLimit is how long a script waits for anything.
const scriptLimit = 2 * time.Minute

// await EPOCH N CONFIG waits until N replicas attest that epoch or a later one.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: await EPOCH REPLICAS CONFIG")
	}
	epoch, _ := strconv.ParseUint(args[0], 10, 64)
	want, _ := strconv.Atoi(args[1])
	var last string
	for end := time.Now().Add(scriptLimit); time.Now().Before(end); <-time.After(50 * time.Millisecond) {
		n, out := 0, statusBy(ts, args[2])
		for _, st := range out {
			if st.Attested && uint64(st.Epoch) >= epoch && st.Phase == "service" {
				n++
			}
		}
		if n >= want {
			return
		}
		last = fmt.Sprint(out)
	}
	ts.Fatalf("no %d replicas at epoch %d: %s", want, epoch, last)
}

// statusBy asks the replicas of the archive that a configuration names.
func statusBy(ts *testscript.TestScript, config string) []replicaStatus {
	settings, err := parseConfig(ts.MkAbs(config))
	if err != nil {
		return nil // not made yet
	}
	r, err := loadRoster(settings["roster"].(string))
	if err != nil {
		return nil
	}
	c, err := client.New(client.Config{Roster: r, Timeout: 2 * time.Second})
	ts.Check(err)
	defer c.Close()
	all := statuses(context.Background(), c)
	if dir, ok := settings["dir"].(string); ok {
		locate(context.Background(), r, dir, all)
	}
	return all
}

func lookIn(path string) string {
	for _, dir := range filepath.SplitList(path) {
		if exists(filepath.Join(dir, "bonafide")) {
			return filepath.Join(dir, "bonafide")
		}
	}
	return "bonafide"
}

// status N ARGS... runs bonafide and expects that exit status.
func expectStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: status N ARGS...")
	}
	if got := statusOfRun(ts, args[1:]); strconv.Itoa(got) != args[0] {
		ts.Fatalf("bonafide %v: exit status %d, want %s", args[1:], got, args[0])
	}
}

// eventually N ARGS... runs bonafide until it ends with that exit status.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	got := -1
	for end := time.Now().Add(scriptLimit); time.Now().Before(end); <-time.After(100 * time.Millisecond) {
		if got = statusOfRun(ts, args[1:]); strconv.Itoa(got) == args[0] {
			return
		}
	}
	ts.Fatalf("bonafide %v: exit status %d, want %s", args[1:], got, args[0])
}

// appears FILE TEXT waits until a file holds a text: a program in the background
// has come so far.
func appears(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: appears FILE TEXT")
	}
	for end := time.Now().Add(scriptLimit); time.Now().Before(end); <-time.After(50 * time.Millisecond) {
		if b, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && strings.Contains(string(b), args[1]) {
			return
		}
	}
	ts.Fatalf("no %s in %s", args[1], args[0])
}

func statusOfRun(ts *testscript.TestScript, args []string) int {
	err := ts.Exec("bonafide", args...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("bonafide: %v", err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

// interrupt TEXT ARGS... runs bonafide until TEXT stands on its stderr, sends
// SIGINT and expects status 130 and, of add, a hint how to go on.
func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	c := exec.Command(lookIn(ts.Getenv("PATH")), args[1:]...)
	c.Dir, c.Args[0] = ts.MkAbs("."), "bonafide"
	for _, name := range []string{"HOME", "PATH", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "BONAFIDE_CONFIG"} {
		c.Env = append(c.Env, name+"="+ts.Getenv(name))
	}
	in, err := c.StdinPipe() // open and silent
	ts.Check(err)
	defer in.Close()
	out, err := c.StderrPipe()
	ts.Check(err)
	ts.Check(c.Start())
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), args[0]) {
			ts.Check(c.Process.Signal(os.Interrupt))
		}
	}
	_ = c.Wait()
	hinted := strings.Contains(said.String(), "hint: the same command, run again, goes on")
	if got := c.ProcessState.ExitCode(); got != exitInterrupted || hinted != slices.Contains(args[1:], "add") {
		ts.Fatalf("bonafide %v: exit status %d, want 130, hinted %t; it said:\n%s", args[1:], got, hinted, said.String())
	}
}

// flip FILE [OFFSET] changes one bit, in the middle unless OFFSET says where.
func flipByte(ts *testscript.TestScript, neg bool, args []string) {
	file := ts.MkAbs(args[0])
	matches, err := filepath.Glob(file)
	ts.Check(err)
	if len(matches) != 1 {
		ts.Fatalf("flip %s: %d files", args[0], len(matches))
	}
	b, err := os.ReadFile(matches[0])
	ts.Check(err)
	at := len(b) / 2
	if len(args) > 1 {
		at, err = strconv.Atoi(args[1])
		ts.Check(err)
	}
	ts.Check(flip(matches[0], b[at], int64(at)))
}

// pid VAR watchdog|child ID CONFIG sets VAR to a process id of a replica.
func pidOf(ts *testscript.TestScript, neg bool, args []string) {
	id, _ := strconv.Atoi(args[2])
	for _, st := range statusBy(ts, args[3]) {
		if st.ID != uint32(id) {
			continue
		}
		p := st.Child
		if args[1] == "watchdog" {
			p = st.Watchdog
		}
		if p == 0 {
			ts.Fatalf("replica %d has no %s", id, args[1])
		}
		ts.Setenv(args[0], strconv.Itoa(p))
		return
	}
	ts.Fatalf("no replica %d", id)
}

// signal NAME PID sends a signal to a process by its id.
func signalPid(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT, "TERM": syscall.SIGTERM}
	pid, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(syscall.Kill(pid, signals[args[0]]))
}

// field VAR FILE sets VAR to the text of a file, without its end of line.
func field(ts *testscript.TestScript, neg bool, args []string) {
	ts.Setenv(args[0], string(bytes.TrimSpace([]byte(ts.ReadFile(args[1])))))
}

// keep ID... copies what the trial's replicas have, device included.
func keepState(ts *testscript.TestScript, neg bool, args []string) {
	for _, id := range args {
		for _, part := range stolen {
			at := filepath.Join("trial", "replica-"+id, part)
			ts.Check(os.CopyFS(ts.MkAbs(filepath.Join("kept", at)), os.DirFS(ts.MkAbs(at))))
		}
	}
}

// rollback ID... puts back what keep has copied and kills the service
// processes.
func rollBackState(ts *testscript.TestScript, neg bool, args []string) {
	for _, id := range args {
		for _, part := range stolen {
			at := filepath.Join("trial", "replica-"+id, part)
			ts.Check(os.Rename(ts.MkAbs(at), ts.MkAbs(at+".was")))
			ts.Check(os.Rename(ts.MkAbs(filepath.Join("kept", at)), ts.MkAbs(at)))
		}
		pidOf(ts, false, []string{"CHILD", "child", id, "trial/config.yaml"})
		signalPid(ts, false, []string{"KILL", ts.Getenv("CHILD")})
	}
}
