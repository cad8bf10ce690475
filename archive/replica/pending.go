package replica

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

var (
	submissionsBucket = []byte("submissions") // submission digest -> submission
	uploadsBucket     = []byte("uploads")     // content digest -> upload
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

	commit sync.Mutex // held by the one who writes for all that queue

	beginning sync.Mutex // held while a transaction begins

	mu      sync.Mutex // guards all below
	queue   []*put
	held    map[archive.Digest]bool  // submissions
	writers map[archive.KeyID]Stats  // of their submissions
	stored  map[archive.KeyID]uint64 // bytes stored and not bound
	names   map[archive.Name]int     // submissions that want it
	total   Stats
}

// put is a submission, or else what is known of uploads, on its way to the disk.
type put struct {
	sub     archive.Submission
	uploads map[archive.Digest]upload // not nil: these
	again   uint64                    // bytes of those that were known before
	err     error
}

func (x *put) write(tx *bbolt.Tx) error {
	if x.uploads == nil {
		d := x.sub.Digest()
		return tx.Bucket(submissionsBucket).Put(d[:], x.sub.Bytes())
	}
	b := tx.Bucket(uploadsBucket)
	x.again = 0
	byDigest := func(a, b archive.Digest) int { return bytes.Compare(a[:], b[:]) }
	for _, d := range slices.SortedFunc(maps.Keys(x.uploads), byDigest) { // in order, bbolt is quicker
		u := x.uploads[d]
		if b.Get(d[:]) != nil {
			x.again += u.size
			continue
		}
		if err := b.Put(d[:], u.bytes()); err != nil {
			return err
		}
	}
	return nil
}

// upload is what is known of a content that came by PUT.
type upload struct {
	writer archive.KeyID
	size   uint64
	blocks archive.Digest
	at     int64 // unix seconds
}

