package trust_test

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

// What SPEC.md says about checking by hand is true of the vectors.
func TestByHand(t *testing.T) {
	for _, tool := range []string{"bash", "openssl", "xxd", "sha256sum"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	spec, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	script := regexp.MustCompile("(?s)```bash\n(.*?)```").FindSubmatch(spec)[1]
	v := trusttest.ReadVectors(t, "testdata/swtpm.json")[1]
	if out := byHand(t, string(script), v); !strings.Contains(out, "Verified OK") ||
		!strings.Contains(out, fmt.Sprintf("slots    %x\n", []byte(v.Statement.Slots))) || !answers(out) {
		t.Errorf("got %s", out)
	}
	v.Attestation[40] ^= 1
	v.Nonce[0] ^= 1
	if out := byHand(t, string(script), v); strings.Contains(out, "Verified OK") || answers(out) {
		t.Errorf("by hand, a forged one passes: %s", out)
	}
}

func answers(out string) bool {
	m := regexp.MustCompile(`answers  (\w+)\nnonce is (\w+)\n`).FindStringSubmatch(out)
	return m != nil && m[1] == m[2]
}

func byHand(t *testing.T, script string, v trusttest.Vector) string {
	t.Helper()
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), fmt.Sprintf("A=%x", []byte(v.Attestation)),
		fmt.Sprintf("KEY=%x", v.Identity.Key), fmt.Sprintf("NONCE=%x", []byte(v.Nonce)))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}
