package archivetest

import (
	"os"
	"os/exec"
	"testing"
)

// NeedSwtpm skips a test, or fails it where all must run, if one of the programs
// of a software TPM is not installed.
func NeedSwtpm(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		_, err := exec.LookPath(p)
		switch {
		case err == nil:
		case os.Getenv("BONAFIDE_REQUIRE_SWTPM") != "":
			t.Fatalf("BONAFIDE_REQUIRE_SWTPM is set: %v", err)
		default:
			t.Skip(err)
		}
	}
}

// NeedStrace skips a test, or fails it where all must run, if no system call can
// be made to fail.
func NeedStrace(t *testing.T) {
	err := exec.Command("strace", "-f", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true").Run()
	switch {
	case err == nil:
	case os.Getenv("BONAFIDE_REQUIRE_STRACE") != "":
		t.Fatalf("strace does not work here, and BONAFIDE_REQUIRE_STRACE is set: %v", err)
	default:
		t.Skipf("strace does not work here (apt install strace; ptrace must be permitted): %v", err)
	}
}
