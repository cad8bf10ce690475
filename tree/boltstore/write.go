package boltstore

import (
	"bufio"
	"encoding/binary"
	"hash/fnv"
	"maps"
	"os"
	"slices"

	"github.com/bonafide-archive/bonafide/tree"
)

// writer makes a file of rows that come in order: it writes each page once,
// from front to back, as soon as it is full, in the layout that pages checks.
// That takes a fraction of what putting rows one by one does, and leaves the
// pages in the order in which an audit reads them.
type writer struct {
	file    *os.File
	out     *bufio.Writer
	size    int    // of a page
	next    uint64 // page to be written
	buckets map[string]*bucketWriter
}

const (
	metaPage    = 4
	metaVersion = 2
	minElements = 2 // in a page, whatever their size
	metaPages   = 2
)

func createFile(path string) (*writer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	w := &writer{file: f, out: bufio.NewWriterSize(f, 1<<20), size: os.Getpagesize(), buckets: map[string]*bucketWriter{}}
	return w, w.reserve()
}

// reserve leaves room for the meta pages, which come last.
func (w *writer) reserve() error {
	w.next = metaPages
	_, err := w.out.Write(make([]byte, metaPages*w.size))
	return err
}

// bucket returns the bucket of that name, new if need be.
func (w *writer) bucket(name []byte) *bucketWriter {
	b := w.buckets[string(name)]
	if b == nil {
		b = &bucketWriter{w: w}
		w.buckets[string(name)] = b
	}
	return b
}

// finish writes the state and all that is not yet written, and syncs the file.
func (w *writer) finish(st state) error {
	w.bucket(leavesBucket)
	if err := w.bucket(metaBucket).put(stateKey, st.bytes()); err != nil {
		return err
	}
	root := &bucketWriter{w: w, kind: subBucket}
	for _, name := range slices.Sorted(maps.Keys(w.buckets)) {
		id, err := w.buckets[name].finish()
		if err != nil {
			return err
		}
		// u64 page, u64 sequence
		val := binary.LittleEndian.AppendUint64(nil, id)
		if err := root.put([]byte(name), append(val, make([]byte, 8)...)); err != nil {
			return err
		}
	}
	id, err := root.finish()
	if err != nil {
		return err
	}
	return w.seal(id)
}

// seal writes an empty list of free pages and the meta pages.
func (w *writer) seal(root uint64) error {
	free, err := w.page(&sheet{flags: freelistPage})
	if err != nil {
		return err
	}
	if err := w.out.Flush(); err != nil {
		return err
	}
	for i := range uint64(metaPages) {
		b := append((&sheet{flags: metaPage}).header(i, 0), w.meta(i, root, free)...)
		if _, err := w.file.WriteAt(b, int64(i)*int64(w.size)); err != nil {
			return err
		}
	}
	return w.file.Sync()
}

// meta is what validMeta describes.
func (w *writer) meta(txid, root, free uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, metaMagic)
	b = binary.LittleEndian.AppendUint32(b, metaVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(w.size))
	b = binary.LittleEndian.AppendUint32(b, 0)
	for _, v := range []uint64{root, 0, free, w.next, txid} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	sum := fnv.New64a()
	sum.Write(b)
	return binary.LittleEndian.AppendUint64(b, sum.Sum64())
}

// page writes a page and returns its number.
func (w *writer) page(s *sheet) (id uint64, err error) {
	id = w.next
	n := max(1, (s.bytes()+w.size-1)/w.size)
	w.next += uint64(n)
	_, err = w.out.Write(s.header(id, n-1))
	if err == nil {
		_, err = w.out.Write(s.elements())
	}
	if err == nil {
		_, err = w.out.Write(s.data)
	}
	for pad := n*w.size - s.bytes(); err == nil && pad > 0; pad -= len(zeros) {
		_, err = w.out.Write(zeros[:min(pad, len(zeros))])
	}
	return id, err
}

var zeros [4096]byte

// sheet is a page to be.
type sheet struct {
	flags uint16
	elems []elem
	data  []byte // keys and values
	buf   []byte
}

