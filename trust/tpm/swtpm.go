package tpm

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Names of the sockets, in the run directory. The tools of the TPM software
// stack expect the control socket to be called so.
const (
	socketName  = "tpm.sock"
	controlName = "tpm.sock.ctrl"
)

const (
	commandInit = 2 // CMD_INIT of swtpm's control channel: pull the power and give it back

	startLimit = 30 * time.Second // for a new swtpm to answer
	cycleLimit = 2 * time.Second  // for a running one, before it is replaced
	stopLimit  = time.Second      // for it to end by itself
)

// A Swtpm is a software TPM in a child process, which dies with this one. Its
// state is in a directory, and whoever can write that, or reach its control
// socket, can forge what it says: it is for trials of the TPM backend, and for
// tests.
type Swtpm struct {
	state, run *os.File // directories
	target     Target

	mu      sync.Mutex // guards child and stopped
	child   *child
	stopped bool
}

// A child is one run of the program.
type child struct {
	process *os.Process
	done    chan struct{} // closed when it has ended
}

// StartSwtpm starts an swtpm with its state in stateDir and its sockets in
// runDir, both created if need be, and returns when it serves. Its start is a
// device reset. ctx bounds the start, not the child's life: Stop ends it.
func StartSwtpm(ctx context.Context, stateDir, runDir string) (*Swtpm, error) {
	s, err := newSwtpm(stateDir, runDir)
	if err != nil {
		return nil, fmt.Errorf("start swtpm: %w", err)
	}
	if err := s.restart(ctx); err != nil {
		return nil, fmt.Errorf("start swtpm: %w", errors.Join(err, s.Stop()))
	}
	return s, nil
}

func newSwtpm(stateDir, runDir string) (*Swtpm, error) {
	state, err := openDir(stateDir)
	if err != nil {
		return nil, err
	}
	run, err := openDir(runDir)
	if err != nil {
		return nil, errors.Join(err, state.Close())
	}
	t := Target{Socket: filepath.Join(runDir, socketName)}
	return &Swtpm{state: state, run: run, target: t}, nil
}

func openDir(name string) (*os.File, error) {
	if err := os.MkdirAll(name, 0o700); err != nil {
		return nil, err
	}
	return os.Open(name)
}

// Target returns where to Open the device. It stays the same over power cycles.
func (s *Swtpm) Target() Target { return s.target }

// Pid returns the child's process ID, or 0 if it has ended.
func (s *Swtpm) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child == nil || s.child.ended() {
		return 0
	}
	return s.child.process.Pid
}

// PowerCycle is a device reset: an orderly shutdown if the TPM still listens,
// power off and on, and what firmware does at a boot. A child that does not
// obey, or has died, is replaced.
func (s *Swtpm) PowerCycle(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return fmt.Errorf("power-cycle swtpm: %w", os.ErrClosed)
	}
	s.shutdown(ctx)
	if s.cycle(ctx) == nil {
		return nil
	}
	if err := s.restart(ctx); err != nil {
		return fmt.Errorf("power-cycle swtpm: %w", err)
	}
	return nil
}

func (s *Swtpm) cycle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cycleLimit)
	defer cancel()
	if s.child == nil || s.child.ended() {
		return errors.New("swtpm has ended")
	}
	if err := s.control(ctx, commandInit, 0); err != nil {
		return err
	}
	return s.boot(ctx)
}

// Stop ends the child, orderly if it can be done in a second, and returns when
// it is gone. It is idempotent.
func (s *Swtpm) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil
	}
	s.stopped = true
	s.shutdown(context.Background())
	s.kill()
	return errors.Join(s.state.Close(), s.run.Close())
}

// shutdown tells the TPM that its power will go: its clock then stays safe. A
// TPM that was not told is as good as one whose plug was pulled.
func (s *Swtpm) shutdown(ctx context.Context) {
	if s.child == nil || s.child.ended() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	_ = s.direct(ctx, func(c transport.TPM) error {
		_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(c)
		return err
	})
}

