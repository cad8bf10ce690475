package archive_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
)

var every = flag.Bool("every", false, "have TestFalseReceiptByHand try all falsehoods, also those that the scripts of package cmd try")

// byHand writes the script of SPEC.md to a file and returns a run of it.
func byHand(t *testing.T) func(roster, receipt, content []byte) (string, error) {
	t.Helper()
	for _, tool := range []string{"sh", "openssl", "sha256sum", "basenc", "od", "sed"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s here: receipts are not checked by hand", tool)
		}
	}
	spec, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```sh\n(# usage: sh check.sh.*?)```").FindSubmatch(spec)
	if m == nil {
		t.Fatal("SPEC.md shows no script")
	}
	dir := t.TempDir()
	put := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	script := put("check.sh", m[1])
	return func(roster, receipt, content []byte) (string, error) {
		out, err := exec.CommandContext(t.Context(), "sh", script, put("roster", roster), put("receipt", receipt), put("content", content)).CombinedOutput()
		return string(out), err
	}
}

func TestReceiptByHand(t *testing.T) {
	t.Parallel()
	run := byHand(t)
	w := world()
	out, err := run(w.Roster.Bytes(), receiptOf(w).Bytes(), []byte("beta\n"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := "f2c82decdd7181cf98945929a62598db7e6b477e11f6e0eb0ae97020eff151ad  docs/b.txt\n" +
		"bound in epoch 2, proven as of epoch 3, 2026-11-23T18:00:00Z\n"
	if out != want {
		t.Errorf("script says\n%s\nwant\n%s", out, want)
	}
}

func TestFalseReceiptByHand(t *testing.T) {
	t.Parallel()
	run := byHand(t)
	w := world()
	roster, good, content := w.Roster.Bytes(), receiptOf(w).Bytes(), []byte("beta\n")
	changed := func(change func(rc *archive.Receipt)) []byte {
		rc := receiptOf(w)
		change(&rc)
		return rc.Bytes()
	}
	for name, args := range map[string]struct {
		roster, receipt, content []byte
		elsewhere                bool // get.txtar of package cmd tries the like with the same commands
	}{
		"content":         {roster, good, []byte("beta"), true},
		"roster":          {bytes.Replace(roster, []byte(`"test"`), []byte(`"tast"`), 1), good, content, true},
		"record":          {roster, bytes.Replace(good, []byte(`names 5`), []byte(`names 6`), 1), content, true},
		"nonce":           {roster, changed(func(rc *archive.Receipt) { rc.Nonce[0] ^= 1 }), content, true},
		"proof":           {roster, changed(func(rc *archive.Receipt) { rc.Proof[60] ^= 1 }), content, true},
		"name":            {roster, changed(func(rc *archive.Receipt) { rc.Name = "docs/a.txt" }), content, false},
		"one attestation": {roster, changed(func(rc *archive.Receipt) { rc.Attestations = rc.Attestations[:1] }), content, false},
		"one twice":       {roster, changed(func(rc *archive.Receipt) { rc.Attestations[1] = rc.Attestations[0] }), content, false},
		"two votes": {roster, changed(func(rc *archive.Receipt) {
			rc.Certificate = w.Certify(w.Newest().Record, 1, 1, 2).Bytes()
		}), content, false},
		"older certificate": {roster, changed(func(rc *archive.Receipt) { rc.Certificate = w.Epochs[2].Certificate.Bytes() }), content, false},
	} {
		if args.elsewhere && !*every {
			continue
		}
		out, err := run(args.roster, args.receipt, args.content)
		if err == nil || !strings.Contains(out, "refused: ") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
