package cmd

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// nobody is whom the processes of the test run as where it runs as root.
const nobody = 65534

// asUser makes cmd a process of an unprivileged user.
func asUser(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

// Another process of the same user cannot read an update child's memory, and a
// crash leaves no core.
func TestUpdateChildKeepsItsMemory(t *testing.T) {
	dir := loneReplica(t)
	c := asUser(exec.Command("/proc/self/exe", "update", "--child", "--dir", dir))
	c.Args[0] = "bonafide"
	log, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	lines := bufio.NewScanner(log) // ends with the child
	for lines.Scan() && !strings.Contains(lines.Text(), "msg=opened") {
		t.Log(lines.Text())
	}
	if err := c.Process.Signal(syscall.SIGSTOP); err != nil { // its phase is short
		t.Fatal(err)
	}
	mem := fmt.Sprintf("/proc/%d/mem", c.Process.Pid)
	out, err := asUser(exec.Command("head", "-c1", mem)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "ermission denied") {
		t.Errorf("head %s: %v: %s", mem, err, out)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(limits)) {
		if f := strings.Fields(l); strings.HasPrefix(l, "Max core file size") && (f[4] != "0" || f[5] != "0") {
			t.Errorf("core limit: %s", l)
		}
	}
}

// loneReplica makes a replica whose peers are not there, in a directory of the
// unprivileged user.
func loneReplica(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	made := trial{dir, dir}
	listen := net.JoinHostPort(trialHost, strconv.Itoa(ports.take()))
	if _, err := made.open(t.Context(), trialWish{listen: listen}); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		give(t, filepath.Dir(dir))
	}
	return made.path(replicaDir(1))
}

// give makes all that is in dir, and dir, that user's.
func give(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	})
	if err != nil {
		t.Fatal(err)
	}
}
