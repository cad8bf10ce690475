package replica

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/archive"
)

var (
	submissionsBucket = []byte("submissions") // submission digest -> submission
	uploadsBucket     = []byte("uploads")     // be64 number of a batch -> uploads
)

// ErrQuota says that a writer has as much waiting as the roster gives him.
var ErrQuota = errors.New("over quota")

// Stats counts what waits for the next update phase.
type Stats struct {
	Names uint64
	Bytes uint64
}

// Pending is the buffer of submissions that wait for the next update phase.
// What it acknowledges is on the disk. It knows too which contents were
// uploaded and are not bound yet. Its methods may be called concurrently.
type Pending struct {
	db     *bbolt.DB
	opened *os.File // the file of db
	path   string
	file   fs.FileInfo // of path, when it was opened
	lock   *os.File
	damage error       // what was found when it was opened, and not kept
	broken atomic.Bool // bbolt panicked and kept its locks: db is not to be used or closed again

	commit  chan struct{} // full while one writes for all that queue
	copying bool          // the file is being made: it is checked when it is whole

	beginning sync.Mutex // held while a transaction begins

	mu      sync.Mutex // guards all below
	queue   []*put
	held    map[archive.Digest]bool  // submissions
	room    room                     // in the body that they will make
	writers map[archive.KeyID]Stats  // of their submissions
	bodies  map[archive.KeyID]uint64 // bytes of their submissions
	stored  map[archive.KeyID]uint64 // bytes stored and not bound
	uploads map[archive.Digest]known // on the disk, or about to be
	names   map[archive.Name]int     // submissions that want it
	total   Stats
}

// put is a submission, or else what is known of uploads, on its way to the disk.
type put struct {
	sub     archive.Submission
	uploads map[archive.Digest]upload // not nil: these
	again   uint64                    // bytes of those that were known before
	learnt  []archive.Digest          // the others
	done    chan struct{}             // closed once it is written, or err says why not; nil: nobody waits
	err     error
}

// promises reports whether somebody is told that x is kept. What is known of
// uploads is for the replica's own accounts: without it they are read again.
func (x *put) promises() bool { return x.uploads == nil }

func (p *Pending) write(tx *bbolt.Tx, x *put) error {
	if x.promises() {
		b, d := tx.Bucket(submissionsBucket), x.sub.Digest()
		if p.copying { // in order
			b.FillPercent = 0.9
		}
		return b.Put(d[:], x.sub.Bytes())
	}
	return p.writeUploads(tx, x)
}

// count adds a submission to the counts, or takes it off with sign -1.
func (p *Pending) count(s archive.Submission, sign int) {
	n, size := uint64(len(s.Bindings))*uint64(sign), s.Size()*uint64(sign)
	w := p.writers[s.Writer]
	p.writers[s.Writer] = Stats{w.Names + n, w.Bytes + size}
	p.bodies[s.Writer] += bodySize(s) * uint64(sign)
	p.total = Stats{p.total.Names + n, p.total.Bytes + size}
	for _, b := range s.Bindings {
		if p.names[b.Name] += sign; p.names[b.Name] == 0 {
			delete(p.names, b.Name)
		}
	}
	if sign > 0 {
		p.held[s.Digest()] = true
		return
	}
	delete(p.held, s.Digest())
}

// Put buffers a submission; it is on the disk when Put returns. Submissions
// that come together share an fsync. One that is there already changes nothing.
func (p *Pending) Put(s archive.Submission) error { return p.admit(s, nil) }

// Admit is Put within the quota of the writer w, and within what one proposal can
// hold for him, or ErrQuota.
func (p *Pending) Admit(s archive.Submission, w archive.Writer) error {
	return p.admit(s, func(have Stats) error {
		n, size := uint64(len(s.Bindings)), s.Size()
		if have.Names+n > w.Names || have.Bytes+size > w.Bytes || have.Bytes+size < size {
			return fmt.Errorf("%w: %d names and %d bytes pending, %d and %d more, allowed %d and %d",
				ErrQuota, have.Names, have.Bytes, n, size, w.Names, w.Bytes)
		}
		if body := bodySize(s); !p.room.fits(p.bodies, s.Writer, body) {
			return fmt.Errorf("%w: submissions of %d bytes pending, and %d more do not fit into the next update phase",
				ErrQuota, p.bodies[s.Writer], body)
		}
		return nil
	})
}

