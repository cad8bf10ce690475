package watchdog

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running child.
type process interface {
	Pid() int
	Done() <-chan struct{}     // closed when it has ended and its group is killed
	Status() int               // exit status, -1 if a signal ended it; after Done
	Err() error                // nil after status 0; after Done
	Signal(sig syscall.Signal) // to the child alone
	Kill()                     // to its whole group, at once
}

// Process is a child that [Start] started. All methods may be called at any
// time and concurrently, except that Status and Err mean nothing before Done.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // owned by run until done is closed

	mu     sync.Mutex
	reaped bool // the process id may be another's
}

// Start starts cmd so that it does not outlive this process, not even when
// this process is killed with SIGKILL, and so that its process group does not
// outlive it. What the child itself starts through Start is bound to it in the
// same way, and so to this process.
//
// The kernel sends the child's death signal when the thread that forked it
// ends, and the Go runtime ends threads as it likes. So the child has a
// goroutine of its own, locked to its thread for as long as the child lives.
func Start(cmd *exec.Cmd) (*Process, error) {
	bind(cmd)
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func startProcess(cmd *exec.Cmd) (process, error) {
	p, err := Start(cmd)
	if err != nil {
		return nil, err // not a nil *Process in an interface
	}
	return p, nil
}

func bind(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pgid = true, 0
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = time.Second // for output pipes that left the group
	}
}

func (p *Process) run(started chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.await()
	p.Kill() // what is left of the group, while its id is still taken
	p.mu.Lock()
	p.reaped = true
	p.mu.Unlock()
	p.err = p.cmd.Wait()
	close(p.done)
}

// await returns when the child is dead, but leaves it unreaped, so that no
// other process can have got its id.
func (p *Process) await() {
	for {
		err := unix.Waitid(unix.P_PID, p.Pid(), nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return
		}
	}
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended and what was
// left of its group has been killed.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns what the process ended of: nil after exit status 0, otherwise
// usually an [exec.ExitError].
func (p *Process) Err() error { return p.err }

// Status returns the exit status, or -1 if a signal ended the process.
func (p *Process) Status() int { return p.cmd.ProcessState.ExitCode() }

// Signal sends sig to the process, if it has not ended.
func (p *Process) Signal(sig syscall.Signal) { p.send(p.Pid(), sig) }

// Kill ends the process and its whole group at once.
func (p *Process) Kill() { p.send(-p.Pid(), syscall.SIGKILL) }

func (p *Process) send(pid int, sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		_ = syscall.Kill(pid, sig) // an error says that it has ended already
	}
}
