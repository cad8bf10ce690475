package replica

import (
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// openPending opens the buffer at path. Since bbolt must not write to a file that
// is damaged, and cannot tell, the rows that vouch for themselves are moved to a
// new file first, if they are to be kept. Of a damaged file that which can be read
// is kept, and the file set aside.
func openPending(path string, keep sieve) (*Pending, error) {
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	p, err := renewed(path, keep)
	if errors.Is(err, ErrFull) { // no room for a new one: better the old than none
		p, err = loaded(path)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	if p.file, err = os.Stat(path); err != nil {
		return nil, errors.Join(err, p.closeFile(), lock.Close())
	}
	p.path, p.lock = path, lock
	return p, nil
}

// lockFile takes the lock that keeps other processes out, and waits a little for
// one that is just ending.
func lockFile(path string) (*os.File, error) {
	if err := evict(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for late := time.Now().Add(lockWait); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if time.Now().After(late) {
			f.Close()
			return nil, fmt.Errorf("%s: held by another process", path)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

const lockWait = 2 * time.Second

// loaded opens a buffer that is as it was written.
func loaded(path string) (*Pending, error) {
	p, err := openGuarded(path, false)
	if err != nil {
		return nil, full(err)
	}
	if err := guard(p.load); err != nil {
		p.closeFile()
		return nil, full(err)
	}
	return p, nil
}

// openGuarded opens a file that may be damaged.
func openGuarded(path string, readOnly bool) (*Pending, error) {
	p := &Pending{room: roomFor(1), commit: make(chan struct{}, 1)}
	o := &bbolt.Options{Timeout: lockWait, ReadOnly: readOnly}
	o.OpenFile = func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
		f, err = os.OpenFile(name, flag, mode)
		p.opened = f
		return f, err
	}
	if !readOnly {
		o.InitialMmapSize = 64 << 20
	}
	err := guard(func() (err error) {
		p.db, err = bbolt.Open(path, 0o600, o)
		return err
	})
	if err != nil && p.opened != nil {
		p.abandon()
	}
	return p, err
}

// closeFile closes a file that may be damaged.
func (p *Pending) closeFile() error {
	if p.broken.Load() { // Close would wait for the write for ever
		return p.abandon()
	}
	return guard(p.db.Close)
}

// abandon gives the file up, but for what is mapped of it.
func (p *Pending) abandon() error {
	unix.Flock(int(p.opened.Fd()), unix.LOCK_UN) // the mapping would keep it
	if err := p.opened.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// load makes the buckets, and the counts from the rows.
func (p *Pending) load() error {
	p.held = make(map[archive.Digest]bool)
	p.writers = make(map[archive.KeyID]Stats)
	p.bodies = make(map[archive.KeyID]uint64)
	p.stored = make(map[archive.KeyID]uint64)
	p.names = make(map[archive.Name]int)
	p.uploads = make(map[archive.Digest]known)
	err := p.update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{submissionsBucket, uploadsBucket} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := p.Each(func(s archive.Submission) error { p.count(s, 1); return nil }); err != nil {
		return err
	}
	return p.readUploads(func(batch uint64, d archive.Digest, u upload) {
		if _, twice := p.uploads[d]; !twice {
			p.stored[u.writer] += u.size
		}
		p.uploads[d] = known{u, batch}
	})
}

func (p *Pending) close() error { return errors.Join(p.closeFile(), p.lock.Close()) }

// update runs f in a write transaction and commits. After a panic nothing is
// written to the file again: the next process saves what can be read of it.
func (p *Pending) update(f func(*bbolt.Tx) error) error {
	tx, err := p.begin(true)
	if err != nil {
		return err
	}
	err = p.whole(func() error {
		if err := f(tx); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	})
	if err != nil {
		return full(err)
	}
	return p.reachable()
}

// sound checks the pages of the file: what is written to a damaged one may be
// out of reach, or be overwritten by the next write, and must not be
// acknowledged. It reads them all each time: whoever owns the disk may have
// changed any since, and that the list of free pages names one in use shows only
// when all in use are known.
func (p *Pending) sound() error {
	err := p.view(func(tx *bbolt.Tx) error { return boltstore.CheckPages(p.opened, tx) })
	if errors.Is(err, boltstore.ErrDamaged) {
		err = fmt.Errorf("pending: %w: %w", ErrDamaged, err)
	}
	return err
}

// begin begins a transaction, unless the meta pages are damaged: bbolt would
// panic and keep its locks.
func (p *Pending) begin(writable bool) (tx *bbolt.Tx, err error) {
	p.beginning.Lock()
	defer p.beginning.Unlock()
	if p.broken.Load() {
		return nil, fmt.Errorf("pending: %w: it was found so before", ErrDamaged)
	}
	if err := boltstore.CheckMeta(p.opened, os.Getpagesize()); err != nil {
		return nil, fmt.Errorf("pending: %w: %w", ErrDamaged, err)
	}
	err = p.whole(func() (err error) {
		tx, err = p.db.Begin(writable)
		return err
	})
	return tx, err
}

// whole runs f, guarded. When it does not come to its end, db is lost.
func (p *Pending) whole(f func() error) error {
	done := false
	err := guard(func() error {
		err := f()
		done = true
		return err
	})
	if !done {
		p.broken.Store(true)
	}
	return err
}

// view runs f, guarded, in a read transaction.
func (p *Pending) view(f func(*bbolt.Tx) error) error {
	tx, err := p.begin(false)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	return guard(func() error { return f(tx) })
}

// errLost says that what was written is not where the next process will look.
var errLost = errors.New("the pending buffer was removed or replaced under the process")

// reachable checks that the file is still at its path: what is written to one
// that was removed must not be acknowledged.
func (p *Pending) reachable() error {
	if p.path == "" { // it is being made
		return nil
	}
	if at, err := os.Stat(p.path); err != nil || !os.SameFile(at, p.file) {
		return errLost
	}
	return nil
}
