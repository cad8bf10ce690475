package consensus

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The commands of SPEC.md check a voucher without any of our code.
func TestSpecByHand(t *testing.T) {
	for _, tool := range []string{"sh", "awk", "xxd", "openssl", "sha256sum"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("no", tool)
		}
	}
	spec, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, ok := strings.Cut(string(spec), "```\nv() {")
	script, _, ok2 := strings.Cut(script, "```")
	if !ok || !ok2 {
		t.Fatal("SPEC.md has no commands")
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir+"/testdata", os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-ec", "v() {"+script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Verified Successfully") ||
		!strings.Contains(string(out), fmt.Sprintf("%x", testJoin(testInst, 2).Digest())) {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSpecNumbers(t *testing.T) {
	spec, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("at most %s bytes", grouped(MaxBlock)),
		fmt.Sprintf("at most %s, each of 1 to %s bytes", grouped(MaxPieces), grouped(MaxPiece)),
		fmt.Sprintf("| at most %s bytes; opaque", grouped(MaxAttestation)),
		fmt.Sprintf("| 1 to %s bytes; opaque", grouped(MaxRecord)),
		fmt.Sprintf("| at most %d each", MaxMembers),
		fmt.Sprintf("bound above + %s", grouped(overhead)),
	} {
		if !strings.Contains(string(spec), want) {
			t.Errorf("SPEC.md does not say %q", want)
		}
	}
}

func grouped(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", grouped(n/1000), n%1000)
}

// Every member leads first for some instances, and all agree who.
func TestFirstLeader(t *testing.T) {
	leads := map[string]int{}
	for i := range uint32(8) {
		c := Config{Members: testMembers()}
		binary.BigEndian.PutUint32(c.Instance[:], i)
		a, err := c.genesis()
		if err != nil {
			t.Fatal(err)
		}
		b, err := c.genesis()
		if err != nil || !a.Equals(b) {
			t.Fatalf("genesis differs from itself: %v", err)
		}
		leads[a.Validators.GetProposer().Address.String()]++
	}
	for who, n := range leads {
		if n != 2 || len(leads) != 4 {
			t.Errorf("%s leads %d of 8, %d lead", who, n, len(leads))
		}
	}
}
