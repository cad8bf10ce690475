//go:build reboot

package tpm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

var (
	device   = flag.String("device", "/dev/tpmrm0", "the TPM to run on; what it holds is lost")
	progress = flag.String("progress", "", "file or disk that keeps the progress over reboots; zeros at first")
	more     = flag.String("more", "", "file to create if the machine has to be rebooted and this run again")
)

// TestBoots is the conformance suite on a TPM behind a kernel device. Its resets
// are reboots of the machine: qemu/run sees to them.
func TestBoots(t *testing.T) {
	target := tpm.Target{Device: *device}
	var p trusttest.Progress
	b, err := os.ReadFile(*progress)
	must(t, err)
	if b, _, _ = bytes.Cut(b, []byte{0}); len(b) > 0 {
		must(t, json.Unmarshal(b, &p))
	}
	opened := func(t *testing.T) trust.MAS { return open(t, target) }
	again := trusttest.RunBoot(t, func(t *testing.T) trusttest.Device { return anew(t, target) }, opened, &p)
	t.Logf("boot %d ends: part %d, step %d", p.Boots, p.Part, p.Step)
	b, err = json.Marshal(p)
	must(t, err)
	must(t, overwrite(*progress, append(b, 0)))
	if again {
		must(t, os.WriteFile(*more, nil, 0o600))
	}
}

// anew makes a device in place of the one in the TPM. Its lockout authorisation
// is empty, or the TPM would hold one device for ever.
func anew(t *testing.T, target tpm.Target) trusttest.Device {
	t.Helper()
	m, err := tpm.Open(t.Context(), target)
	switch {
	case err == nil:
		must(t, m.Close())
		must(t, tpm.Raw(t.Context(), target, clearBy(tpm2.TPMRHLockout)))
	case !errors.Is(err, fs.ErrNotExist):
		t.Fatal(err)
	}
	id, key, err := tpm.Provision(t.Context(), target, tpm.Setup{}, zeros{})
	must(t, err)
	return trusttest.Device{Identity: id, Agreement: key, Open: func(t *testing.T) trust.MAS { return open(t, target) }}
}

// overwrite writes b where a file or a disk begins, synced.
func overwrite(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
