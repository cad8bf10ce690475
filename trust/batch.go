package trust

import (
	"context"
	"errors"
	"runtime"
	"sync"
)

// MaxWaiting is how many Lookups may wait for one device, counting those whose
// callers have gone since, as long as anybody waits with them.
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
// them. So nobody waits for more than two, whoever else asks and how often. Its
// methods may be called concurrently.
type Batch struct {
	certify Certifier

	mu      sync.Mutex
	next    *round // nil if nobody waits
	signing bool   // a goroutine is in run
}

// A round is the callers who share a signature. Until run takes it, leaves belong
// to Batch.mu, as left always does; all else belongs to run until done is closed,
// and never changes after that.
type round struct {
	ctx    context.Context // ends when all callers have gone
	cancel context.CancelFunc
	left   int // callers who have not gone

	leaves [][32]byte
	rows   [][][32]byte // of the tree over them: leaves first, root last
	done   chan struct{}
	signed Signed
	err    error
}

// NewBatch returns a Batch of callers of certify.
func NewBatch(certify Certifier) *Batch { return &Batch{certify: certify} }

// Lookup returns an attestation that answers n, and was signed after the call. It
// returns when ctx ends; the device is told so only when nobody waits any more.
func (b *Batch) Lookup(ctx context.Context, n Nonce) (Attestation, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, i, err := b.join(leaf(n))
	if err != nil {
		return nil, err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		b.leave(r)
		return nil, ctx.Err()
	}
	if r.err != nil {
		return nil, r.err
	}
	return r.signed(r.path(i)) // here, so that callers share the work as well
}

// join adds a leaf to those that the next signature is for, and returns its place.
func (b *Batch) join(leaf [32]byte) (*round, int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = newRound()
	}
	r := b.next
	if len(r.leaves) == MaxWaiting {
		return nil, 0, ErrBusy
	}
	r.leaves = append(r.leaves, leaf)
	r.left++
	if !b.signing {
		b.signing = true
		go b.run()
	}
	return r, len(r.leaves) - 1, nil
}

func newRound() *round {
	r := &round{done: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// leave takes one caller from r, and ends it with the last.
func (b *Batch) leave(r *round) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.left--; r.left > 0 {
		return
	}
	r.cancel()
	if b.next == r {
		b.next = nil
	}
}

// run answers all who wait, one signature after the other, until nobody does.
func (b *Batch) run() {
	for r := b.take(); r != nil; r = b.take() {
		r.rows = rowsOver(r.leaves)
		r.signed, r.err = b.certify(r.ctx, r.root())
		r.cancel()
		close(r.done)
		runtime.Gosched() // so that those who ask again at once share the next signature
	}
}

// take returns the round to sign for. Who comes later waits for the one after it.
func (b *Batch) take() *round {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.next
	b.next, b.signing = nil, r != nil
	return r
}

// rowsOver returns the rows of the tree over leaves, of which there is one at
// least. A hash without a neighbour moves up as it is.
func rowsOver(leaves [][32]byte) [][][32]byte {
	rows := [][][32]byte{leaves}
	for row := leaves; len(row) > 1; {
		row = parents(row)
		rows = append(rows, row)
	}
	return rows
}

func parents(row [][32]byte) [][32]byte {
	up := make([][32]byte, 0, (len(row)+1)/2)
	for i := 0; i+1 < len(row); i += 2 {
		up = append(up, node(row[i], row[i+1]))
	}
	if len(row)%2 == 1 {
		up = append(up, row[len(row)-1])
	}
	return up
}

func (r *round) root() [32]byte { return r.rows[len(r.rows)-1][0] }

// path returns the path from leaf i to the root.
func (r *round) path(i int) Path {
	p := Path{Siblings: make([][32]byte, 0, len(r.rows)-1)}
	for _, row := range r.rows {
		p.climb(row, i)
		i /= 2
	}
	return p
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
