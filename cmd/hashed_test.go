package cmd

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
)

func TestHashFile(t *testing.T) {
	dir := t.TempDir()
	const buffer = 128 << 10
	for _, n := range []int{0, 1, buffer - 1, buffer, buffer + 1, 3*buffer + 7} {
		path, b := filepath.Join(dir, "f"), bytes.Repeat([]byte{byte(n), 1, 2}, n)[:n]
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		want := hashed{archive.DigestOf(b), uint64(n)}
		if got, err := hashFile(t.Context(), path, nil); err != nil || got != want {
			t.Errorf("%d bytes: %v, %v; want %v", n, got, err, want)
		}
		if got, err := hashOf(t.Context(), bytes.NewReader(b)); err != nil || got != want {
			t.Errorf("%d bytes by reader: %v, %v; want %v", n, got, err, want)
		}
	}
	// A file that has no size before it is read, and more than one read gives.
	const long = "/proc/kallsyms"
	b, err := os.ReadFile(long)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := hashFile(t.Context(), long, nil); err != nil || got.Digest != archive.DigestOf(b) {
		t.Errorf("%s: %v, %v", long, got, err)
	}
}

// What is not a regular file is neither followed nor waited for.
func TestHashFileRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(unix.Mkfifo(at("pipe"), 0o600), os.WriteFile(at("f"), nil, 0o600), os.Symlink("f", at("link"))); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		at("pipe"): errIrregular, dir: errIrregular, "/dev/zero": errIrregular,
		at("link"): unix.ELOOP, at("none"): fs.ErrNotExist,
	} {
		if _, err := hashFile(t.Context(), path, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := hashFile(over, at("f"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
