package content

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// DirectBlock is what offset, length and address of a direct write are multiples
// of.
const DirectBlock = 4 << 10

// Aligned returns n rounded up to whole blocks.
func Aligned(n int) int { return (n + DirectBlock - 1) / DirectBlock * DirectBlock }

// direct sets whether writes to f go to the disk past the page cache. It reports
// false where that is not to be had.
func direct(f *os.File, on bool) bool {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return false
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
	return err == nil
}

// writeDirect writes b to f past the page cache, as far as that goes: contents
// are written once and hardly read soon, and the copy costs more than the disk.
func writeDirect(f *os.File, b []byte) error {
	whole := len(b) / DirectBlock * DirectBlock
	if whole == 0 || !direct(f, true) {
		_, err := f.Write(b)
		return err
	}
	n, err := f.Write(b[:whole])
	direct(f, false)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: b lies where it may not
		return err
	}
	_, err = f.Write(b[n:])
	return err
}
