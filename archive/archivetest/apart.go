package archivetest

import (
	"bytes"
	"flag"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// asApart names, in the environment of a process that Apart has started, the
	// test that it is to run.
	asApart = "BONAFIDE_TEST_APART"
	// asBuilt says in its environment where the program under test is.
	asBuilt = "BONAFIDE_TEST_BUILT"
)

// Apart has the test that calls it run in a process that is root of a network of
// its own: nothing in there is seen from outside, nor can outside be seen from it.
// There it returns true; in the test that called it first it returns false, when
// the other has passed. It skips the test as NeedNetns does.
func Apart(t *testing.T) bool {
	t.Helper()
	if os.Getenv(asApart) == t.Name() {
		return true
	}
	NeedNetns(t)
	c := exec.CommandContext(t.Context(), "/proc/self/exe", onlyThis(t)...)
	c.Env = append(os.Environ(), asApart+"="+t.Name(), asBuilt+"="+program)
	c.SysProcAttr, c.WaitDelay = apart(), 10*time.Second
	var out bytes.Buffer
	c.Stdout = io.MultiWriter(&out, t.Output())
	c.Stderr = c.Stdout
	if err := c.Run(); err != nil || !bytes.Contains(out.Bytes(), []byte("--- PASS: "+t.Name()+" ")) {
		t.Fatalf("in a network of its own: %v", err)
	}
	return false
}

// onlyThis returns the arguments with which this test binary runs one test of its
// own, with the flags that the package defines as they are here.
func onlyThis(t *testing.T) []string {
	args := []string{"-test.v", "-test.run=^" + t.Name() + "$"}
	if end, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+time.Until(end).String())
	}
	flag.Visit(func(f *flag.Flag) {
		if !strings.HasPrefix(f.Name, "test.") {
			args = append(args, "-"+f.Name+"="+f.Value.String())
		}
	})
	return args
}

// apart has a process start as root of a network namespace of its own; for others
// than root that takes a user namespace too. It ends with the process that starts
// it.
func apart() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return a
}
