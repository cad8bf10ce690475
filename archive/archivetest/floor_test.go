package archivetest_test

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/disk"
)

// The floor is the least that bringing a directory to four processes takes, with
// nothing of an archive about it: each file is read once and hashed, sent to all
// four by TLS in slabs of 4 MiB, and there hashed again, written past the page
// cache under its digest, and synced. No names, no signatures, no quotas, no
// rows; a slab is acknowledged with one byte.

const (
	// floorDir is set in a process that takes slabs, and says where to keep them.
	floorDir   = "BONAFIDE_TEST_FLOOR"
	floorSlab  = 4 << 20
	floorPiece = 256 << 10 // one write to a connection, and one read
	floorSlabs = 6
)

// floor returns how long the floor takes for a directory of files of one size, and
// how much of the processors' time.
func floor(t *testing.T, dir string, size int) (wall, work time.Duration) {
	t.Helper()
	s := &floorSender{size: size, per: floorSlab / size, free: make(chan []byte, floorSlabs)}
	for range floorSlabs {
		s.free <- make([]byte, floorSlab/size*size)
	}
	var keepers []*exec.Cmd
	for range 4 {
		c, address := startKeeper(t)
		keepers = append(keepers, c)
		s.lanes = append(s.lanes, s.dial(t, address))
	}
	var before, after unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &before)
	began := time.Now()
	s.sendAll(t, dir)
	wall = time.Since(began)
	unix.Getrusage(unix.RUSAGE_SELF, &after)
	work = usedTime(after) - usedTime(before)
	for _, c := range keepers {
		c.Process.Kill()
		c.Wait()
		work += worked(c.ProcessState)
	}
	return wall, work
}

func usedTime(r unix.Rusage) time.Duration {
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// startKeeper starts a process that keeps slabs.
func startKeeper(t *testing.T) (c *exec.Cmd, address string) {
	t.Helper()
	c = exec.Command(os.Args[0])
	c.Env, c.Stderr = append(os.Environ(), floorDir+"="+t.TempDir()), os.Stderr
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill() })
	if _, err := fmt.Fscanln(out, &address); err != nil {
		t.Fatal(err)
	}
	return c, address
}

// keepFloor is the process that keeps slabs: it prints where it listens, and ends
// when it is killed or something fails.
func keepFloor(dir string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	config := &tls.Config{Certificates: []tls.Certificate{floorIdentity()}}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			if err := keepSlabs(tls.Server(&floorReader{c, bufio.NewReaderSize(c, floorPiece)}, config), dir); err != io.EOF {
				fmt.Fprintln(os.Stderr, "floor:", err)
				os.Exit(1)
			}
		}()
	}
}

// floorIdentity is a certificate that httptest brings along.
func floorIdentity() tls.Certificate {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return s.TLS.Certificates[0]
}

type floorReader struct {
	net.Conn
	r *bufio.Reader
}

func (r *floorReader) Read(b []byte) (int, error) { return r.r.Read(b) }

// keepSlabs keeps what comes: the size of the files and of the slab, in four bytes
// each, and the slab.
func keepSlabs(c net.Conn, dir string) error {
	buf, err := unix.Mmap(-1, 0, floorSlab, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	for {
		var head [8]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return err
		}
		size, n := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return err
		}
		if err := keepFiles(dir, buf[:n], int(size)); err != nil {
			return err
		}
		if _, err := c.Write(head[:1]); err != nil {
			return err
		}
	}
}

// keepFiles writes each part of a slab to a file of its own, and syncs all: with
// parts that no direct write takes, all to one file, as a pack is.
func keepFiles(dir string, slab []byte, size int) (err error) {
	var files []*os.File
	flag, part := unix.O_DIRECT, size
	if size%4096 != 0 {
		flag, part = 0, len(slab)
	}
	for rest := slab; len(rest) > 0; rest = rest[part:] {
		var digest [sha256.Size]byte
		for b := rest[:part]; len(b) > 0; b = b[size:] {
			digest = sha256.Sum256(b[:size])
		}
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%x", digest)), os.O_CREATE|os.O_WRONLY|flag, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(rest[:part]); err != nil {
			return err
		}
		files = append(files, f)
	}
	for _, f := range files {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return disk.SyncDir(dir)
}

// floorSender reads a directory and sends it to all keepers.
type floorSender struct {
	size, per int // bytes of a file, files in a slab
	free      chan []byte
	lanes     []chan *floorJob
	done      sync.WaitGroup
}

// floorJob is a slab on its way to the keepers.
type floorJob struct {
	b    []byte
	left sync.WaitGroup
}

// dial opens two connections to a keeper, and returns where slabs for it go.
func (s *floorSender) dial(t *testing.T, address string) chan *floorJob {
	t.Helper()
	pool := x509.NewCertPool()
	cert, err := x509.ParseCertificate(floorIdentity().Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(cert)
	lane := make(chan *floorJob, floorSlabs)
	for range 2 {
		raw, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		w := &floorWriter{Conn: raw}
		c := tls.Client(w, &tls.Config{RootCAs: pool, ServerName: "example.com"})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		w.gather = true
		s.done.Go(func() {
			for j := range lane {
				if err := s.send(c, w, j.b); err != nil {
					t.Error(err)
				}
				j.left.Done()
			}
		})
	}
	return lane
}

// floorWriter gathers records of TLS for one write.
type floorWriter struct {
	net.Conn
	gather bool
	buf    []byte
}

func (w *floorWriter) Write(b []byte) (int, error) {
	if !w.gather {
		return w.Conn.Write(b)
	}
	w.buf = append(w.buf, b...)
	return len(b), nil
}

func (w *floorWriter) flush() error {
	_, err := w.Conn.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}

func (s *floorSender) send(c *tls.Conn, w *floorWriter, b []byte) error {
	head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(s.size)), uint32(len(b)))
	if _, err := c.Write(head); err != nil {
		return err
	}
	for len(b) > 0 {
		n := min(len(b), floorPiece)
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
		if err := w.flush(); err != nil {
			return err
		}
		b = b[n:]
	}
	_, err := io.ReadFull(c, head[:1])
	return err
}

// sendAll reads the directory's files, hashes them, and sends them slab by slab.
func (s *floorSender) sendAll(t *testing.T, dir string) {
	t.Helper()
	buf, used := <-s.free, 0
	ship := func() {
		j := &floorJob{b: buf[:used]}
		j.left.Add(len(s.lanes))
		for _, l := range s.lanes {
			l <- j
		}
		go func() { j.left.Wait(); s.free <- j.b[:cap(j.b)] }()
	}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if used == len(buf) {
			ship()
			buf, used = <-s.free, 0
		}
		err = readExactly(path, buf[used:used+s.size])
		if archive.DigestOf(buf[used:used+s.size]) == (archive.Digest{}) {
			t.Error("a digest of zeros")
		}
		used += s.size
		return err
	})
	if err != nil {
		t.Error(err)
	}
	ship()
	for _, l := range s.lanes {
		close(l)
	}
	s.done.Wait()
}

func readExactly(path string, b []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.ReadFull(f, b)
	return err
}
