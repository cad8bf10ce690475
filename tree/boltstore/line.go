package boltstore

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/bonafide-archive/bonafide/tree"
)

const batchRows, batchBytes = 512, 1 << 17

// batch is a run of copied pairs.
type batch struct {
	pairs   []tree.Pair
	size    int    // of the pairs
	apart   bool   // each pair has memory of its own
	mem     []byte // else they lie here
	leaf    tree.LeafHasher
	digests []tree.Hash
	hashed  chan struct{}
	chunks  []tree.Chunk // for Build: those complete with these pairs
}

func (b *batch) full() bool { return len(b.pairs) >= batchRows || b.size >= batchBytes }

func (b *batch) empty() { b.mem, b.pairs, b.chunks, b.size = b.mem[:0], b.pairs[:0], b.chunks[:0], 0 }

// add copies a pair. What was copied before stays where it is.
func (b *batch) add(name, val []byte) {
	n := len(name)
	row := append(append(b.room(n+len(val)), name...), val...)
	b.pairs = append(b.pairs, tree.Pair{Name: row[:n:n], Val: row[n:len(row):len(row)]})
	b.size += len(row)
}

// room is an empty slice with room for n bytes.
func (b *batch) room(n int) []byte {
	if b.apart {
		return make([]byte, 0, n)
	}
	if cap(b.mem)-len(b.mem) < n {
		b.mem = make([]byte, 0, batchBytes+tree.MaxName+tree.MaxVal)
	}
	from := len(b.mem)
	b.mem = b.mem[:from+n]
	return b.mem[from : from : from+n]
}

func (b *batch) hash() {
	b.digests = b.digests[:0]
	for _, p := range b.pairs {
		b.digests = append(b.digests, b.leaf.Hash(p.Name, p.Val))
	}
	close(b.hashed)
}

// addTo adds to h the pairs that keep wants; nil: all.
func (b *batch) addTo(h *tree.Hasher, keep func(name, val []byte) bool) error {
	for i, p := range b.pairs {
		if keep != nil && !keep(p.Name, p.Val) {
			continue
		}
		if err := h.AddLeaf(p.Name, b.digests[i]); err != nil {
			return fmt.Errorf("%q: %w", p.Name, err)
		}
	}
	return nil
}

// line makes the leaf digests of batches on all processors and hands them on
// in the order in which they came, from stage to stage, each a goroutine.
type line struct {
	ctx   context.Context
	stop  context.CancelCauseFunc
	free  chan *batch
	work  chan *batch
	order chan *batch
	wg    sync.WaitGroup
}

// newLine begins a line of these stages. They must not keep what they get.
func newLine(ctx context.Context, stages ...func(*batch) error) *line {
	workers := runtime.GOMAXPROCS(0)
	depth := 4 * workers
	l := &line{free: make(chan *batch, depth), work: make(chan *batch, depth), order: make(chan *batch, depth)}
	l.ctx, l.stop = context.WithCancelCause(ctx)
	for range depth {
		l.free <- new(batch)
	}
	for range workers {
		l.wg.Go(func() {
			for b := range l.work {
				b.hash()
			}
		})
	}
	next := l.order
	for i, do := range stages {
		in, out := next, l.free
		if i < len(stages)-1 {
			out = make(chan *batch, depth)
		}
		l.wg.Go(func() { l.stage(in, out, do) })
		next = out
	}
	return l
}

// next returns an empty batch, or the error that ended the line.
func (l *line) next() (*batch, error) {
	if err := context.Cause(l.ctx); err != nil {
		return nil, err
	}
	select {
	case b := <-l.free:
		b.empty()
		b.hashed = make(chan struct{})
		return b, nil
	case <-l.ctx.Done():
		return nil, context.Cause(l.ctx)
	}
}

// put sends a batch from next down the line. It does not block.
func (l *line) put(b *batch) {
	l.order <- b
	l.work <- b
}

// stage does one step for all batches, and passes them on.
func (l *line) stage(in, out chan *batch, do func(*batch) error) {
	for b := range in {
		<-b.hashed
		if l.ctx.Err() == nil {
			if err := do(b); err != nil {
				l.stop(err)
			}
		}
		out <- b
	}
	if out != l.free {
		close(out)
	}
}

// end waits until the line is empty and returns the error that ended it, if
// any; err, if not nil, ends it.
func (l *line) end(err error) error {
	if err != nil {
		l.stop(err)
	}
	close(l.work)
	close(l.order)
	l.wg.Wait()
	err = context.Cause(l.ctx)
	l.stop(nil)
	return err
}