func (s *Swtpm) kill() {
	if s.child == nil {
		return
	}
	_ = s.child.process.Signal(syscall.SIGTERM)
	select {
	case <-s.child.done:
	case <-time.After(stopLimit):
		_ = s.child.process.Kill()
		<-s.child.done
	}
	s.child = nil
}

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// restart starts the child, after ending the one before, and boots its TPM.
func (s *Swtpm) restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	s.kill()
	for _, name := range []string{socketName, controlName} {
		if err := os.Remove(filepath.Join(s.runPath(), name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	var err error
	if s.child, err = start(s.command()); err != nil {
		return err
	}
	if err := s.listening(ctx); err != nil {
		return err
	}
	return s.boot(ctx)
}

func (s *Swtpm) runPath() string { return fmt.Sprintf("/proc/self/fd/%d", s.run.Fd()) }

// command runs swtpm with relative socket names, and its state directory by
// file descriptor: its options break at commas, and socket addresses at 108
// bytes.
func (s *Swtpm) command() *exec.Cmd {
	cmd := exec.Command("swtpm", "socket", "--tpm2",
		"--tpmstate", "dir=/proc/self/fd/3,mode=0600",
		"--server", "type=unixio,path="+socketName+",mode=0600",
		"--ctrl", "type=unixio,path="+controlName+",mode=0600",
		"--flags", "not-need-init")
	cmd.Dir = s.runPath()
	cmd.ExtraFiles = []*os.File{s.state}
	// A group of its own: a Ctrl-C at the terminal is for us, not for the TPM.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// start runs cmd on a thread that lives as long as the child: the kernel sends
// the parent-death signal when the thread that forked ends.
func start(cmd *exec.Cmd) (*child, error) {
	c := &child{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		c.process = cmd.Process
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(c.done)
		}
	}()
	return c, <-started
}

// listening waits until the child accepts connections; its sockets' files are
// there a little before that.
func (s *Swtpm) listening(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := dialAt(ctx, s.run, socketName)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-s.child.done:
			return errors.New("swtpm ended at once (is its state directory in use by another?)")
		case <-ctx.Done():
			return fmt.Errorf("swtpm does not answer: %w", err)
		}
	}
}

// boot does what firmware does: Startup, then it closes the platform hierarchy,
// whose authorisation each reset leaves empty.
func (s *Swtpm) boot(ctx context.Context) error {
	auth := make([]byte, authSize)
	if _, err := rand.Read(auth); err != nil {
		return err
	}
	return s.direct(ctx, func(c transport.TPM) error {
		if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(c); err != nil {
			return fmt.Errorf("startup: %w", err)
		}
		if _, err := changeAuth(c, tpm2.TPMRHPlatform, auth); err != nil {
			return fmt.Errorf("close platform hierarchy: %w", err)
		}
		return nil
	})
}

// direct runs f on a connection to the TPM that need not be started yet.
func (s *Swtpm) direct(ctx context.Context, f func(transport.TPM) error) error {
	return s.talk(ctx, socketName, func(conn net.Conn) error { return f(socket{conn}) })
}

// control sends one command, with its one argument, over the control channel.
func (s *Swtpm) control(ctx context.Context, command, argument uint32) error {
	return s.talk(ctx, controlName, func(conn net.Conn) error {
		b := binary.BigEndian.AppendUint32(nil, command)
		if _, err := conn.Write(binary.BigEndian.AppendUint32(b, argument)); err != nil {
			return err
		}
		var result [4]byte
		if _, err := io.ReadFull(conn, result[:]); err != nil {
			return err
		}
		if code := binary.BigEndian.Uint32(result[:]); code != 0 {
			return fmt.Errorf("swtpm control: result %#x", code)
		}
		return nil
	})
}

func (s *Swtpm) talk(ctx context.Context, name string, f func(net.Conn) error) error {
	conn, err := dialAt(ctx, s.run, name)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return inTime(ctx, f(conn))
}
