package archivetest

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// SmallDisk puts a disk of size bytes of its own at dir, until the test ends. It
// skips the test where that is not permitted, or fails it where all must run.
func SmallDisk(t testing.TB, dir string, size int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := unix.Mount("bonafide-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size))
	switch {
	case err == nil:
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	case os.Getenv("BONAFIDE_REQUIRE_MOUNT") != "":
		t.Fatalf("no small disk to fill, and BONAFIDE_REQUIRE_MOUNT is set: mount: %v", err)
	default:
		t.Skipf("no small disk to fill (mount must be permitted): %v", err)
	}
}
