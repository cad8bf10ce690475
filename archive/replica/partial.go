package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/content"
	"github.com/bonafide-archive/bonafide/archive/disk"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

const (
	partialDir = "partial"
	// minPartial is the size in bytes from which an interrupted upload goes on
	// where it stopped.
	minPartial = 8 << 20
	// maxPartials is how many interrupted uploads of one writer are kept, the
	// newest; partialAge is for how long.
	maxPartials = 16
	partialAge  = 7 * 24 * time.Hour
	// busyTime is how long an upload waits for one of the same content to end:
	// the other may be that of a client that is gone.
	busyTime = 3 * time.Second
)

// partialKey names an interrupted upload: nobody can spoil another's.
type partialKey struct {
	digest archive.Digest
	writer archive.KeyID
}

// name returns the name of its file.
func (k partialKey) name() string { return k.digest.String() + "." + k.writer.String() }

func parsePartialKey(name string) (k partialKey, err error) {
	d, w, _ := strings.Cut(name, ".")
	if k.digest, err = archive.ParseDigest(d); err != nil {
		return k, err
	}
	key, err := archive.ParseDigest(w)
	k.writer = archive.KeyID(key)
	return k, err
}

// partials are the contents that have come in part. A writer is charged for
// what is kept.
type partials struct {
	mu   sync.Mutex
	busy map[partialKey]chan struct{} // closed when the upload under way ends
}

// enter makes the caller the only one at an upload. It waits a little for
// another to end.
func (p *partials) enter(ctx context.Context, k partialKey) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, busyTime)
	defer cancel()
	for {
		p.mu.Lock()
		other := p.busy[k]
		if other == nil {
			mine := make(chan struct{})
			p.busy[k] = mine
			p.mu.Unlock()
			return func() { p.leave(k, mine) }, nil
		}
		p.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, wire.Errorf(wire.CodeUnavailable, "another upload of this content is under way")
		}
	}
}

func (p *partials) leave(k partialKey, mine chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.busy, k)
	close(mine)
}

func (s *service) partialPath(k partialKey) string {
	return filepath.Join(s.store.dir, partialDir, k.name())
}

// openPartials charges what interrupted uploads have left.
func (s *service) openPartials() error {
	s.partials.busy = make(map[partialKey]chan struct{})
	if err := s.store.root().Mkdir(filepath.Join(s.store.dir, partialDir)); err != nil {
		return full(err)
	}
	for _, p := range s.keptPartials() {
		s.pending.chargeUpload(p.key.writer, p.size)
	}
	s.prunePartials()
	return nil
}

// keptPartial is a file of an interrupted upload.
type keptPartial struct {
	key  partialKey
	size uint64
	at   time.Time // when it last grew
}

// keptPartials lists what is there, the newest first, and removes what has no
// business there.
func (s *service) keptPartials() (all []keptPartial) {
	dir := filepath.Join(s.store.dir, partialDir)
	entries, _ := os.ReadDir(dir) // what is lost is sent again
	for _, e := range entries {
		k, err := parsePartialKey(e.Name())
		fi, err2 := e.Info()
		if err != nil || err2 != nil || !fi.Mode().IsRegular() || k.name() != e.Name() {
			os.RemoveAll(filepath.Join(dir, e.Name()))
			continue
		}
		all = append(all, keptPartial{k, uint64(fi.Size()), fi.ModTime()})
	}
	slices.SortFunc(all, func(a, b keptPartial) int { return b.at.Compare(a.at) })
	return all
}

// prunePartials removes what is too old or too much of one writer.
func (s *service) prunePartials() {
	count := make(map[archive.KeyID]int)
	for _, p := range s.keptPartials() {
		if count[p.key.writer]++; count[p.key.writer] <= maxPartials && time.Since(p.at) < partialAge {
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // do not wait
		leave, err := s.partials.enter(ctx, p.key)
		if err != nil {
			continue
		}
		fi, err := os.Lstat(s.partialPath(p.key)) // it may have grown since
		if err == nil && os.Remove(s.partialPath(p.key)) == nil {
			s.pending.releaseUpload(p.key.writer, uint64(fi.Size()))
		}
		leave()
	}
}

// partial says how much of a writer's content an interrupted upload has left.
func (s *service) partial(w http.ResponseWriter, r *http.Request) error {
	d, err := archive.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return badRequest(err)
	}
	writer, err := archive.ParseDigest(r.URL.Query().Get("writer"))
	if err != nil {
		return badRequest(err)
	}
	var p wire.Partial
	if fi, err := os.Lstat(s.partialPath(partialKey{d, archive.KeyID(writer)})); err == nil && fi.Mode().IsRegular() {
		p.Bytes = uint64(fi.Size())
	}
	wire.WriteJSON(w, p)
	return nil
}

// incoming is a large content on its way.
type incoming struct {
	up   archive.Upload
	from uint64 // what the client found here, and does not send
	held uint64 // what is in the file, and charged
	f    *os.File
	room *content.Share
}

