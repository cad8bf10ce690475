package boltstore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// pages checks the B+ trees under the rows with plain, bounded reads of the
// file: what bbolt's own reading takes for granted, and the digests cannot
// see. A wrong key in a branch hides names from a search that a walk still
// meets; a branch that leads back to itself would never end.
//
// The layout, in the machine's byte order (we take little-endian):
//
//	page     u64 id, u16 flags, u16 count, u32 overflow, elements
//	branch   u32 pos, u32 len(key), u64 page; pos counts from the element
//	leaf     u32 flags, u32 pos, u32 len(key), u32 len(value)
//	bucket   the value of a leaf with flag 1: u64 page, u64 sequence;
//	         page 0: the page itself follows
type pages struct {
	file   io.ReaderAt
	size   int    // of a page
	limit  uint64 // pages in use, and in the file
	seen   []atomic.Bool
	path   []uint64
	bufs   [][]byte // one for each page on the path
	skim   bool     // look at branches only
	whole  bool     // not one of several walks
	cyclic bool
	report func(bucket string, s span, err error) // may be called concurrently
}

const (
	pageHeader, element     = 16, 16
	branchPage, leafPage    = 1, 2
	metaPage                = 4
	freelistPage, subBucket = 16, 1
	metaMagic, metaSize     = 0xED0CDAED, 64
	maxPath                 = 64
)

var errCycle = errors.New("pages in a circle")

// checkPages checks all buckets of tx.
func checkPages(file *os.File, tx *bolt.Tx, skim bool, report func(bucket string, s span, err error)) (cyclic bool, err error) {
	info, err := file.Stat()
	if err != nil {
		return false, err
	}
	if !skim { // from front to back, as pages may be anywhere
		_ = unix.Fadvise(int(file.Fd()), 0, info.Size(), unix.FADV_WILLNEED)
	}
	size := tx.DB().Info().PageSize
	w := &pages{file: file, size: size, skim: skim, whole: !skim, report: report}
	w.limit = uint64(min(tx.Size(), info.Size())) / uint64(size)
	w.seen = make([]atomic.Bool, w.limit)
	w.visit("", uint64(tx.Cursor().Bucket().Root()), span{})
	if !skim {
		w.metas()
		w.freelist(uint64(tx.ID()))
	}
	return w.cyclic, nil
}

func (w *pages) fail(bucket string, s span, format string, args ...any) {
	w.report(bucket, s, fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...))
}

// visit checks a page of a bucket, and all below, whose keys must lie in s. It
// says whether it was a leaf.
func (w *pages) visit(bucket string, id uint64, s span) (leaf bool) {
	if slices.Contains(w.path, id) || len(w.path) == maxPath {
		w.cyclic = true
		w.fail(bucket, s, "%w", errCycle)
		return false
	}
	p, err := w.load(id)
	if err != nil {
		w.fail(bucket, s, "page %d: %w", id, err)
		return false
	}
	w.path = append(w.path, id)
	defer func() { w.path = w.path[:len(w.path)-1] }()
	return w.check(bucket, p, s)
}

// page is the bytes of one page with what overflows it.
type page []byte

func (p page) flags() uint16    { return binary.LittleEndian.Uint16(p[8:]) }
func (p page) count() int       { return int(binary.LittleEndian.Uint16(p[10:])) }
func (p page) overflow() uint64 { return uint64(binary.LittleEndian.Uint32(p[12:])) }

func (w *pages) load(id uint64) (page, error) {
	if id < 2 || id >= w.limit {
		return nil, errors.New("no such page")
	}
	if w.seen[id].Swap(true) {
		return nil, errors.New("used twice")
	}
	p, err := w.read(id, 1)
	if err != nil {
		return nil, err
	}
	if got := binary.LittleEndian.Uint64(p); got != id {
		return nil, fmt.Errorf("calls itself %d", got)
	}
	more := p.overflow()
	if more >= w.limit-id {
		return nil, errors.New("longer than the file")
	}
	for i := id + 1; i <= id+more; i++ {
		if w.seen[i].Swap(true) {
			return nil, errors.New("overlaps another")
		}
	}
	if more > 0 && !w.skim {
		return w.read(id, int(more)+1)
	}
	return p, nil
}

