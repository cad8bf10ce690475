package cmd

import (
	"cmp"
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
)

// hashed is how many bytes there are and what they hash to, which says what
// content they are.
type hashed struct {
	Digest archive.Digest // SHA-256
	Size   uint64         // in bytes
}

// of reports whether these are the bytes of a content.
func (m hashed) of(c archive.Content) bool { return m.Digest == c.Digest && m.Size == c.Size }

// hasher is what hashes one file after another, without a need of memory for each.
type hasher struct {
	buf [128 << 10]byte
	sum hash.Hash
}

var hashers = sync.Pool{New: func() any { return &hasher{sum: sha256.New()} }}

func hashOf(ctx context.Context, r io.Reader) (hashed, error) {
	h := hashers.Get().(*hasher)
	defer hashers.Put(h)
	return h.read(ctx, func(b []byte) (int, bool, error) {
		n, err := r.Read(b)
		if err == io.EOF {
			return n, true, nil
		}
		return n, false, err
	})
}

// read hashes what more reads, until it says that this was the last.
func (h *hasher) read(ctx context.Context, more func([]byte) (n int, last bool, err error)) (m hashed, err error) {
	h.sum.Reset()
	for last := false; err == nil && !last && ctx.Err() == nil; {
		n := 0
		n, last, err = more(h.buf[:])
		h.sum.Write(h.buf[:n])
		m.Size += uint64(n)
	}
	h.sum.Sum(m.Digest[:0])
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return m, err
}

// hashFile hashes a file that was regular when it was found, and tells how many bytes
// it reads if told is not nil. It makes four system
// calls for a small one: half of those of an os.File, which asks whether it can be
// waited for, and reads once more to find the end.
func hashFile(ctx context.Context, path string, told func(n int)) (m hashed, err error) {
	fd, err := openRaw(path)
	if err != nil {
		return m, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return m, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return m, errIrregular
	}
	h := hashers.Get().(*hasher)
	defer hashers.Put(h)
	left := st.Size
	return h.read(ctx, func(b []byte) (int, bool, error) {
		n, err := readRaw(fd, b)
		if err != nil {
			return 0, true, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		left -= int64(n)
		if told != nil {
			told(n)
		}
		// A short read is the end if the size says so too: some file systems
		// return less than there is, others know no sizes.
		return n, n == 0 || n < len(b) && left == 0, nil
	})
}

// openRaw opens a file for reading, and neither follows a link nor waits for the
// writer of a pipe.
func openRaw(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func readRaw(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// inOrder has work done on all cores on what feed yields, at most n things, and
// passes each to done in the order in which it was yielded: inOrderBy.
func inOrder[T any](n int, feed func(yield func(T)) error, work func(T), done func(T) error) error {
	return inOrderBy(runtime.GOMAXPROCS(0), n, feed, work, done)
}

// inOrderBy has so many workers work on what feed yields, at most n things, and
// passes each to done in the order in which it was yielded. feed never waits for
// the work. An error of done ends the work; it, or else that of feed, is returned.
func inOrderBy[T any](workers, n int, feed func(yield func(T)) error, work func(T), done func(T) error) error {
	o := &ordered[T]{todo: make(chan job[T], n), order: make(chan job[T], n), work: work}
	for range workers {
		go o.run()
	}
	fed := make(chan error, 1)
	go func() {
		defer close(o.order)
		defer close(o.todo)
		fed <- feed(o.add)
	}()
	var failed error
	for j := range o.order {
		<-j.ready
		if failed == nil {
			failed = done(j.what)
			o.over.Store(failed != nil)
		}
	}
	return cmp.Or(failed, <-fed)
}

// eachOf feeds inOrder what is known from the start.
func eachOf[T any](all []T) func(yield func(T)) error {
	return func(yield func(T)) error {
		for _, what := range all {
			yield(what)
		}
		return nil
	}
}

// ordered is things on their way through inOrder.
type ordered[T any] struct {
	todo, order chan job[T]
	work        func(T)
	over        atomic.Bool // nobody wants what is left
}

type job[T any] struct {
	what  T
	ready chan struct{}
}

func (o *ordered[T]) add(what T) {
	j := job[T]{what, make(chan struct{})}
	o.todo <- j
	o.order <- j
}

func (o *ordered[T]) run() {
	for j := range o.todo {
		if !o.over.Load() {
			o.work(j.what)
		}
		close(j.ready)
	}
}
