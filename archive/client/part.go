package client

import (
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
)

// partName returns where a content lies while it is on its way to path: beside
// it, under a name that the next try finds.
func partName(c archive.Content, path string) string {
	return filepath.Join(filepath.Dir(path), ".bonafide-part-"+c.Digest.String())
}

// openPart opens a file beside a path in root for a content on its way: one that
// goes on where the last try ended if it comes by block and nobody else is at it,
// otherwise a new one. It returns its name in root too.
func openPart(c archive.Content, root *os.Root, path string) (*os.File, string, error) {
	if c.BlockCount() > 1 {
		name := partName(c, path)
		if f := lockPart(root, name); f != nil {
			return f, name, nil
		}
	}
	return createBeside(root, path)
}

// lockPart opens or makes the file and locks it until it is closed. It returns
// nil if that is not to be had, or the file is not this user's alone: whoever
// may write the directory could have put it there.
func lockPart(root *os.Root, name string) *os.File {
	if fi, err := root.Lstat(name); err == nil && !fi.Mode().IsRegular() {
		return nil
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_NONBLOCK, 0o666)
	if err != nil {
		return nil
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && ownFile(f, root, name) {
		return f
	}
	f.Close()
	return nil
}

// ownFile reports whether f is a regular file of this user, with the one name.
func ownFile(f *os.File, root *os.Root, name string) bool {
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink != 1 || int(st.Uid) != os.Geteuid() {
		return false
	}
	now, err := root.Lstat(name) // another may have renamed it before it was locked
	return err == nil && os.SameFile(fi, now)
}
