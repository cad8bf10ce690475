package cmd

import (
	"cmp"
	"context"
	"crypto/sha256"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

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

// buffers are what files are read through.
var buffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

func hashOf(ctx context.Context, r io.Reader) (m hashed, err error) {
	b := buffers.Get().(*[128 << 10]byte)
	defer buffers.Put(b)
	h := sha256.New()
	for err == nil && ctx.Err() == nil {
		n := 0
		n, err = r.Read(b[:])
		h.Write(b[:n])
		m.Size += uint64(n)
	}
	m.Digest = archive.Digest(h.Sum(nil))
	if err == nil || ctx.Err() != nil {
		return m, ctx.Err()
	}
	if err == io.EOF {
		err = nil
	}
	return m, err
}

// hashFile hashes a regular file.
func hashFile(ctx context.Context, path string) (hashed, error) {
	f, err := openRegular(path)
	if err != nil {
		return hashed{}, err
	}
	defer f.Close()
	return hashOf(ctx, f)
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
