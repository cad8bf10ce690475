package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

const (
	// maxBatches is how many batches of contents are in memory at a time.
	maxBatches = 4
	// maxSmall is the size in bytes up to which contents are kept together;
	// larger ones get a file of their own.
	maxSmall = 64 << 10
	// batchBuffer holds any batch: those with a file of their own begin at whole
	// blocks.
	batchBuffer = archive.MaxUploadsSize + archive.MaxUploadsSize/maxSmall*directBlock
	// syncers is how many files of a batch are brought to the disk at once:
	// the disk then makes one write of many.
	syncers = 8
)

// putContents takes many contents that a writer sends under one signature. A
// stranger, and who is over his quota, is refused before the contents are read.
func (s *service) putContents(w http.ResponseWriter, r *http.Request) error {
	body := &slowReader{c: http.NewResponseController(w), r: r.Body}
	up, writer, err := s.readUploads(r, body)
	if err != nil {
		return err
	}
	if err := s.pending.reserveUpload(writer, up.Writer, up.Size()); err != nil {
		return s.refusal("upload", err)
	}
	if err := s.receiveBatch(r, up, body); err != nil {
		s.pending.releaseUpload(up.Writer, up.Size())
		return s.uploadError(r, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readUploads reads the list that a batch begins with.
func (s *service) readUploads(r *http.Request, body io.Reader) (up archive.Uploads, writer archive.Writer, err error) {
	prefix := make([]byte, archive.UploadsPrefix)
	if _, err := io.ReadFull(body, prefix); err != nil {
		return up, writer, bodyError(err)
	}
	id, key, rest, err := archive.UploadsHead(prefix)
	if err != nil {
		return up, writer, badRequest(err)
	}
	if _, err := s.Roster.Admit(id, key); err != nil {
		return up, writer, wire.Errorf(wire.CodeDenied, "%v", err)
	}
	leave, err := enter(r.Context(), s.adds)
	if err != nil {
		return up, writer, err
	}
	defer leave()
	list := append(prefix, make([]byte, rest)...)
	if _, err := io.ReadFull(body, list[len(prefix):]); err != nil {
		return up, writer, bodyError(err)
	}
	return s.checkUploads(r, list)
}

// checkUploads checks the list, and that what follows is as long as it says.
func (s *service) checkUploads(r *http.Request, list []byte) (up archive.Uploads, writer archive.Writer, err error) {
	if up, err = archive.ParseUploads(list); err != nil {
		return up, writer, badRequest(err)
	}
	if writer, err = up.Verify(s.Roster); err != nil {
		return up, writer, wire.Errorf(wire.CodeDenied, "%v", err)
	}
	if r.ContentLength >= 0 && uint64(r.ContentLength) != uint64(len(list))+up.Size() {
		return up, writer, wire.Errorf(wire.CodeBadRequest, "body of another length than signed")
	}
	for _, c := range up.Contents {
		if uint64(c.Size) > s.Roster.Limits.ContentSize {
			return up, writer, wire.Errorf(wire.CodeTooLarge, "content of %d bytes, at most %d", c.Size, s.Roster.Limits.ContentSize)
		}
	}
	return up, writer, nil
}

// receiveBatch brings the contents of a batch, charged already, to the disk.
func (s *service) receiveBatch(r *http.Request, up archive.Uploads, body io.Reader) error {
	buf, leave, err := s.enterBatch(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	small, middling, again, err := s.readBatch(up, buf, body)
	if err != nil {
		return err
	}
	all, err := s.keepBatch(r.Context(), small, middling)
	if err != nil {
		return err
	}
	rows := make(map[archive.Digest]upload, len(all))
	for _, c := range all {
		rows[c.Digest] = upload{writer: up.Writer, size: c.Size, blocks: c.Blocks, at: s.Now().Unix()}
	}
	if err := s.pending.putUploads(up.Writer, rows); err != nil {
		return err
	}
	s.pending.releaseUpload(up.Writer, again)
	return nil
}

// readBatch reads contents into buf, and returns those that are not here yet, by
// how they are kept, and the bytes of those that are.
func (s *service) readBatch(up archive.Uploads, buf []byte, body io.Reader) (small, middling []SmallContent, again uint64, err error) {
	end := 0
	for _, c := range up.Contents {
		if c.Size > maxSmall {
			end = aligned(end)
		}
		x := SmallContent{Digest: c.Digest, Bytes: buf[end : end+int(c.Size)]}
		if _, err := io.ReadFull(body, x.Bytes); err != nil {
			return nil, nil, 0, errors.Join(errBody, err)
		}
		switch size, err := s.store.contentSize(c.Digest); {
		case err == nil && size == int64(c.Size):
			again += uint64(c.Size)
		case c.Size <= maxSmall:
			small, end = append(small, x), end+int(c.Size)
		default:
			middling, end = append(middling, x), end+int(c.Size)
		}
	}
	return small, middling, again, nil
}

// enterBatch takes a place for a batch, and the buffer that goes with it.
func (s *service) enterBatch(ctx context.Context) (buf []byte, leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	select {
	case buf = <-s.batches:
	case <-ctx.Done():
		return nil, nil, wire.Errorf(wire.CodeUnavailable, "too busy")
	}
	if buf == nil {
		buf = make([]byte, batchBuffer)
	}
	return buf, func() { s.batches <- buf }, nil
}

func (s *service) keepBatch(ctx context.Context, small, middling []SmallContent) ([]archive.Content, error) {
	all, err := s.store.PutContents(ctx, small)
	if err != nil {
		return nil, err
	}
	files, err := s.store.putFiles(ctx, middling)
	return append(all, files...), err
}

// putFiles keeps contents as files of their own, each provided that it has its
// digest. All are on the disk when it returns.
func (s *Store) putFiles(ctx context.Context, all []SmallContent) (out []archive.Content, err error) {
	tmp := filepath.Join(s.dir, tmpDir)
	if err := errors.Join(os.MkdirAll(tmp, 0o700), room(tmp, all)); err != nil {
		return nil, full(err)
	}
	files := make([]string, len(all))
	defer func() {
		for _, f := range files {
			os.Remove(f) // unless it was moved
		}
	}()
	for i, x := range all {
		c, err := checkedContent(x)
		if err != nil {
			return nil, err
		}
		if files[i], err = writeTemp(tmp, x.Bytes); err != nil {
			return nil, full(err)
		}
		out = append(out, c)
	}
	if err := eachOf(files, syncPath); err != nil {
		return nil, full(err)
	}
	return out, full(s.placeAll(files, out))
}

// checkedContent returns the content described, or ErrIntegrity.
func checkedContent(x SmallContent) (archive.Content, error) {
	h := archive.NewContentHasher()
	h.Write(x.Bytes)
	c := h.Content()
	if c.Digest != x.Digest {
		return c, fmt.Errorf("content %s: %w: digest of %d bytes is %s", x.Digest, archive.ErrIntegrity, c.Size, c.Digest)
	}
	return c, nil
}

// room returns ErrFull if contents would not leave the headroom free.
func room(dir string, all []SmallContent) error {
	size := int64(0)
	for _, x := range all {
		size += int64(len(x.Bytes))
	}
	return roomFor(dir, size)
}

func roomFor(dir string, size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && st.Blocks > 0 {
		if free := int64(st.Bavail) * st.Bsize; free-headroom < size {
			return fmt.Errorf("%w: %d bytes free, %d kept free", ErrFull, free, headroom)
		}
	}
	return nil
}

// writeTemp writes a new file in dir.
func writeTemp(dir string, b []byte) (string, error) {
	f, err := os.CreateTemp(dir, "put-")
	if err != nil {
		return "", err
	}
	err = writeDirect(f, b)
	return f.Name(), errors.Join(err, f.Chmod(0o644), f.Close())
}

// placeAll moves synced files to where contents lie, and makes the moves durable:
// in each of three directories there may be a new entry.
func (s *Store) placeAll(files []string, all []archive.Content) error {
	touched := make(map[string]bool)
	for i, c := range all {
		path := s.ContentPath(c.Digest)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			os.Remove(filepath.Dir(path)) // a file in the place of one
			os.Remove(filepath.Dir(filepath.Dir(path)))
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				return err
			}
		}
		if err := errors.Join(evict(path), os.Rename(files[i], path)); err != nil {
			return err
		}
		for range 3 {
			path = filepath.Dir(path)
			touched[path] = true
		}
	}
	var dirs []string
	for d := range touched {
		dirs = append(dirs, d)
	}
	return eachOf(dirs, syncPath)
}

func syncPath(path string) error { return syncDir(path) }

// eachOf calls f for all paths, several at a time, and returns what went wrong.
func eachOf(paths []string, f func(string) error) error {
	var wg sync.WaitGroup
	next := make(chan string)
	errs := make([]error, min(syncers, len(paths)))
	for i := range errs {
		wg.Go(func() {
			for p := range next {
				errs[i] = errors.Join(errs[i], f(p))
			}
		})
	}
	for _, p := range paths {
		next <- p
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// have says which contents are here. What is in them only reading tells.
func (s *service) have(w http.ResponseWriter, r *http.Request) error {
	const size = len(archive.Digest{})
	b, err := readBody(w, r, wire.MaxHave*int64(size))
	if err != nil {
		return err
	}
	if len(b) == 0 || len(b)%size != 0 {
		return wire.Errorf(wire.CodeBadRequest, "%d bytes are no list of digests", len(b))
	}
	leave, err := enter(r.Context(), s.asks)
	if err != nil {
		return err
	}
	defer leave()
	have := make([]bool, len(b)/size)
	for i := range have {
		have[i] = s.store.HasContent(archive.Digest(b[i*size:]))
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(wire.Bitmap(have)) // the peer may be gone
	return nil
}