// read reads n pages into the buffer of this depth.
func (w *pages) read(id uint64, n int) (page, error) {
	depth := len(w.path)
	for len(w.bufs) <= depth {
		w.bufs = append(w.bufs, nil)
	}
	w.bufs[depth] = slices.Grow(w.bufs[depth][:0], n*w.size)[:n*w.size]
	_, err := w.file.ReadAt(w.bufs[depth], int64(id)*int64(w.size))
	return w.bufs[depth], err
}

// check checks the elements of a page.
func (w *pages) check(bucket string, p page, s span) (leaf bool) {
	leaf = p.flags() == leafPage
	switch {
	case !leaf && p.flags() != branchPage:
		w.fail(bucket, s, "page is of kind %#x", p.flags())
	case leaf && w.skim && bucket != "":
	case pageHeader+p.count()*element > len(p):
		w.fail(bucket, s, "page holds %d elements", p.count())
	case leaf:
		w.leaf(bucket, p, s)
	default:
		w.branch(bucket, p, s)
	}
	return leaf
}

// key is the key of an element that has it at pos; nil if that is not within
// the page or not within s, or not above last.
func (w *pages) key(bucket string, p page, s span, elem int, pos, size uint32, last []byte) []byte {
	from, end := uint64(elem)+uint64(pos), uint64(elem)+uint64(pos)+uint64(size)
	if size == 0 || end > uint64(len(p)) {
		w.fail(bucket, s, "key outside its page")
		return nil
	}
	k := p[from:end]
	if !s.before(k) || bytes.Compare(k, s.from) < 0 || bytes.Compare(k, last) <= 0 {
		w.fail(bucket, s, "key %.40q out of order", k)
		return nil
	}
	return k
}

func (w *pages) branch(bucket string, p page, s span) {
	var keys [][]byte
	var ids []uint64
	var last []byte
	for i := range p.count() {
		at := pageHeader + i*element
		e := p[at:]
		k := w.key(bucket, p, s, at, binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:]), last)
		if k == nil {
			return
		}
		keys, ids, last = append(keys, k), append(ids, binary.LittleEndian.Uint64(e[8:])), k
	}
	if len(ids) == 0 {
		w.fail(bucket, s, "empty branch")
	}
	if w.whole && len(ids) > 1 {
		w.divide(bucket, keys, ids, s)
		return
	}
	w.children(bucket, keys, ids, s)
}

// children checks the children of a branch, which begin with keys.
func (w *pages) children(bucket string, keys [][]byte, ids []uint64, s span) {
	for i, id := range ids {
		sub := span{keys[i], s.to}
		if i+1 < len(keys) {
			sub.to = keys[i+1]
		}
		if leaf := w.visit(bucket, id, sub); leaf && w.skim {
			w.noneAbove(bucket, ids, s) // all children are at one depth
			return
		}
	}
}

// noneAbove fails if one of ids leads back up.
func (w *pages) noneAbove(bucket string, ids []uint64, s span) {
	for _, id := range ids {
		if slices.Contains(w.path, id) {
			w.cyclic = true
			w.fail(bucket, s, "%w", errCycle)
		}
	}
}

// divide checks the children of a branch on all processors.
func (w *pages) divide(bucket string, keys [][]byte, ids []uint64, s span) {
	n := runtime.GOMAXPROCS(0)
	walks := make([]*pages, n)
	var wg sync.WaitGroup
	for k := range walks {
		lo, hi := len(ids)*k/n, len(ids)*(k+1)/n
		part := span{s.from, s.to}
		if hi < len(ids) {
			part.to = keys[hi]
		}
		v := &pages{file: w.file, size: w.size, limit: w.limit, seen: w.seen, path: slices.Clone(w.path), report: w.report}
		walks[k] = v
		wg.Go(func() { v.children(bucket, keys[lo:hi], ids[lo:hi], part) })
	}
	wg.Wait()
	for _, v := range walks {
		w.cyclic = w.cyclic || v.cyclic
	}
}

func (w *pages) leaf(bucket string, p page, s span) {
	var last []byte
	for i := range p.count() {
		at := pageHeader + i*element
		e := p[at:]
		kind, pos := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
		ksize, vsize := binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
		k := w.key(bucket, p, s, at, pos, ksize, last)
		if k == nil {
			return
		}
		val := uint64(at) + uint64(pos) + uint64(ksize)
		if val+uint64(vsize) > uint64(len(p)) || kind > subBucket || (kind == subBucket) != (bucket == "") {
			w.fail(bucket, s, "value of %.40q outside its page, or of another kind", k)
			return
		}
		if kind == subBucket {
			w.bucket(string(k), p[val:val+uint64(vsize)])
		}
		last = k
	}
}

