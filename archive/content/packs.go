package content

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/disk"
)

// packSize is the length at which a pack is closed, in bytes.
const packSize = 64 << 20

// location is where a member lies.
type location struct {
	pack  uint32
	block uint32 // offset of its header, in blocks
	size  uint32 // in bytes
	bad   bool   // its bytes were read, and are others than they should be
}

func (l location) offset() int64 { return int64(l.block) * block }
func (l location) end() int64    { return l.offset() + span(int64(l.size)) }
func (l location) place() Place  { return Place(l.pack)<<24 | Place(l.block) }

// in returns where a member lies that was found in pack n.
func (f found) in(n uint32) location {
	return location{n, uint32(f.at / block), uint32(f.size), !f.good}
}

// packs is the packed contents.
type packs struct {
	root disk.Root
	dir  string
	room *room
	// flush makes what was written to a file durable. Only a test has another
	// than fdatasync(2).
	flush func(*os.File) error

	mu     sync.RWMutex
	loaded bool
	index  map[archive.Digest]location
	live   map[uint32]int64 // of each pack: bytes of members in the index

	queue sync.Mutex // guards next
	next  *batch     // waits for turn

	// turn is held by who changes files; it guards what follows.
	turn  sync.Mutex
	cur   *os.File // is appended to; nil: none yet
	curN  uint32
	end   int64  // of cur
	least uint32 // packs below are not appended to any more
}

// batch is contents that are written together.
type batch struct {
	all  []Bytes
	done bool
	err  error
}

func newPacks(root disk.Root, room *room) *packs {
	return &packs{root: root, dir: filepath.Join(string(root), packsDir), room: room, flush: fdatasync}
}

func fdatasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

func (p *packs) path(n uint32) string { return filepath.Join(p.dir, fmt.Sprintf("%08d.tar", n)) }

