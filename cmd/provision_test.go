package cmd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
)

// A killer passes TPM commands on, and at one of them, which the TPM still
// carries out, kills who sent it.
type killer struct {
	to   string // socket of the TPM
	left atomic.Int64
	kill func() error
}

func (k *killer) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		k.pass(conn)
		conn.Close()
	}
}

func (k *killer) pass(from net.Conn) {
	to, err := net.Dial("unix", k.to)
	if err != nil {
		return
	}
	defer to.Close()
	for {
		command, err := message(from)
		if err != nil {
			return
		}
		if _, err := to.Write(command); err != nil {
			return
		}
		answer, err := message(to)
		if err != nil {
			return
		}
		if k.left.Add(-1) == 0 {
			_ = k.kill()
			return
		}
		if _, err := from.Write(answer); err != nil {
			return
		}
	}
}

// message reads a command or an answer of a TPM.
func message(r io.Reader) ([]byte, error) {
	b := make([]byte, 10)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	b = append(b, make([]byte, binary.BigEndian.Uint32(b[2:])-10)...)
	_, err := io.ReadFull(r, b[10:])
	return b, err
}

// making is a replica that is being made on an swtpm.
type making struct {
	member
	killer *killer
}

func newMaking(t *testing.T) making {
	t.Helper()
	dir := t.TempDir()
	s, err := tpm.StartSwtpm(t.Context(), filepath.Join(dir, "state"), filepath.Join(dir, "swtpm"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	m := making{member{dir: filepath.Join(dir, "r"), Device: filepath.Join(dir, "tpm.sock")}, &killer{to: s.Target().Socket}}
	l, err := net.Listen("unix", m.Device)
	if err != nil {
		t.Fatal(err)
	}
	go m.killer.serve(l)
	t.Cleanup(func() { _ = l.Close() })
	return m
}

// run makes the replica in a process that is killed at the kth command, from 1
// on; 0 for none.
func (m making) run(t *testing.T, k int) (out []byte, err error) {
	t.Helper()
	c := exec.Command("/proc/self/exe", m.arguments()...)
	c.Args[0] = "bonafide"
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	started := make(chan struct{})
	m.killer.kill = func() error { <-started; return c.Process.Kill() }
	m.killer.left.Store(int64(k))
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	close(started)
	err = c.Wait()
	if err != nil && c.ProcessState.ExitCode() >= 0 {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return stdout.Bytes(), err
}

func (m making) arguments() []string {
	return []string{"init", "replica", "--dir", m.dir, "--id", "1", "--address", "127.0.0.1:9",
		"--mas", masTPM, "--device", m.Device, "--yes", "--recovery", m.recovery()}
}

func (m making) recovery() string { return m.dir + ".recovery" }

// check looks whether out is the entry of a replica that is whole.
func (m making) check(t *testing.T, out []byte) {
	t.Helper()
	e, err := archive.ParseEnrolment(out)
	if err != nil {
		t.Fatal(err)
	}
	r, err := openMember(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	key, err := loadKey(r.path(serviceKey))
	if err != nil || wire.KeyPin(publicOf(key)) != e.Replica.TLS {
		t.Errorf("service key: not the entry's, %v", err)
	}
	if exists(r.path(masDir, journalFile)) {
		t.Error("the journal is still there")
	}
	mas, err := r.openMAS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer mas.Close()
	a, err := mas.Lookup(t.Context(), trust.Nonce{1})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := e.Replica.MAS.Verify(a, trust.Nonce{1}); err != nil || s.Slots != (trust.Slots{}) {
		t.Errorf("got %+v, %v, want the empty device of the entry", s, err)
	}
	agreement, err := mas.AgreementKey(t.Context())
	if err != nil || !bytes.Equal(publicOf(agreement), e.Replica.Key) {
		t.Errorf("agreement key: not the entry's, %v", err)
	}
}

// commands returns how many commands it takes.
func commands(t *testing.T) int {
	t.Helper()
	const many = 1 << 20
	m := newMaking(t)
	if _, err := m.run(t, many); err != nil {
		t.Fatal(err)
	}
	return many - int(m.killer.left.Load())
}

// Killed at a command to the TPM, init replica comes to an end when it is run
// again. Cut off when the device is made and not all files are, it goes on with
// the same keys.
func TestInitReplicaKilled(t *testing.T) {
	archivetest.NeedSwtpm(t, "swtpm")
	last := commands(t)
	for _, k := range []int{1, last / 2, last - 6, last - 1, last} {
		t.Run(fmt.Sprintf("%d of %d", k, last), func(t *testing.T) {
			m := newMaking(t)
			if _, err := m.run(t, k); err == nil {
				t.Fatal("not killed")
			}
			journal, _ := os.ReadFile(m.path(masDir, journalFile))
			out, err := m.run(t, 0)
			if err != nil {
				t.Fatal(err)
			}
			m.check(t, out)
			if k == last {
				m.cutFiles(t, journal, out)
			}
		})
	}
}

// cutFiles has the making, whose entry is want, end before its last files.
func (m making) cutFiles(t *testing.T, journal, want []byte) {
	t.Helper()
	for _, lost := range [][]string{{memberFile}, {memberFile, entryFile}} {
		for _, f := range lost {
			if err := os.Remove(m.path(f)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(m.path(masDir, journalFile), journal, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := m.run(t, 0)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("without %v: another entry, %v", lost, err)
		}
		m.check(t, got)
	}
}

// evictControl is the first command that changes something in the TPM, as strace
// -x shows it: TPM2_EvictControl, code 0x120.
var evictControl = regexp.MustCompile(`write\(\d+<socket[^"]*"\\x80\\x02(\\x..){4}\\x00\\x00\\x01\\x20`)

// Journal and recovery file are on the disk, with their directories, before
// anything in the TPM changes.
func TestInitReplicaSynced(t *testing.T) {
	archivetest.NeedSwtpm(t, "swtpm")
	archivetest.NeedStrace(t)
	m := newMaking(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "bonafide")
	if err := os.Symlink(exe, program); err != nil {
		t.Fatal(err)
	}
	log := program + ".log"
	c := exec.Command("strace", append([]string{"-f", "-y", "-x", "-o", log, "-e", "trace=fsync,write", program}, m.arguments()...)...)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	at := evictControl.FindIndex(b)
	if at == nil {
		t.Fatal("the TPM was not changed")
	}
	synced := regexp.MustCompile(`fsync\(\d+<([^>]*)>`).FindAllStringSubmatch(string(b[:at[0]]), -1)
	var files []string
	for _, f := range synced {
		files = append(files, f[1])
	}
	for _, want := range []string{m.recovery(), filepath.Dir(m.recovery()), m.path(masDir, journalFile) + ".new", m.path(masDir), m.dir, filepath.Dir(m.dir)} {
		i := slices.Index(files, want)
		if i < 0 {
			t.Errorf("%s is not synced before: %q", want, files)
			continue
		}
		files = slices.Delete(files, i, i+1)
	}
}