// bucket checks the bucket that a leaf of the root holds.
func (w *pages) bucket(name string, val []byte) {
	if len(val) < 16 {
		w.fail(name, span{}, "short bucket")
		return
	}
	if root := binary.LittleEndian.Uint64(val); root != 0 {
		w.visit(name, root, span{})
		return
	}
	if len(val) < 16+pageHeader {
		w.fail(name, span{}, "short inline bucket")
		return
	}
	// A copy: its keys must outlive the buffer of its page.
	if p := page(bytes.Clone(val[16:])); p.flags() != leafPage || !w.check(name, p, span{}) {
		w.fail(name, span{}, "inline bucket is no leaf")
	}
}

// names is a span of chunk keys as one of names.
func (s span) names() (n span) {
	if len(s.from) > 1 {
		n.from = s.from[1:]
	}
	if len(s.to) > 1 {
		n.to = s.to[1:]
	}
	return n
}

// metas checks both meta pages: a file can be read by one, and is lost with it.
func (w *pages) metas() {
	for i := range uint64(2) {
		p, err := w.read(i, 1)
		if err != nil || binary.LittleEndian.Uint64(p) != i || p.flags() != metaPage || !validMeta(p[pageHeader:]) {
			w.fail("", span{}, "meta page %d", i)
		}
	}
}

// freelist checks that no page in use is listed as free: the next write would
// overwrite it.
func (w *pages) freelist(txid uint64) {
	for i := range uint64(2) {
		p, err := w.read(i, 1)
		if err != nil {
			continue
		}
		if m := p[pageHeader:]; validMeta(m) && binary.LittleEndian.Uint64(m[48:]) == txid {
			w.free(binary.LittleEndian.Uint64(m[32:]))
			return
		}
	}
}

// validMeta: u32 magic, version, page size, flags, u64 root page, sequence,
// freelist page, pages, transaction, FNV-1a of all that.
func validMeta(m []byte) bool {
	sum := fnv.New64a()
	sum.Write(m[:metaSize-8])
	return binary.LittleEndian.Uint32(m) == metaMagic && binary.LittleEndian.Uint64(m[metaSize-8:]) == sum.Sum64()
}

// CheckMeta returns ErrDamaged if neither meta page of a bbolt file is good.
func CheckMeta(file io.ReaderAt, pageSize int) error {
	var b [metaSize]byte
	for i := range int64(2) {
		_, err := file.ReadAt(b[:], i*int64(pageSize)+pageHeader)
		if errors.Is(err, os.ErrClosed) {
			return err
		}
		if err == nil && validMeta(b[:]) {
			return nil
		}
	}
	return fmt.Errorf("%w: neither meta page is good", ErrDamaged)
}

func (w *pages) free(id uint64) {
	p, err := w.load(id)
	if err != nil || p.flags() != freelistPage {
		w.fail("", span{}, "free page list at page %d: %v", id, err)
		return
	}
	ids, count := p[pageHeader:], uint64(p.count())
	if count == 0xffff {
		ids, count = ids[8:], binary.LittleEndian.Uint64(ids)
	}
	if count > uint64(len(ids)/8) {
		w.fail("", span{}, "free page list of %d pages", count)
		return
	}
	for i := range count {
		if f := binary.LittleEndian.Uint64(ids[8*i:]); f < 2 || f >= w.limit || w.seen[f].Load() {
			w.fail("", span{}, "page %d is not free", f)
			return
		}
	}
}

// CheckPages checks the pages that a transaction of any bbolt file reads, and
// the list of free ones, with plain reads. It returns ErrDamaged if some are not
// as bbolt writes them.
func CheckPages(file *os.File, tx *bolt.Tx) error {
	var mu sync.Mutex
	var found error
	_, err := checkPages(file, tx, false, func(_ string, _ span, err error) {
		mu.Lock()
		defer mu.Unlock()
		found = cmp.Or(found, err)
	})
	return errors.Join(found, err)
}

