package archivetest_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive/archivetest"
)

// canTrace says that trace works on this kind of machine.
const canTrace = true

// What brings something to a disk, and which argument says where: a file
// descriptor, or the descriptor of a directory with a path behind it.
var diskCalls = map[uint64]struct {
	name string
	fd   int
	path int // -1: none
}{
	unix.SYS_WRITE:           {"write", 0, -1},
	unix.SYS_WRITEV:          {"writev", 0, -1},
	unix.SYS_PWRITE64:        {"pwrite64", 0, -1},
	unix.SYS_PWRITEV:         {"pwritev", 0, -1},
	unix.SYS_PWRITEV2:        {"pwritev2", 0, -1},
	unix.SYS_FSYNC:           {"fsync", 0, -1},
	unix.SYS_FDATASYNC:       {"fdatasync", 0, -1},
	unix.SYS_SYNC_FILE_RANGE: {"sync_file_range", 0, -1},
	unix.SYS_FTRUNCATE:       {"ftruncate", 0, -1},
	unix.SYS_FALLOCATE:       {"fallocate", 0, -1},
	unix.SYS_COPY_FILE_RANGE: {"copy_file_range", 2, -1},
	unix.SYS_SENDFILE:        {"sendfile", 0, -1},
	unix.SYS_MKDIRAT:         {"mkdirat", 0, 1},
	unix.SYS_OPENAT:          {"openat", 0, 1},
	unix.SYS_RENAMEAT:        {"renameat", 2, 3},
	unix.SYS_RENAMEAT2:       {"renameat2", 2, 3},
}

// tracer makes the n-th of the calls that write below certain directories fail,
// of all threads of certain processes together. strace counts for each thread.
type tracer struct {
	under []string
	kind  string // of process: a word of its command line
	n     int
	no    syscall.Errno
	seen  int
	fails map[int]bool // threads whose call is to fail when it ends
	known map[int]bool // threads, and whether they are of that kind
}

// trace is a process of its own: pid, kind, n, errno and the directories are its
// arguments. It follows pid and what pid starts, says "ready" on stdout, then
// one line for each call before the system sees it, and ends with all of them.
// When it is killed they go on, untraced.
func trace(args []string) int {
	runtime.LockOSThread() // the thread is the tracer
	pid, err1 := strconv.Atoi(args[0])
	n, err2 := strconv.Atoi(args[2])
	no, err3 := strconv.Atoi(args[3])
	t := &tracer{under: args[4:], kind: args[1], n: n, no: syscall.Errno(no), fails: make(map[int]bool), known: make(map[int]bool)}
	for _, err := range []error{err1, err2, err3, t.seize(pid)} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "trace:", err)
			return 1
		}
	}
	fmt.Println("ready")
	for t.next() {
	}
	return 0
}

// seize attaches to all threads of a process, also those that are made meanwhile.
func (t *tracer) seize(pid int) error {
	const follow = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK
	had := make(map[string]bool)
	for more := true; more; {
		more = false
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, e := range threads {
			if had[e.Name()] {
				continue
			}
			had[e.Name()], more = true, true
			tid, _ := strconv.Atoi(e.Name())
			if _, _, no := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, follow, 0, 0); no != 0 {
				continue // it has ended, or came with the thread that made it
			}
			unix.PtraceInterrupt(tid)
		}
	}
	return nil
}

// next handles one stop, and says whether there may be another.
func (t *tracer) next() bool {
	var st unix.WaitStatus
	tid, err := unix.Wait4(-1, &st, unix.WALL, nil)
	if err == unix.EINTR {
		return true
	}
	if err != nil {
		return false
	}
	if !st.Stopped() {
		delete(t.known, tid)
		delete(t.fails, tid)
		return true
	}
	sig := st.StopSignal()
	switch {
	case sig == unix.SIGTRAP|0x80:
		t.call(tid)
		sig = 0
	case st>>16 != 0: // it was made, or stopped
		sig = 0
	}
	unix.PtraceSyscall(tid, int(sig))
	return true
}

// call handles the begin or the end of a system call.
func (t *tracer) call(tid int) {
	var r unix.PtraceRegs
	if unix.PtraceGetRegs(tid, &r) != nil {
		return
	}
	switch {
	case t.fails[tid]:
		delete(t.fails, tid)
		r.Rax = uint64(-int64(t.no))
		unix.PtraceSetRegs(tid, &r)
	case int64(r.Rax) == -int64(unix.ENOSYS) && t.counts(tid, &r) && t.seen == t.n:
		t.fails[tid] = true
		r.Orig_rax = ^uint64(0) // no such call: nothing is done
		unix.PtraceSetRegs(tid, &r)
	}
}

// counts says whether a call that begins is one to count, and prints it.
func (t *tracer) counts(tid int, r *unix.PtraceRegs) bool {
	c, ok := diskCalls[r.Orig_rax]
	args := []uint64{r.Rdi, r.Rsi, r.Rdx, r.R10}
	if !ok || c.name == "openat" && args[2]&unix.O_CREAT == 0 || !t.isKind(tid) {
		return false
	}
	path := t.path(tid, args[c.fd], c.path, args)
	for _, dir := range t.under {
		if rel, ok := strings.CutPrefix(path, dir+"/"); ok {
			t.seen++
			failed := ""
			if t.seen == t.n {
				failed = " failed"
			}
			fmt.Printf("%d %s %s/%s%s\n", t.seen, c.name, filepath.Base(dir), rel, failed)
			return true
		}
	}
	return false
}

// path returns where a call writes.
func (t *tracer) path(tid int, fd uint64, arg int, args []uint64) string {
	var name string
	if arg >= 0 {
		name = readString(tid, args[arg])
	}
	if filepath.IsAbs(name) {
		return name
	}
	dir, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd)))
	return filepath.Join(dir, name)
}

func readString(tid int, at uint64) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, unix.PathMax)
	n, _ := f.ReadAt(b, int64(at)) // the page behind the string may be none
	s, _, _ := bytes.Cut(b[:n], []byte{0})
	return string(s)
}

func (t *tracer) isKind(tid int) bool {
	is, ok := t.known[tid]
	if !ok {
		is = slices.Contains(archivetest.Cmdline(tid), t.kind)
		t.known[tid] = is
	}
	return is
}
