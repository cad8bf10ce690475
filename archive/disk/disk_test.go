package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Files that are put at once make the directories that they share.
func TestPutTogether(t *testing.T) {
	for range 50 {
		root := Root(filepath.Join(t.TempDir(), "root"))
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				path := filepath.Join(string(root), "a", "b", "c", fmt.Sprint(i))
				err := root.Put(path, func(f *os.File) error { _, err := f.WriteString("x"); return err })
				if b, err2 := os.ReadFile(path); err != nil || string(b) != "x" {
					t.Errorf("%q, %v, %v", b, err, err2)
				}
			})
		}
		wg.Wait()
	}
}

// What stands in the way makes room; what fails leaves nothing.
func TestPut(t *testing.T) {
	root := Root(t.TempDir())
	dir := filepath.Join(string(root), "dir")
	path := filepath.Join(dir, "file")
	put := func(f *os.File) error { _, err := f.WriteString("x"); return err }
	for name, obstacle := range map[string]func() error{
		"a file for a directory":  func() error { return os.WriteFile(dir, nil, 0o600) },
		"a link for a directory":  func() error { return os.Symlink("nowhere", dir) },
		"a directory for a file":  func() error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) },
		"a pipe for a file":       func() error { return errors.Join(os.Mkdir(dir, 0o700), unix.Mkfifo(path, 0o600)) },
		"a link to itself":        func() error { return errors.Join(os.Mkdir(dir, 0o700), os.Symlink("file", path)) },
		"another file":            func() error { return errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, []byte("old"), 0o600)) },
		"no temporary directory":  func() error { return os.RemoveAll(filepath.Join(string(root), tmpDir)) },
		"nothing, not even a dir": func() error { return nil },
	} {
		if err := errors.Join(os.RemoveAll(dir), obstacle()); err != nil {
			t.Fatal(err)
		}
		if err := root.Put(path, put); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "x" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if err := root.Put(path, func(*os.File) error { return unix.ENOSPC }); !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want %v", err, ErrFull)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "x" {
		t.Errorf("a Put that failed changed the file: %q, %v", b, err)
	}
	if left, err := os.ReadDir(filepath.Join(string(root), tmpDir)); err != nil || len(left) > 0 {
		t.Errorf("half-written: %v, %v", left, err)
	}
	if err := os.WriteFile(filepath.Join(string(root), tmpDir, "put-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := root.ClearTemp(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(string(root), tmpDir)); len(left) > 0 {
		t.Errorf("not cleared: %v", left)
	}
}