// CheckFile is CheckPages of a file that is not open. readable says that bbolt,
// if guarded, can still read what is left, and comes to an end.
func CheckFile(path string) (readable bool, err error) {
	s, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		return false, err
	}
	err = s.view(func(tx *bolt.Tx) error { return CheckPages(s.file, tx) })
	return true, errors.Join(err, s.Close())
}

// checkCycles fails if a search could run in a circle.
func (s *Store) checkCycles() error {
	return s.view(func(tx *bolt.Tx) error {
		cyclic, err := checkPages(s.file, tx, true, func(string, span, error) {})
		if cyclic {
			return fmt.Errorf("%w: %w", ErrDamaged, errCycle)
		}
		return err
	})
}

// pages reports what is wrong with the pages of the file.
func (a *auditor) pages(s *Store, tx *bolt.Tx) error {
	cyclic, err := checkPages(s.file, tx, false, func(bucket string, s span, err error) {
		switch l, isChunks := strings.CutPrefix(bucket, "chunks/"); {
		case bucket == string(leavesBucket):
			a.tear(s, 0, err)
		case isChunks:
			n, _ := strconv.Atoi(l)
			a.tear(s.names(), n+1, err)
		default:
			a.tear(span{}, maxLevels, err)
		}
	})
	if cyclic {
		return fmt.Errorf("%w: %w", ErrDamaged, errCycle)
	}
	return err
}

// Salvage calls fn with every row that lies in some leaf page of a bbolt file,
// in use or not, found with plain reads alone, until fn returns an error. Where
// the file is damaged rows are missing, and some are nonsense. The work is in
// proportion to the size, whatever the pages claim.
func Salvage(file io.ReaderAt, size int64, fn func(key, val []byte) error) error {
	step := pageLength(file)
	head, budget := make([]byte, step), 4*size
	for at := int64(0); at < size; at += step {
		if n, _ := file.ReadAt(head, at); n < pageHeader || page(head).flags() != leafPage {
			continue
		}
		p := page(head)
		if more := int64(p.overflow()) * step; more > 0 && more <= min(maxSalvage, size-at-step, budget) {
			budget -= more
			p = make(page, step+more)
			if _, err := file.ReadAt(p, at); err != nil {
				continue
			}
		}
		if err := p.rows(true, fn); err != nil {
			return err
		}
	}
	return nil
}

// minPage and maxPage bound the length of a bbolt file's pages: os.Getpagesize()
// of the machine that made it, a power of two.
const minPage, maxPage = 1 << 10, 64 << 10

// pageLength is the length of the pages of a bbolt file, in bytes, as its meta pages
// give it. The second lies where the second page begins, so each length is tried.
// If neither is good it is that of this machine.
func pageLength(file io.ReaderAt) int64 {
	var b [metaSize]byte
	meta := func(at int64) int64 {
		if _, err := file.ReadAt(b[:], at+pageHeader); err != nil || !validMeta(b[:]) {
			return 0
		}
		n := int64(binary.LittleEndian.Uint32(b[8:]))
		if n < minPage || n > maxPage || n&(n-1) != 0 {
			return 0
		}
		return n
	}
	if n := meta(0); n > 0 {
		return n
	}
	for n := int64(minPage); n <= maxPage; n *= 2 {
		if meta(n) == n {
			return n
		}
	}
	return int64(os.Getpagesize())
}

// maxSalvage bounds what is read of a page that claims to be a long one.
const maxSalvage = 4 << 20

// rows calls fn with each row of a leaf page that lies within it, after the one
// before; deep: also with those of the small buckets that lie in a row.
func (p page) rows(deep bool, fn func(key, val []byte) error) error {
	last := uint64(0)
	for i := range p.count() {
		at := pageHeader + i*element
		if at+element > len(p) {
			return nil
		}
		e := p[at:]
		key := uint64(at) + uint64(binary.LittleEndian.Uint32(e[4:]))
		val := key + uint64(binary.LittleEndian.Uint32(e[8:]))
		end := val + uint64(binary.LittleEndian.Uint32(e[12:]))
		if key < last || end > uint64(len(p)) {
			continue
		}
		last = end
		err := fn(p[key:val], p[val:end])
		if in := p[val:end]; err == nil && deep && len(in) >= 16+pageHeader {
			err = in[16:].rows(false, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