func (p *Pending) admit(s archive.Submission, allowed func(Stats) error) error {
	x := &put{sub: s, done: make(chan struct{})}
	known, err := p.enqueue(x, allowed)
	if err != nil {
		return err
	}
	if !known {
		p.await(x)
		return x.err
	}
	p.commit <- struct{}{}
	defer func() { <-p.commit }()
	p.flush() // whoever brought it first has written it now, or failed to
	return cmp.Or(p.have(s.Digest()), p.onDisk(s.Digest()))
}

// onDisk checks that a submission is still on the disk.
func (p *Pending) onDisk(d archive.Digest) error {
	err := p.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(submissionsBucket)
		if b == nil || archive.DigestOf(b.Get(d[:])) != d {
			return fmt.Errorf("pending: %w: a submission is gone", ErrDamaged)
		}
		return nil
	})
	if err == nil {
		err = p.sound()
	}
	return err
}

// enqueue counts the submission, so that quotas hold among concurrent ones, and
// queues it for the disk. It reports whether the submission was there already.
func (p *Pending) enqueue(x *put, allowed func(Stats) error) (known bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held[x.sub.Digest()] {
		return true, nil
	}
	if allowed != nil {
		if err := allowed(p.writers[x.sub.Writer]); err != nil {
			return false, err
		}
	}
	p.count(x.sub, 1)
	p.queue = append(p.queue, x)
	return false, nil
}

// have returns nil if a submission is on the disk, and not only queued again
// after a write that failed. The caller holds commit.
func (p *Pending) have(d archive.Digest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	queued := slices.ContainsFunc(p.queue, func(x *put) bool { return x.promises() && x.sub.Digest() == d })
	if queued || !p.held[d] {
		return errors.New("pending: write failed")
	}
	return nil
}

// await flushes x, or waits until another has, with all that had queued by then.
func (p *Pending) await(x *put) {
	select {
	case <-x.done:
	case p.commit <- struct{}{}:
		defer func() { <-p.commit }()
		select {
		case <-x.done:
		default:
			p.flush()
		}
	}
}

// flush writes all that is queued in one transaction. The caller holds commit.
func (p *Pending) flush() error {
	p.mu.Lock()
	batch := p.queue
	p.queue = nil
	p.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	err := p.update(func(tx *bbolt.Tx) error {
		for _, x := range batch {
			if err := p.write(tx, x); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && !p.copying && slices.ContainsFunc(batch, (*put).promises) {
		err = p.sound()
	}
	if err != nil {
		p.fail(batch, err)
	}
	for _, x := range batch {
		if x.done != nil {
			close(x.done)
		}
	}
	return err
}

// fail takes back what was counted of a batch that could not be written.
func (p *Pending) fail(batch []*put, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range batch {
		x.err = err
		if x.promises() {
			p.count(x.sub, -1)
		}
		p.unlearn(x)
	}
}

// Each calls fn with every submission, in the order of their digests. Rows that
// are not what their digest says are left out.
func (p *Pending) Each(fn func(archive.Submission) error) error {
	return p.each(submissionsBucket, func(k, v []byte) error {
		if d := archive.DigestOf(v); !bytes.Equal(k, d[:]) {
			return nil
		}
		s, err := archive.ParseSubmission(v)
		if err != nil {
			return nil
		}
		return fn(s)
	})
}

func (p *Pending) each(bucket []byte, fn func(key, val []byte) error) error {
	return p.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucket)
		if b == nil {
			return fmt.Errorf("pending: %w: no %s", ErrDamaged, bucket)
		}
		return b.ForEach(func(k, v []byte) error { return fn(k, append([]byte(nil), v...)) })
	})
}

// Drop takes submissions off the buffer.
func (p *Pending) Drop(digests []archive.Digest) error {
	gone := make([]archive.Submission, 0, len(digests))
	err := p.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(submissionsBucket)
		for _, d := range digests {
			s, err := archive.ParseSubmission(b.Get(d[:]))
			if err := b.Delete(d[:]); err != nil {
				return err
			}
			if err == nil {
				gone = append(gone, s)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("drop from pending: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range gone {
		if p.held[s.Digest()] {
			p.count(s, -1)
		}
	}
	return nil
}

// Stats returns what waits from one writer.
func (p *Pending) Stats(writer archive.KeyID) Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.writers[writer]
}

// Total returns what waits from all writers.
func (p *Pending) Total() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

// Wants reports whether some submission asks for the name.
func (p *Pending) Wants(n archive.Name) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.names[n] > 0
}

// wantedNames returns all names that submissions ask for, none of them found
// yet.
func (p *Pending) wantedNames() map[archive.Name]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[archive.Name]bool, len(p.names))
	for n := range p.names {
		out[n] = false
	}
	return out
}
