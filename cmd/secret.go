package cmd

import (
	"errors"

	"golang.org/x/sys/unix"
)

// secretive keeps the memory of this process, which holds the agreement key, from
// other processes of its user, and from core dumps. Root can read it all the same
// while the phase lasts. The phase clears its key at the end, but copies that the
// libraries made on the way stay where Go cannot reach them: only the end of the
// process, which comes before the service process begins, surely ends them, and
// then the kernel's init_on_free=1.
func secretive() error {
	return errors.Join(
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}