// openPending opens the buffer at path. Since bbolt must not write to a file that
// is damaged, and cannot tell, the rows that vouch for themselves are moved to a
// new file first. Of a damaged file that which can be read is kept, and the file
// set aside.
func openPending(path string) (*Pending, error) {
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	p, err := renewed(path)
	if errors.Is(err, ErrFull) { // no room for a new one: better the old than none
		p, err = loaded(path)
	}
	if err == nil {
		p.file, err = os.Stat(path)
	}
	if err != nil {
		lock.Close()
		return nil, err
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

// renewed makes a new file from the rows of the one at path, puts it in its
// place and returns it open.
func renewed(path string) (*Pending, error) {
	fresh := path + ".new"
	if err := errors.Join(evict(path), os.RemoveAll(fresh)); err != nil {
		return nil, err
	}
	p, err := loaded(fresh)
	if err != nil {
		return nil, err
	}
	damage, err := p.takeRows(path)
	if err == nil && damage != nil {
		err = setAside(path)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		p.closeFile()
		os.Remove(fresh)
		return nil, full(err)
	}
	p.damage = damage
	return p, nil
}

// setAside keeps a damaged file under another name. It stays at path too, until
// the new one takes its place: after a crash in between its rows are still found.
func setAside(path string) error {
	aside := path + ".damaged"
	return errors.Join(os.RemoveAll(aside), os.Link(path, aside))
}

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
	p := new(Pending)
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

// takeRows copies the rows of another buffer that vouch for themselves: the key
// of a submission is its digest. damage says why not all could be read; err, why
// they could not be written.
func (p *Pending) takeRows(path string) (damage, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil { // it says nothing of what is in the file
		return nil, err
	}
	defer f.Close()
	readable, damage := boltstore.CheckFile(path)
	if readable {
		lost, err := p.takeReadable(path)
		if err != nil {
			return nil, err
		}
		damage = errors.Join(damage, lost)
	}
	if damage != nil {
		err = p.salvage(f)
	}
	return damage, err
}

// takeReadable copies what bbolt finds in a file.
func (p *Pending) takeReadable(path string) (damage, err error) {
	old, damage := openGuarded(path, true)
	if damage != nil {
		return damage, nil
	}
	defer old.closeFile()
	damage = old.Each(func(s archive.Submission) error {
		err = p.copy(s)
		return err
	})
	if err == nil {
		err = p.flush()
	}
	if err != nil {
		return nil, err
	}
	lost, err := p.takeUploads(old)
	return errors.Join(damage, lost), err
}

// salvage copies the submissions that lie anywhere in a damaged file. Some may
// have been dropped before; they will be again.
func (p *Pending) salvage(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	err = boltstore.Salvage(f, info.Size(), func(key, val []byte) error {
		d := archive.DigestOf(val)
		if !bytes.Equal(key, d[:]) {
			return nil
		}
		s, err := archive.ParseSubmission(slices.Clone(val))
		if err != nil {
			return nil
		}
		return p.copy(s)
	})
	return errors.Join(err, p.flush())
}

// copy takes over a submission, for the next flush.
func (p *Pending) copy(s archive.Submission) error {
	_, err := p.enqueue(&put{sub: s}, nil)
	if err == nil && len(p.queue) >= copyBatch {
		err = p.flush()
	}
	return err
}

// copyBatch is how many submissions are copied in one transaction.
const copyBatch = 256

// takeUploads copies what is known of uploads. It is only of use, not needed.
func (p *Pending) takeUploads(old *Pending) (damage, err error) {
	all := make(map[archive.Digest]upload)
	damage = old.eachUpload(func(d archive.Digest, u upload) error { all[d] = u; return nil })
	err = p.update(func(tx *bbolt.Tx) error {
		for d, u := range all {
			if err := tx.Bucket(uploadsBucket).Put(d[:], u.bytes()); err != nil {
				return err
			}
			p.stored[u.writer] += u.size
		}
		return nil
	})
	return damage, err
}

// load makes the buckets, and the counts from the rows.
func (p *Pending) load() error {
	p.held = make(map[archive.Digest]bool)
	p.writers = make(map[archive.KeyID]Stats)
	p.stored = make(map[archive.KeyID]uint64)
	p.names = make(map[archive.Name]int)
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
	return p.eachUpload(func(_ archive.Digest, u upload) error { p.stored[u.writer] += u.size; return nil })
}

func (p *Pending) close() error { return errors.Join(p.closeFile(), p.lock.Close()) }

// count adds a submission to the counts, or takes it off with sign -1.
func (p *Pending) count(s archive.Submission, sign int) {
	n, size := uint64(len(s.Bindings))*uint64(sign), s.Size()*uint64(sign)
	w := p.writers[s.Writer]
	p.writers[s.Writer] = Stats{w.Names + n, w.Bytes + size}
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

// Admit is Put within the quota of the writer w, or ErrQuota.
func (p *Pending) Admit(s archive.Submission, w archive.Writer) error {
	return p.admit(s, func(have Stats) error {
		n, size := uint64(len(s.Bindings)), s.Size()
		if have.Names+n > w.Names || have.Bytes+size > w.Bytes || have.Bytes+size < size {
			return fmt.Errorf("%w: %d names and %d bytes pending, %d and %d more, allowed %d and %d",
				ErrQuota, have.Names, have.Bytes, n, size, w.Names, w.Bytes)
		}
		return nil
	})
}

func (p *Pending) admit(s archive.Submission, allowed func(Stats) error) error {
	x := &put{sub: s}
	known, err := p.enqueue(x, allowed)
	if err != nil {
		return err
	}
	p.commit.Lock()
	defer p.commit.Unlock()
	p.flush()
	if known { // whoever brought it first has written it, or failed to
		return cmp.Or(p.have(s.Digest()), p.onDisk(s.Digest()))
	}
	return x.err
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
	queued := slices.ContainsFunc(p.queue, func(x *put) bool { return x.uploads == nil && x.sub.Digest() == d })
	if queued || !p.held[d] {
		return errors.New("pending: write failed")
	}
	return nil
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
			if err := x.write(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = p.sound()
	}
	if err == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range batch {
		x.err = err
		if x.uploads == nil {
			p.count(x.sub, -1)
		}
	}
	return err
}

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
// acknowledged.
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

// Each calls fn with every submission, in the order of their digests. Rows that
// are not what their digest says are left out.
func (p *Pending) Each(fn func(archive.Submission) error) error {
	return p.each(submissionsBucket, func(d archive.Digest, v []byte) error {
		if archive.DigestOf(v) != d {
			return nil
		}
		s, err := archive.ParseSubmission(v)
		if err != nil {
			return nil
		}
		return fn(s)
	})
}

func (p *Pending) each(bucket []byte, fn func(archive.Digest, []byte) error) error {
	return p.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucket)
		if b == nil {
			return fmt.Errorf("pending: %w: no %s", ErrDamaged, bucket)
		}
		return b.ForEach(func(k, v []byte) error {
			if len(k) != len(archive.Digest{}) {
				return nil
			}
			return fn(archive.Digest(k), append([]byte(nil), v...))
		})
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

// reserveUpload charges a writer for contents that are about to come.
func (p *Pending) reserveUpload(w archive.Writer, id archive.KeyID, size uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if have := p.stored[id]; have+size > w.Bytes || have+size < size {
		return fmt.Errorf("%w: %d bytes stored and not bound, %d more, allowed %d", ErrQuota, have, size, w.Bytes)
	}
	p.stored[id] += size
	return nil
}

// chargeUpload adds to what a writer is charged, whatever his quota.
func (p *Pending) chargeUpload(id archive.KeyID, size uint64) { p.releaseUpload(id, -size) }

// releaseUpload takes back a charge.
func (p *Pending) releaseUpload(id archive.KeyID, size uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stored[id] -= size
}

// putUploads remembers contents that have come from one writer and are charged
// to him. Calls that come together share an fsync. The charge for those that were
// known before is taken back.
func (p *Pending) putUploads(id archive.KeyID, all map[archive.Digest]upload) error {
	x := &put{uploads: all}
	p.mu.Lock()
	p.queue = append(p.queue, x)
	p.mu.Unlock()
	p.commit.Lock()
	p.flush()
	p.commit.Unlock()
	if x.err == nil {
		p.releaseUpload(id, x.again)
	}
	return x.err
}

// upload returns what is known of an uploaded content.
func (p *Pending) upload(d archive.Digest) (u upload, ok bool) {
	p.view(func(tx *bbolt.Tx) error {
		u, ok = parseUpload(tx.Bucket(uploadsBucket).Get(d[:]))
		return nil
	})
	return u, ok
}

func (p *Pending) eachUpload(fn func(archive.Digest, upload) error) error {
	return p.each(uploadsBucket, func(d archive.Digest, v []byte) error {
		u, ok := parseUpload(v)
		if !ok {
			return nil
		}
		return fn(d, u)
	})
}

// dropUploads forgets contents that are bound, or gone.
func (p *Pending) dropUploads(all map[archive.Digest]upload) error {
	err := p.update(func(tx *bbolt.Tx) error {
		for d := range all {
			if err := tx.Bucket(uploadsBucket).Delete(d[:]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("drop uploads: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range all {
		p.stored[u.writer] -= u.size
	}
	return nil
}

const uploadRow = 32 + 8 + 32 + 8

// bytes returns writer || be64 size || block root || be64 time.
func (u upload) bytes() []byte {
	b := append(make([]byte, 0, uploadRow), u.writer[:]...)
	b = binary.BigEndian.AppendUint64(b, u.size)
	b = append(b, u.blocks[:]...)
	return binary.BigEndian.AppendUint64(b, uint64(u.at))
}

func parseUpload(b []byte) (u upload, ok bool) {
	if len(b) != uploadRow {
		return upload{}, false
	}
	copy(u.writer[:], b)
	u.size = binary.BigEndian.Uint64(b[32:])
	copy(u.blocks[:], b[40:])
	u.at = int64(binary.BigEndian.Uint64(b[72:]))
	return u, true
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
