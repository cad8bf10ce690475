package trust

import (
	"context"
	"errors"
	"math/bits"
	"sync"
	"sync/atomic"
)

// MaxWaiting is how many Lookups may wait for one device, counting those whose
// callers have gone since.
const MaxWaiting = 1 << maxDepth

// ErrBusy is returned by Lookup when MaxWaiting callers wait already.
var ErrBusy = errors.New("too many callers wait for the trusted device")

// A Certifier has a device sign one root: once at a time, however many wait. The
// state that is signed is no older than the call.
type Certifier func(ctx context.Context, root [32]byte) (Signed, error)

// Signed makes the attestation that one signed root is for the nonce at the foot
// of a path to it.
type Signed func(Path) (Attestation, error)

// A Batch lets many callers share a device that signs slowly: while it signs for
// some, the nonces of those who come gather, and the next signature is for all of
// them. So nobody waits for more than two. Its methods may be called
// concurrently.
type Batch struct {
	certify Certifier

	mu      sync.Mutex
	waiting []*lookup
	signing bool // a goroutine is in run
}

// lookup is one caller. att and err belong to run until done is closed.
type lookup struct {
	ctx   context.Context
	nonce Nonce
	done  chan struct{}
	att   Attestation
	err   error
}

// NewBatch returns a Batch of callers of certify.
func NewBatch(certify Certifier) *Batch { return &Batch{certify: certify} }

// Lookup returns an attestation that answers n, and was signed after the call. It
// returns when ctx ends; the device is told so only when nobody waits any more.
func (b *Batch) Lookup(ctx context.Context, n Nonce) (Attestation, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l := &lookup{ctx: ctx, nonce: n, done: make(chan struct{})}
	if err := b.enqueue(l); err != nil {
		return nil, err
	}
	select {
	case <-l.done:
		return l.att, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *Batch) enqueue(l *lookup) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == MaxWaiting {
		return ErrBusy
	}
	b.waiting = append(b.waiting, l)
	if !b.signing {
		b.signing = true
		go b.run()
	}
	return nil
}

// run answers all who wait, one signature after the other, until nobody does.
func (b *Batch) run() {
	for {
		b.mu.Lock()
		all := b.waiting
		b.waiting = nil
		b.signing = len(all) > 0
		b.mu.Unlock()
		if len(all) == 0 {
			return
		}
		b.answer(all)
	}
}

// answer has one signature made for all.
func (b *Batch) answer(all []*lookup) {
	ctx, cancel := whileAny(all)
	defer cancel()
	root, paths := gather(all)
	signed, err := b.certify(ctx, root)
	for i, l := range all {
		if l.err = err; err == nil {
			l.att, l.err = signed(paths[i])
		}
		close(l.done)
	}
}

// whileAny returns a context that ends when those of all callers have.
func whileAny(all []*lookup) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	var left atomic.Int64
	left.Store(int64(len(all)))
	stops := make([]func() bool, len(all))
	for i, l := range all {
		stops[i] = context.AfterFunc(l.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}

// gather returns the root over the nonces of all, in order, and the path of each
// to it. A hash without a neighbour moves up as it is.
func gather(all []*lookup) (root [32]byte, paths []Path) {
	row := make([][32]byte, len(all))
	for i, l := range all {
		row[i] = leaf(l.nonce)
	}
	paths = make([]Path, len(all))
	depth := bits.Len(uint(len(all) - 1))
	steps := make([][32]byte, depth*len(all))
	for i := range paths {
		paths[i].Siblings = steps[i*depth : i*depth : (i+1)*depth]
	}
	for span := 1; len(row) > 1; span *= 2 {
		for i := range paths {
			paths[i].climb(row, i/span)
		}
		row = parents(row)
	}
	return row[0], paths
}

// climb adds the step from hash i of a row to its parent.
func (p *Path) climb(row [][32]byte, i int) {
	sib := i ^ 1
	if sib == len(row) {
		return // no neighbour
	}
	if sib < i {
		p.Sides |= 1 << len(p.Siblings)
	}
	p.Siblings = append(p.Siblings, row[sib])
}

func parents(row [][32]byte) [][32]byte {
	up := row[:0:0]
	for i := 0; i+1 < len(row); i += 2 {
		up = append(up, node(row[i], row[i+1]))
	}
	if len(row)%2 == 1 {
		up = append(up, row[len(row)-1])
	}
	return up
}
