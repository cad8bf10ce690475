// Package content is the contents that a replica keeps on its disk, by digest:
// large ones as plain files, small ones as members of tar files. Nothing that
// lies there is believed without its digest. SPEC.md describes the layout.
package content

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/disk"
)

const (
	// Small is the size, in bytes, up to which contents are packed.
	Small = 64 << 10
	// Headroom is what contents leave free on the disk, in bytes, for the files
	// that an update phase must be able to write.
	Headroom = 8 << 20

	// copySize is a multiple of disk.Hole: a reader that gives less at a time must
	// not hide the zeros.
	copySize = 4 * disk.Hole

	plainDir = "content"
	packsDir = "packs"
)

// Errors that callers decide on.
var (
	// ErrMissing says that a content is not here.
	ErrMissing = errors.New("missing")
	// ErrDamaged says that what is here is not what it must be.
	ErrDamaged = errors.New("damaged")
)

// Store keeps contents. Its methods may be called concurrently. Several stores
// may be open on one directory: each appends to packs of its own, and sees what
// was there when it was first asked for something.
type Store struct {
	root  disk.Root
	packs *packs
	room  *room

	// synced says of each directory of the fan-out that its own entry is durable.
	synced [1 << 8]atomic.Bool
}

// Open returns the store of contents below a root. The disk is first looked at
// when something is asked for.
func Open(root disk.Root) *Store {
	room := &room{root: root}
	return &Store{root: root, packs: newPacks(root, room), room: room}
}

// Close ends the writing to packs.
func (s *Store) Close() error { return s.packs.close() }

// PlainPath returns where a content of its own file lies: it is named by its
// SHA-256.
func (s *Store) PlainPath(d archive.Digest) string {
	h := d.String()
	return filepath.Join(string(s.root), plainDir, h[:2], h)
}

// Reload makes the index of the packs anew from the disk, so that an audit finds
// what another process would.
func (s *Store) Reload() { s.packs.reload() }

// Size returns the size of what is kept as a content, in bytes. What is in it
// only reading tells. The error is as in Locate.
func (s *Store) Size(d archive.Digest) (int64, error) {
	size, _, err := s.Locate(d)
	return size, err
}

// Holds reports whether something of a size is kept as a content, where those of
// that size lie.
func (s *Store) Holds(d archive.Digest, size int64) bool {
	if size > Small {
		have, err := s.Size(d)
		return err == nil && have == size
	}
	l, err := s.packs.find(d)
	return err == nil && !l.bad && int64(l.size) == size
}

// Place orders contents as they lie on the disk: packs first, one after the
// other, then the files by name.
type Place uint64

const plainPlace = Place(1) << 63

// Locate returns the size of what is kept as a content, and where it lies. The
// error is ErrMissing or ErrDamaged, or another if the system does not let one
// look: then nothing is known of the content.
func (s *Store) Locate(d archive.Digest) (int64, Place, error) {
	return s.locate(d, s.packs.size, func(archive.Digest) bool { return true })
}

// Look is Locate, or a quicker one.
type Look func(archive.Digest) (int64, Place, error)

// Locator returns a function like Locate that is faster for many contents. It
// looks at each pack, and which directories of files there are, once. It must
// not be called concurrently.
func (s *Store) Locator() Look {
	sizes := make(map[uint32]int64)
	size := func(n uint32) (size int64, err error) {
		if known, ok := sizes[n]; ok {
			return known, nil
		}
		if size, err = s.packs.size(n); err == nil {
			sizes[n] = size
		}
		return size, err
	}
	dirs := s.fanOut()
	return func(d archive.Digest) (int64, Place, error) { return s.locate(d, size, dirs) }
}

// fanOut returns a function that reports whether there may be a file of a content:
// not where its directory is missing. It lists the directories when it is first
// called.
func (s *Store) fanOut() func(archive.Digest) bool {
	listed := sync.OnceValues(func() (map[string]bool, error) {
		names, err := namesIn(filepath.Join(string(s.root), plainDir))
		there := make(map[string]bool, len(names))
		for _, n := range names {
			there[n] = true
		}
		return there, err
	})
	return func(d archive.Digest) bool {
		there, err := listed()
		return err != nil || there[hex.EncodeToString(d[:1])]
	}
}