// receiveLarge keeps the body, and if that ends too early, what came of it.
func (s *service) receiveLarge(ctx context.Context, up archive.Upload, writer archive.Writer, from uint64, body io.Reader) error {
	k := partialKey{up.Digest, up.Writer}
	leave, err := s.partials.enter(ctx, k)
	if err != nil {
		return err
	}
	defer leave()
	in, err := s.openIncoming(k, up, from)
	if err != nil {
		return err
	}
	defer in.f.Close()
	defer in.room.Release()
	defer s.prunePartials()
	if err := s.pending.reserveUpload(writer, up.Writer, up.Size-in.held); err != nil {
		in.left(err)
		return err
	}
	err = s.keepLarge(ctx, in, body)
	if err != nil {
		s.pending.releaseUpload(up.Writer, up.Size-in.left(err))
	}
	return err
}

// keepLarge takes an upload to its end.
func (s *service) keepLarge(ctx context.Context, in *incoming, body io.Reader) error {
	c, err := in.take(ctx, body)
	if err != nil {
		return err
	}
	if err := errors.Join(in.f.Chmod(0o644), in.f.Sync()); err != nil {
		return full(err)
	}
	if err := s.store.contents.Place(in.f.Name(), c.Digest); err != nil {
		return err
	}
	return s.received(in.up, c)
}

// openIncoming opens the file of an upload at the offset that the client goes
// on from.
func (s *service) openIncoming(k partialKey, up archive.Upload, from uint64) (*incoming, error) {
	path := s.partialPath(k)
	if err := errors.Join(s.store.root().Mkdir(filepath.Dir(path)), evict(path)); err != nil {
		return nil, full(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, full(err)
	}
	fi, err := f.Stat()
	if err == nil && uint64(fi.Size()) < from {
		err = wire.Errorf(wire.CodeUnavailable, "has %d bytes of the content", fi.Size())
	}
	var room *content.Share
	if err == nil {
		room, err = s.store.contents.Reserve(int64(up.Size - from))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &incoming{up: up, from: from, held: uint64(fi.Size()), f: f, room: room}, nil
}

// take writes the body behind what is there, checks the whole, and syncs it.
func (in *incoming) take(ctx context.Context, body io.Reader) (c archive.Content, err error) {
	if err := in.f.Truncate(int64(in.from)); err != nil {
		return c, full(err)
	}
	h := archive.NewContentHasher()
	w := disk.NewSparseWriter(in.f, int64(in.from), in.room.Wrote)
	var to io.Writer = w
	if in.from == 0 {
		to = io.MultiWriter(w, h)
	}
	err = in.copy(ctx, to, body)
	if err := errors.Join(err, w.End()); err != nil {
		return c, full(err)
	}
	if in.from == 0 {
		c = h.Content()
	} else if c, err = in.whole(ctx); err != nil {
		return c, err
	}
	return c, in.check(c)
}

// copy takes exactly the bytes that are to come.
func (in *incoming) copy(ctx context.Context, to io.Writer, body io.Reader) error {
	buf := make([]byte, 256<<10)
	for want := in.up.Size - in.from; want > 0; {
		n, err := io.ReadFull(body, buf[:min(want, uint64(len(buf)))])
		if _, err := to.Write(buf[:n]); err != nil {
			return err
		}
		if err != nil {
			return errors.Join(errBody, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		want -= uint64(n)
	}
	return nil
}

// whole reads what is in the file: another process may have written its
// beginning.
func (in *incoming) whole(ctx context.Context) (c archive.Content, err error) {
	if _, err := in.f.Seek(0, io.SeekStart); err != nil {
		return c, err
	}
	h := archive.NewContentHasher()
	_, err = io.CopyBuffer(struct{ io.Writer }{h}, content.Bound(ctx, in.f), make([]byte, 256<<10))
	return h.Content(), full(err)
}

// check drops what is not the content. If only the rest came now, its beginning
// may be to blame, and the client may try again from the start.
func (in *incoming) check(c archive.Content) error {
	if c.Digest == in.up.Digest && c.Size == in.up.Size {
		return nil
	}
	if err := in.f.Truncate(0); err != nil {
		return err
	}
	if in.from > 0 {
		return wire.Errorf(wire.CodeUnavailable, "what was left of an earlier upload is damaged")
	}
	return fmt.Errorf("%w: got %d bytes with digest %s, want %d", archive.ErrIntegrity, c.Size, c.Digest, in.up.Size)
}

// left returns how much an upload that failed leaves behind: nothing where there
// is no room for it.
func (in *incoming) left(err error) uint64 {
	path := in.f.Name()
	fi, gone := os.Lstat(path)
	if gone != nil {
		return 0
	}
	if fi.Size() == 0 || errors.Is(err, ErrFull) {
		os.Remove(path)
		return 0
	}
	return uint64(fi.Size())
}
