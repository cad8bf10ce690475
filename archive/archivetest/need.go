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

// NeedNetns skips a test, or fails it where all must run, if no process can have a
// network of its own: see Apart.
func NeedNetns(t testing.TB) {
	t.Helper()
	c := exec.Command("sh", "-ec", `
		ip link add hub type bridge
		ip link add r1 type veth peer name r2
		ip link set r1 master hub
		tc qdisc add dev r1 root tbf rate 1mbit burst 16kb latency 400ms
		nft add table bridge wall
		nft add chain bridge wall forward '{ type filter hook forward priority 0 ; }'
		nft add rule bridge wall forward ip saddr 10.0.0.1 numgen random mod 100 '<' 10 counter drop`)
	c.SysProcAttr = apart()
	out, err := c.CombinedOutput()
	switch {
	case err == nil:
	case os.Getenv("BONAFIDE_REQUIRE_NETNS") != "":
		t.Fatalf("no networks of a test's own, and BONAFIDE_REQUIRE_NETNS is set: %v: %s", err, out)
	default:
		t.Skipf("no networks of a test's own (apt install iproute2 nftables; unshare --net must be permitted): %v: %s", err, out)
	}
}