// namesIn returns what is in a directory: nothing if there is none.
func namesIn(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (s *Store) locate(d archive.Digest, packSize func(uint32) (int64, error), mayBe func(archive.Digest) bool) (int64, Place, error) {
	l, err := s.packs.findBy(d, packSize)
	switch {
	case err == nil && l.bad:
		return 0, 0, fmt.Errorf("%w: other bytes than its digest says", ErrDamaged)
	case err == nil:
		return int64(l.size), l.place(), nil
	case !errors.Is(err, ErrMissing):
		return 0, 0, err
	case !mayBe(d):
		return 0, 0, ErrMissing
	}
	info, err := os.Lstat(s.PlainPath(d))
	switch {
	case err != nil:
		return 0, 0, judged(err)
	case !info.Mode().IsRegular():
		return 0, 0, fmt.Errorf("%w: not a regular file", ErrDamaged)
	}
	return info.Size(), plainPlaceOf(d), nil
}

func plainPlaceOf(d archive.Digest) Place {
	var p Place
	for _, c := range d[:8] {
		p = p<<8 | Place(c)
	}
	return plainPlace | p>>1
}

// Reader reads what is kept as a content.
type Reader struct {
	*io.SectionReader
	f       *os.File
	written time.Time
}

// Close ends the reading.
func (r *Reader) Close() error { return r.f.Close() }

// Written returns when the file that holds the content was last written.
func (r *Reader) Written() time.Time { return r.written }

// Open opens a content for reading. Nothing says yet that its bytes are right.
// The error is as in Locate.
func (s *Store) Open(d archive.Digest) (*Reader, error) {
	r, err := s.packs.open(d)
	if errors.Is(err, ErrMissing) {
		r, err = openPlain(s.PlainPath(d))
	}
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	return r, nil
}

func openPlain(path string) (*Reader, error) {
	f, info, err := openRegular(path, os.O_RDONLY)
	if err != nil {
		return nil, judged(err)
	}
	return &Reader{io.NewSectionReader(f, 0, info.Size()), f, info.ModTime()}, nil
}

// judged is what an error of the system says of a file: ErrMissing, or ErrDamaged
// if it will not be read however often one tries. Any other, such as a want of
// descriptors, says nothing of the file, and is returned as it is: who took it for
// damage would repair what is right, and tell of what is not so.
func judged(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrMissing
	case irregular(err) || isAny(err, unix.EIO, unix.EUCLEAN, unix.EBADMSG):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// irregular says that something else lies in the place of a file or directory.
func irregular(err error) bool {
	return isAny(err, disk.ErrIrregular, unix.ELOOP, unix.ENOTDIR, unix.EISDIR, unix.ENXIO)
}

func isAny(err error, all ...error) bool {
	return slices.ContainsFunc(all, func(one error) bool { return errors.Is(err, one) })
}

// openRegular opens a file without waiting for what is none.
func openRegular(path string, flag int) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = disk.ErrIrregular
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// Put keeps what r gives, provided that it is exactly size bytes with digest d;
// otherwise nothing is kept. The content is on the disk when it returns. It
// takes the place of a damaged one.
func (s *Store) Put(ctx context.Context, d archive.Digest, size int64, r io.Reader) (archive.Content, error) {
	r = Bound(ctx, io.LimitReader(r, size+1))
	put := s.putPlain
	if size <= Small {
		put = s.putSmall
	}
	c, err := put(d, size, r)
	if err != nil {
		return c, fmt.Errorf("keep content %s: %w", d, err)
	}
	return c, nil
}

func (s *Store) putSmall(d archive.Digest, size int64, r io.Reader) (archive.Content, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return archive.Content{}, err
	}
	if int64(len(b)) != size {
		return archive.Content{}, fmt.Errorf("%w: got %d bytes, want %d", archive.ErrIntegrity, len(b), size)
	}
	all, err := s.PutAll([]Bytes{{d, b}})
	if err != nil {
		return archive.Content{}, err
	}
	return all[0], nil
}

// Bytes is a content in memory.
type Bytes struct {
	Digest archive.Digest
	Bytes  []byte
}

// PutAll keeps contents together: small ones with one write and one fsync, which
// they share with others that are kept at the time, the others as files that are
// synced side by side. If one has not the digest that it should, none is kept;
// after another error, some may be. All are on the disk when it returns without
// one. What is held already, small and right, is not written again.
func (s *Store) PutAll(all []Bytes) ([]archive.Content, error) {
	out := make([]archive.Content, len(all))
	var small, large []Bytes
	for i, b := range all {
		if out[i] = Describe(b.Bytes); out[i].Digest != b.Digest {
			return nil, fmt.Errorf("%w: got %d bytes with digest %s, want %s", archive.ErrIntegrity, len(b.Bytes), out[i].Digest, b.Digest)
		}
		if len(b.Bytes) <= Small {
			small = append(small, b)
		} else {
			large = append(large, b)
		}
	}
	if err := s.packs.add(small); err != nil {
		return nil, err
	}
	s.clear(small)
	return out, s.putFiles(large)
}

// clear removes what lies as files in the place of contents that are packed: it
// may be damaged.
func (s *Store) clear(packed []Bytes) {
	mayBe := s.fanOut()
	for _, b := range packed {
		if mayBe(b.Digest) {
			os.Remove(s.PlainPath(b.Digest))
		}
	}
}

// Describe returns what a content is.
func Describe(b []byte) archive.Content {
	h := archive.NewContentHasher()
	h.Write(b)
	return h.Content()
}

// describe returns the description of a content of at most one block: the
// block's digest is the content's.
func describe(d archive.Digest, size int64) archive.Content {
	var blocks archive.BlockList
	if size > 0 {
		blocks = archive.BlockList{d}
	}
	return archive.Content{Digest: d, Size: uint64(size), Blocks: blocks.Root()}
}

func (s *Store) putPlain(d archive.Digest, size int64, r io.Reader) (c archive.Content, err error) {
	left, err := s.room.take(size)
	if err != nil {
		return c, err
	}
	defer left.Release()
	err = s.root.Put(s.PlainPath(d), func(f *os.File) error {
		w := disk.NewSparseWriter(f, 0, left.Wrote)
		if c, err = copyHashed(w, r); err != nil {
			return err
		}
		if c.Digest != d || int64(c.Size) != size {
			return fmt.Errorf("%w: got %d bytes with digest %s, want %d", archive.ErrIntegrity, c.Size, c.Digest, size)
		}
		return w.End()
	})
	return c, err
}

// copyHashed copies r to w, in pieces of copySize, and returns what it copied.
func copyHashed(w io.Writer, r io.Reader) (archive.Content, error) {
	h := archive.NewContentHasher()
	buf := make([]byte, copySize)
	for {
		n, err := fill(r, buf)
		h.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return archive.Content{}, err
		}
		if err == io.EOF {
			return h.Content(), nil
		}
		if err != nil {
			return archive.Content{}, err
		}
	}
}

// fill reads until buf is full, or r gives an error.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// Bound returns a reader of r that ends with its context.
func Bound(ctx context.Context, r io.Reader) io.Reader { return &boundReader{ctx, r} }

type boundReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *boundReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// Remove removes contents for good. What it removes from packs takes room until
// Tidy.
func (s *Store) Remove(all []archive.Digest) error {
	if err := s.packs.remove(all); err != nil {
		return err
	}
	for _, d := range all {
		if err := os.Remove(s.PlainPath(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Tidy gives back the room of what was removed or written again, where that is
// at least half of a pack: the rest is written to another.
func (s *Store) Tidy(ctx context.Context) error {
	if err := s.packs.tidy(ctx); err != nil {
		return fmt.Errorf("tidy packs: %w", err)
	}
	return nil
}