// list returns the numbers of the packs that are there, in order.
func (p *packs) list() ([]uint32, error) {
	entries, err := os.ReadDir(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []uint32
	for _, e := range entries {
		var n uint32
		if _, err := fmt.Sscanf(e.Name(), "%08d.tar", &n); err == nil && filepath.Base(p.path(n)) == e.Name() {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all, err
}

// load makes the index from the packs, once. A pack that the disk does not give
// is left out: what it holds is then missing. Any other error says nothing of the
// packs, and the next load begins anew.
func (p *packs) load() error {
	p.mu.RLock()
	loaded := p.loaded
	p.mu.RUnlock()
	if loaded {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.loaded {
		return nil
	}
	p.index, p.live = make(map[archive.Digest]location), make(map[uint32]int64)
	all, err := p.list()
	if lasting(err) {
		all, err = nil, nil
	}
	for i := 0; i < len(all) && err == nil; i++ {
		err = p.loadPack(all[i], i == len(all)-1)
	}
	p.loaded = err == nil
	return err
}

// lasting says that what an error is about will not be read however often one
// tries.
func lasting(err error) bool { return isAny(judged(err), ErrMissing, ErrDamaged) }

// reload makes the index anew from the disk, when it is next asked for if that
// cannot be done at the time.
func (p *packs) reload() {
	p.turn.Lock() // nothing is written meanwhile
	defer p.turn.Unlock()
	fresh := newPacks(p.root, p.room)
	fresh.flush = p.flush
	err := fresh.load()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loaded, p.index, p.live = err == nil, fresh.index, fresh.live
}

// loadPack adds what a pack holds to the index. The newest one may have been cut
// off while it was written, so all of it is read, and made durable before it
// counts as held: it may be in the page cache alone.
func (p *packs) loadPack(n uint32, newest bool) error {
	f, info, err := openRegular(p.path(n), os.O_RDONLY)
	if lasting(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if newest && p.flush(f) != nil {
		return nil
	}
	p.live[n] += 0
	scan(f, info.Size(), newest, func(m found) {
		if !m.removed {
			p.set(m.digest, m.in(n))
		}
	})
	return nil
}

// set makes l the place of a content, unless it is known to be bad and another
// may be good. The caller holds mu.
func (p *packs) set(d archive.Digest, l location) {
	old, ok := p.index[d]
	if ok && l.bad && !old.bad {
		return
	}
	if ok {
		p.live[old.pack] -= span(int64(old.size))
	}
	p.index[d] = l
	p.live[l.pack] += span(int64(l.size))
}

// forget takes a content out of the index, if it is still there.
func (p *packs) forget(d archive.Digest, l location) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.index[d] == l {
		delete(p.index, d)
		p.live[l.pack] -= span(int64(l.size))
	}
}

// blame notes that a content's bytes are not what they should be.
func (p *packs) blame(d archive.Digest, l location) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.index[d] == l {
		l.bad = true
		p.index[d] = l
	}
}

// find returns where a content lies, as long as its pack reaches that far. The
// error is as in Locate.
func (p *packs) find(d archive.Digest) (location, error) { return p.findBy(d, p.size) }

// findBy is find with another way to learn the length of a pack.
func (p *packs) findBy(d archive.Digest, size func(uint32) (int64, error)) (location, error) {
	if err := p.load(); err != nil {
		return location{}, err
	}
	p.mu.RLock()
	l, ok := p.index[d]
	p.mu.RUnlock()
	if !ok {
		return l, ErrMissing
	}
	if n, err := size(l.pack); err != nil || n >= l.end() {
		return l, err
	}
	n, err := p.size(l.pack)
	if err != nil {
		return l, err
	}
	if n < l.end() {
		p.forget(d, l)
	}
	return p.find(d) // it may have moved
}

// size returns the length of a pack, 0 if there is none.
func (p *packs) size(n uint32) (int64, error) {
	info, err := os.Lstat(p.path(n))
	switch {
	case err == nil && info.Mode().IsRegular():
		return info.Size(), nil
	case err == nil || none(err):
		return 0, nil
	}
	return 0, judged(err)
}

// none says that there is no file of that name.
func none(err error) bool { return errors.Is(err, fs.ErrNotExist) || irregular(err) }

// pack opens the pack of a content. It forgets what lies in one that is gone, and
// nothing for any other error.
func (p *packs) pack(d archive.Digest) (location, *os.File, os.FileInfo, error) {
	for {
		l, err := p.find(d)
		if err != nil {
			return l, nil, nil, err
		}
		f, info, err := openRegular(p.path(l.pack), os.O_RDONLY)
		if err == nil {
			return l, f, info, nil
		}
		if !none(err) {
			return l, nil, nil, judged(err)
		}
		p.forget(d, l)
	}
}

// open opens a packed content.
func (p *packs) open(d archive.Digest) (*Reader, error) {
	l, f, info, err := p.pack(d)
	if err != nil {
		return nil, err
	}
	return &Reader{io.NewSectionReader(f, l.offset()+block, int64(l.size)), f, info.ModTime()}, nil
}

// right reads a packed content and reports whether it is what it should be.
func (p *packs) right(d archive.Digest) (bool, error) {
	if l, err := p.find(d); err == nil && l.bad {
		return false, nil
	}
	_, err := p.check(d, true)
	if isAny(err, ErrMissing, ErrDamaged) {
		return false, nil
	}
	return err == nil, err
}

// check reads a packed content, off the disk unless it may be cached. The error
// is as in Locate.
func (p *packs) check(d archive.Digest, cached bool) (location, error) {
	l, f, _, err := p.pack(d)
	if err != nil {
		return l, err
	}
	defer f.Close()
	_, err = p.read(f, d, l, cached)
	return l, err
}

// read returns a member of a pack with its header and padding, checked. It blames
// the content only for bytes that are wrong, or that the disk does not give.
func (p *packs) read(f *os.File, d archive.Digest, l location, cached bool) ([]byte, error) {
	b := make([]byte, span(int64(l.size)))
	if !cached {
		unix.Fadvise(int(f.Fd()), l.offset(), int64(len(b)), unix.FADV_DONTNEED)
	}
	_, err := f.ReadAt(b, l.offset())
	switch {
	case err == io.EOF:
		err = fmt.Errorf("%w: its pack ends before it does", ErrDamaged)
	case err != nil:
		err = judged(err)
	case !(member{digest: d, size: int64(l.size)}).whole(b):
		err = fmt.Errorf("%w: other bytes than its digest says", ErrDamaged)
	}
	if errors.Is(err, ErrDamaged) {
		p.blame(d, l)
	}
	return b, err
}

// add keeps contents. Those that come while others are being written are written
// together.
func (p *packs) add(all []Bytes) error {
	if len(all) == 0 {
		return nil
	}
	p.queue.Lock()
	if p.next == nil {
		p.next = new(batch)
	}
	b := p.next
	b.all = append(b.all, all...)
	p.queue.Unlock()

	p.turn.Lock()
	defer p.turn.Unlock()
	if !b.done {
		p.queue.Lock()
		p.next = nil
		p.queue.Unlock()
		b.err, b.done = p.append(b.all), true
		b.all = nil
	}
	return b.err
}

// append writes what is not held, and right. The caller holds turn.
func (p *packs) append(all []Bytes) error {
	var missing []Bytes
	seen := make(map[archive.Digest]bool)
	for _, c := range all {
		if seen[c.Digest] {
			continue
		}
		seen[c.Digest] = true
		right, err := p.right(c.Digest)
		if err != nil {
			return err
		}
		if !right {
			missing = append(missing, c)
		}
	}
	return p.write(missing)
}

// write appends contents to as many packs as they need.
func (p *packs) write(all []Bytes) error {
	var size int64
	for _, c := range all {
		size += span(int64(len(c.Bytes)))
	}
	if size == 0 {
		return nil
	}
	left, err := p.room.take(size)
	if err != nil {
		return err
	}
	defer left.Release()
	for len(all) > 0 {
		if err := p.ready(); err != nil {
			return disk.Full(err)
		}
		n, err := p.fill(all)
		if err != nil {
			p.abandon()
			return disk.Full(err)
		}
		all = all[n:]
	}
	return nil
}

// fill appends as many contents as the current pack takes, syncs it, and then
// enters them in the index.
func (p *packs) fill(all []Bytes) (n int, err error) {
	var padding [block]byte
	w := bufio.NewWriterSize(io.NewOffsetWriter(p.cur, p.end), 1<<20)
	at := p.end
	var places []location
	for ; n < len(all) && at < packSize; n++ {
		c := all[n]
		l := location{pack: p.curN, block: uint32(at / block), size: uint32(len(c.Bytes))}
		h := member{digest: c.Digest, size: int64(len(c.Bytes))}.header()
		w.Write(h[:])
		w.Write(c.Bytes)
		w.Write(padding[:l.end()-at-block-int64(len(c.Bytes))]) // w keeps the error
		places, at = append(places, l), l.end()
	}
	if err := errors.Join(w.Flush(), p.flush(p.cur)); err != nil {
		return 0, err
	}
	p.end = at
	for i, l := range places {
		p.publish(all[i].Digest, l)
	}
	return n, nil
}

// publish enters a content that is on the disk now. A bad copy that was there
// before it marks as removed: if that fails, the newer one is found all the same.
// A good one lies in a pack that goes as soon as all of it is elsewhere.
func (p *packs) publish(d archive.Digest, l location) {
	p.mu.Lock()
	old, ok := p.index[d]
	p.set(d, l)
	p.mu.Unlock()
	if ok && old.bad {
		p.bury(d, old)
	}
}

// bury marks a member as removed in its pack, without syncing that.
func (p *packs) bury(d archive.Digest, l location) error {
	f, _, err := openRegular(p.path(l.pack), os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	m := member{digest: d, size: int64(l.size)}
	b := make([]byte, block)
	if _, err := f.ReadAt(b, l.offset()); err != nil {
		return err
	}
	if got, ok := parseHeader(b); !ok || got != m {
		return nil // no header of this member: nothing to find
	}
	m.removed = true
	h := m.header()
	_, err = f.WriteAt(h[:], l.offset())
	return err
}

// ready makes sure that there is a pack to append to, and that it is still the
// file of its name.
func (p *packs) ready() error {
	if p.cur != nil {
		at, err1 := p.cur.Stat()
		named, err2 := os.Lstat(p.path(p.curN))
		if err1 == nil && err2 == nil && os.SameFile(at, named) && p.end < packSize {
			return nil
		}
		p.leave()
	}
	if err := p.load(); err != nil {
		return err
	}
	all, err := p.list()
	if err != nil {
		return err
	}
	if n := len(all); n > 0 && all[n-1] >= p.least && p.resume(all[n-1]) {
		return nil
	}
	next := p.least
	if n := len(all); n > 0 {
		next = max(next, all[n-1]+1)
	}
	return p.begin(next)
}

// leave closes the current pack for good.
func (p *packs) leave() {
	if p.cur != nil {
		p.cur.Close()
		p.cur, p.least = nil, p.curN+1
	}
}

// abandon closes the current pack after a failure. What of it is not known to be
// on the disk is cut off, and never synced again: after a failed fsync the next
// may succeed without having written anything.
func (p *packs) abandon() {
	p.cur.Truncate(p.end)
	if p.end == 0 {
		os.Remove(p.path(p.curN))
	}
	p.leave()
}

// resume continues a pack that another process has left, cut at the end of its
// last whole member.
func (p *packs) resume(n uint32) bool {
	f, info, err := p.claim(n)
	if err != nil {
		return false
	}
	if p.flush(f) != nil {
		f.Close()
		return false
	}
	end, err := scan(f, info.Size(), true, func(m found) { p.discover(n, m) })
	if err != nil || end >= packSize || f.Truncate(end) != nil {
		f.Close()
		return false
	}
	if end < info.Size() {
		p.cut(n, end)
	}
	p.cur, p.curN, p.end = f, n, end
	return true
}

// cut takes out of the index what was in a pack from an offset on.
func (p *packs) cut(n uint32, end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, l := range p.index {
		if l.pack == n && l.offset() >= end {
			delete(p.index, d)
			p.live[n] -= span(int64(l.size))
		}
	}
}

// claim opens a pack and locks it: it fails if another store appends to it.
func (p *packs) claim(n uint32) (*os.File, os.FileInfo, error) {
	f, info, err := openRegular(p.path(n), os.O_RDWR)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// discover enters what another store has appended to a pack since it was loaded.
func (p *packs) discover(n uint32, m found) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, ok := p.index[m.digest]; !m.removed && m.good && (!ok || old.bad) {
		p.set(m.digest, m.in(n))
	}
}

// begin makes a new pack.
func (p *packs) begin(n uint32) error {
	if err := p.root.Mkdir(p.dir); err != nil {
		return err
	}
	f, err := os.OpenFile(p.path(n), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	p.cur, p.curN, p.end = f, n, 0
	if err := errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), disk.SyncDir(p.dir)); err != nil {
		p.abandon()
		return err
	}
	return nil
}

func (p *packs) close() error {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.leave()
	return nil
}
