package replica

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/content"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

const (
	// maxBatches is how many batches of contents are in memory at a time.
	maxBatches = 4
	// batchBuffer holds any batch: those with a file of their own begin at whole
	// blocks.
	batchBuffer = archive.MaxUploadsSize + archive.MaxUploadsSize/content.Small*content.DirectBlock
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
	charged, err := s.receiveBatch(r, up, body)
	s.pending.releaseUpload(up.Writer, up.Size()-charged)
	if err != nil {
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

// receiveBatch brings the contents of a batch, charged already, to the disk. It
// returns how many bytes remain charged: after an error, of what was kept before
// it.
func (s *service) receiveBatch(r *http.Request, up archive.Uploads, body io.Reader) (charged uint64, err error) {
	buf, leave, err := s.enterBatch(r.Context())
	if err != nil {
		return 0, err
	}
	defer leave()
	fresh, err := s.readBatch(up, buf, body)
	if err != nil {
		return 0, err
	}
	all, failed := s.store.contents.PutAll(fresh)
	if failed != nil {
		all = s.kept(fresh)
	}
	rows := make(map[archive.Digest]upload, len(all))
	for _, c := range all {
		rows[c.Digest] = upload{writer: up.Writer, size: c.Size, blocks: c.Blocks, at: s.Now().Unix()}
		charged += c.Size
	}
	if len(rows) > 0 {
		err = s.pending.putUploads(up.Writer, rows)
	}
	if err != nil {
		charged = 0
	}
	return charged, errors.Join(failed, err)
}

// kept returns the contents of a batch that are here.
func (s *service) kept(batch []content.Bytes) (all []archive.Content) {
	for _, x := range batch {
		size, err := s.store.contentSize(x.Digest)
		if c := content.Describe(x.Bytes); err == nil && uint64(size) == c.Size && c.Digest == x.Digest {
			all = append(all, c)
		}
	}
	return all
}

// readBatch reads contents into buf, and returns those that are not here yet.
func (s *service) readBatch(up archive.Uploads, buf []byte, body io.Reader) (fresh []content.Bytes, err error) {
	end := 0
	for _, c := range up.Contents {
		if c.Size > content.Small {
			end = content.Aligned(end)
		}
		x := content.Bytes{Digest: c.Digest, Bytes: buf[end : end+int(c.Size)]}
		if _, err := io.ReadFull(body, x.Bytes); err != nil {
			return nil, errors.Join(errBody, err)
		}
		if !s.store.contents.Holds(c.Digest, int64(c.Size)) {
			fresh, end = append(fresh, x), end+int(c.Size)
		}
	}
	return fresh, nil
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
	look := s.store.contents.Locator()
	for i := range have {
		_, _, err := look(archive.Digest(b[i*size:]))
		have[i] = err == nil
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(wire.Bitmap(have)) // the peer may be gone
	return nil
}
