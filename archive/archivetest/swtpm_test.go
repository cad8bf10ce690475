package archivetest_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/trust"
)

// slotsIndex is the NV index of the slots; package trust/tpm says so.
const slotsIndex = "0x181b0f1"

// Four replicas on software TPMs: what the program says of a device, the TPM's
// own tools say too, and in the service phase they cannot write it, whatever
// authorisation they try.
func TestSwtpm(t *testing.T) {
	t.Parallel()
	archivetest.NeedSwtpm(t, "swtpm", "tpm2_nvread", "tpm2_nvwrite")
	c := newCluster(t, 4, "swtpm")
	c.bind("swtpm/a", "in four chips of software")
	if got := c.get("swtpm/a"); got != "in four chips of software" {
		t.Errorf("got %q", got)
	}
	for _, m := range c.roster.Replicas {
		c.checkTools(m)
	}
	c.checkStatusProfile("lock")
}

// checkTools compares what the TPM holds with what the replica says, and tries
// to write it.
func (c *cluster) checkTools(m archive.Replica) {
	t := c.t
	t.Helper()
	st, err := c.status(m.ID)
	if err != nil || st.Mode != trust.ModeService.String() {
		t.Fatalf("replica %d: %v, mode %q", m.ID, err, st.Mode)
	}
	before, err := c.tpm(m.ID, "tpm2_nvread", "-C", slotsIndex, slotsIndex)
	if err != nil || len(before) != trust.SlotsSize {
		t.Fatalf("read slots of replica %d: %v: %s", m.ID, err, before)
	}
	if !bytes.Equal(before[:32], st.Head[:]) || binary.BigEndian.Uint64(before[32:]) != uint64(st.Epoch) {
		t.Errorf("replica %d: slots %x, status says head %s, epoch %d", m.ID, before[:40], st.Head, st.Epoch)
	}
	forged := filepath.Join(t.TempDir(), "forged")
	if err := os.WriteFile(forged, make([]byte, trust.SlotsSize), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, auth := range c.auths(m.ID) {
		if out, err := c.tpm(m.ID, "tpm2_nvwrite", append(auth, "-i", forged, slotsIndex)...); err == nil {
			t.Errorf("replica %d: nvwrite %v went through: %s", m.ID, auth, out)
		}
	}
	if after, err := c.tpm(m.ID, "tpm2_nvread", "-C", slotsIndex, slotsIndex); err != nil || !bytes.Equal(after, before) {
		t.Errorf("replica %d: slots changed: %v", m.ID, err)
	}
}

// auths are the authorisations to try: none, and every small file of the
// replica's directory, for each hierarchy and for the index itself.
func (c *cluster) auths(id uint32) [][]string {
	var all [][]string
	for _, who := range []string{"o", "p", slotsIndex} {
		all = append(all, []string{"-C", who})
		filepath.WalkDir(c.replicaDir(id), func(path string, d os.DirEntry, err error) error {
			if info, e := d.Info(); err == nil && e == nil && info.Mode().IsRegular() && info.Size() > 0 && info.Size() <= 64 {
				all = append(all, []string{"-C", who, "-P", "file:" + path})
			}
			return nil
		})
	}
	return all
}

// tpm runs one of the TPM's own tools on a replica's device.
func (c *cluster) tpm(id uint32, tool string, args ...string) ([]byte, error) {
	cmd := exec.Command(tool, args...)
	cmd.Dir = filepath.Join(c.replicaDir(id), "run")
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path=tpm.sock")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return errs.Bytes(), err
	}
	return out, nil
}

// checkStatusProfile wants the status command to name the profile for all.
func (c *cluster) checkStatusProfile(want string) {
	c.t.Helper()
	n := 0
	for line := range bytes.Lines(c.ok("status", "--json")) {
		var s struct {
			ID      uint32 `json:"id"`
			Profile string `json:"mas"`
		}
		if err := json.Unmarshal(line, &s); err != nil {
			c.t.Fatalf("%s: %v", line, err)
		}
		if s.ID != 0 && s.Profile == want {
			n++
		}
	}
	if n != c.roster.N() {
		c.t.Errorf("%d replicas with profile %s, want %d", n, want, c.roster.N())
	}
}