type elem struct {
	page uint64 // of a branch
	kind uint32 // of a leaf
	pos  int    // in data
	key  int    // length
	val  int    // length
}

func (s *sheet) bytes() int { return pageHeader + element*len(s.elems) + len(s.data) }

func (s *sheet) add(e elem, key, val []byte) {
	e.pos, e.key, e.val = len(s.data), len(key), len(val)
	s.elems = append(s.elems, e)
	s.data = append(append(s.data, key...), val...)
}

// first is the key of the first element.
func (s *sheet) first() []byte {
	if len(s.elems) == 0 {
		return nil
	}
	return s.data[:s.elems[0].key]
}

func (s *sheet) empty() { s.elems, s.data = s.elems[:0], s.data[:0] }

func (s *sheet) header(id uint64, overflow int) []byte {
	s.buf = binary.LittleEndian.AppendUint64(s.buf[:0], id)
	s.buf = binary.LittleEndian.AppendUint16(s.buf, s.flags)
	s.buf = binary.LittleEndian.AppendUint16(s.buf, uint16(len(s.elems)))
	s.buf = binary.LittleEndian.AppendUint32(s.buf, uint32(overflow))
	return s.buf
}

func (s *sheet) elements() []byte {
	s.buf = s.buf[:0]
	for i, e := range s.elems {
		pos := uint32(element*(len(s.elems)-i) + e.pos)
		if s.flags == branchPage {
			s.buf = binary.LittleEndian.AppendUint32(s.buf, pos)
			s.buf = binary.LittleEndian.AppendUint32(s.buf, uint32(e.key))
			s.buf = binary.LittleEndian.AppendUint64(s.buf, e.page)
			continue
		}
		for _, v := range []uint32{e.kind, pos, uint32(e.key), uint32(e.val)} {
			s.buf = binary.LittleEndian.AppendUint32(s.buf, v)
		}
	}
	return s.buf
}

// bucketWriter writes one bucket.
type bucketWriter struct {
	w      *writer
	kind   uint32   // of its leaves
	sheets []*sheet // the open page of each depth, leaves first
}

// put adds a row; its key must be above the last one.
func (b *bucketWriter) put(key, val []byte) error {
	return b.add(0, elem{kind: b.kind}, key, val)
}

func (b *bucketWriter) add(depth int, e elem, key, val []byte) error {
	s := b.sheet(depth)
	if len(s.elems) >= minElements && float64(s.bytes()+element+len(key)+len(val)) > sortedFill*float64(b.w.size) {
		if err := b.flush(depth); err != nil {
			return err
		}
	}
	s.add(e, key, val)
	return nil
}

func (b *bucketWriter) sheet(depth int) *sheet {
	if depth == len(b.sheets) {
		s := &sheet{flags: branchPage}
		if depth == 0 {
			s.flags = leafPage
		}
		b.sheets = append(b.sheets, s)
	}
	return b.sheets[depth]
}

// flush writes the open page of one depth and adds it to the branch above.
func (b *bucketWriter) flush(depth int) error {
	s := b.sheets[depth]
	id, err := b.w.page(s)
	if err != nil {
		return err
	}
	err = b.add(depth+1, elem{page: id}, s.first(), nil)
	s.empty()
	return err
}

// finish writes the open pages and returns the number of the root page.
func (b *bucketWriter) finish() (root uint64, err error) {
	b.sheet(0)
	for depth := 0; depth+1 < len(b.sheets); depth++ {
		if err := b.flush(depth); err != nil {
			return 0, err
		}
	}
	return b.w.page(b.sheets[len(b.sheets)-1])
}

// putChunk stores the digest of a chunk.
func (w *writer) putChunk(c tree.Chunk) error {
	return w.bucket(chunksBucket(c.Level)).put(chunkKey(c.First), c.Digest[:])
}

// putLeaves stores a batch and adds it to h.
func (w *writer) putLeaves(b *batch, h *tree.Hasher) error {
	if err := b.addTo(h); err != nil {
		return err
	}
	leaves := w.bucket(leavesBucket)
	for _, p := range b.pairs {
		if err := leaves.put(p.Name, p.Val); err != nil {
			return err
		}
	}
	return nil
}
