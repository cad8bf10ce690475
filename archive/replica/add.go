package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/content"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// readBody reads a whole body of at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, bodyError(err)
	}
	return b, nil
}

func bodyError(err error) error {
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return wire.Errorf(wire.CodeTooLarge, "body of more than %d bytes", big.Limit)
	}
	return wire.Errorf(wire.CodeBadRequest, "body is cut short")
}

// add takes a submission: signature, rights, age, quota and contents, and that
// no name is bound to something else. It is on the disk before it is
// acknowledged.
func (s *service) add(w http.ResponseWriter, r *http.Request) error {
	body := http.MaxBytesReader(w, r.Body, int64(archive.MaxSubmission))
	prefix, err := s.readPrefix(body)
	if err != nil {
		return err
	}
	leave, err := enter(r.Context(), s.adds)
	if err != nil {
		return err
	}
	defer leave()
	sub, writer, err := s.readSubmission(prefix, body)
	if err != nil {
		return err
	}
	if err := writer.Permitted(sub); err != nil {
		return wire.Errorf(wire.CodeDenied, "%v", err)
	}
	if err := sub.Fresh(s.Now(), s.Roster.Limits.SubmissionAge.Std()); err != nil {
		return wire.Errorf(wire.CodeBadRequest, "%v", err)
	}
	ack, err := s.accept(r.Context(), sub, writer)
	if err != nil {
		return err
	}
	wire.WriteJSON(w, ack)
	return nil
}

// readPrefix reads the first bytes of a submission and refuses a stranger by
// them, before he takes a place.
func (s *service) readPrefix(body io.Reader) ([]byte, error) {
	prefix := make([]byte, archive.SubmissionPrefix)
	if _, err := io.ReadFull(body, prefix); err != nil {
		return nil, bodyError(err)
	}
	id, key, err := archive.SubmissionWriter(prefix)
	if err != nil {
		return nil, badRequest(err)
	}
	if _, err := s.Roster.Admit(id, key); err != nil {
		return nil, wire.Errorf(wire.CodeDenied, "%v", err)
	}
	return prefix, nil
}

// readSubmission reads the rest.
func (s *service) readSubmission(prefix []byte, body io.Reader) (sub archive.Submission, writer archive.Writer, err error) {
	rest, err := io.ReadAll(body)
	if err != nil {
		return sub, writer, bodyError(err)
	}
	if sub, err = archive.ParseSubmission(append(prefix, rest...)); err != nil {
		return sub, writer, badRequest(err)
	}
	if writer, err = sub.Verify(s.Roster); err != nil {
		return sub, writer, wire.Errorf(wire.CodeDenied, "%v", err)
	}
	return sub, writer, nil
}

// accept buffers a submission whose writer may make it.
func (s *service) accept(ctx context.Context, sub archive.Submission, writer archive.Writer) (wire.Ack, error) {
	s.cleaning.RLock()
	defer s.cleaning.RUnlock()
	bound, err := s.boundAlready(sub)
	if err != nil || bound.Status == wire.AckBound {
		return bound, err
	}
	if err := s.holdsContents(ctx, sub); err != nil {
		return wire.Ack{}, err
	}
	if err := s.pending.Admit(sub, writer); err != nil {
		return wire.Ack{}, s.refusal("keep submission", err)
	}
	return wire.Ack{Status: wire.AckPending, Due: s.due(), Epoch: archive.Epoch(s.statement.Slots.Epoch) + 1}, nil
}

// refusal makes an error of the store one that the peer may read.
func (s *service) refusal(what string, err error) error {
	var known *wire.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, ErrQuota):
		return wire.Errorf(wire.CodeQuota, "%v", err)
	case errors.Is(err, ErrFull):
		s.Log.Error(what, "error", err)
		return wire.Errorf(wire.CodeFull, "the replica's disk is full")
	case errors.Is(err, errLost), errors.Is(err, ErrDamaged), isErrno(err):
		s.die(err) // the next process makes a new buffer, and syncs all of it
	}
	s.Log.Error(what, "error", err)
	return wire.Errorf(wire.CodeUnavailable, "the replica cannot write")
}

// isErrno says that the system refused to do something. After a failed fsync
// nobody knows what is on the disk, and the next one succeeds all the same: who
// has seen one fail acknowledges nothing more.
func isErrno(err error) bool {
	var no syscall.Errno
	return errors.As(err, &no)
}

// boundAlready looks all names up in the tree. The ack says "bound" if each has
// just the content it should get; a name with another is a conflict, and proven.
// A replica that has no tree to look into leaves that to the update phase. That a
// name is bound to nothing is not proven: if that is wrong, the update phase will
// find out.
func (s *service) boundAlready(sub archive.Submission) (wire.Ack, error) {
	lent, release, err := s.Lend()
	if err != nil {
		return wire.Ack{}, nil
	}
	defer release()
	ack := wire.Ack{Status: wire.AckBound, Due: s.due()}
	conflict := wire.Errorf(wire.CodeConflict, "")
	rows, err := lent.Tree.GetAll(namesOf(sub))
	for i, b := range sub.Bindings {
		var is bound
		if err == nil && rows[i] != nil {
			is, err = lent.lookUpOne(b.Name)
		}
		switch {
		case err != nil:
			s.Damaged(lent, err)
			return wire.Ack{}, nil
		case !is.ok:
			ack.Status = ""
		case is.entry.Content != b.Content:
			conflict.Conflicts = append(conflict.Conflicts, wire.Conflict{Name: b.Name, Proof: is.proof})
		default:
			ack.Epoch = max(ack.Epoch, is.entry.Epoch)
		}
		if len(conflict.Conflicts) == wire.MaxProven {
			break
		}
	}
	if n := len(conflict.Conflicts); n > 0 {
		conflict.Message = conflictMessage(conflict.Conflicts)
		conflict.Record, conflict.Certificate = string(lent.Record.Bytes()), lent.Certificate.Bytes()
		return wire.Ack{}, conflict
	}
	return ack, nil
}

func namesOf(sub archive.Submission) [][]byte {
	all := make([][]byte, len(sub.Bindings))
	for i, b := range sub.Bindings {
		all[i] = []byte(b.Name)
	}
	return all
}

func conflictMessage(all []wire.Conflict) string {
	if len(all) > 1 {
		return fmt.Sprintf("%d names are bound to other contents, %q first", len(all), string(all[0].Name))
	}
	return fmt.Sprintf("%q is bound to another content", string(all[0].Name))
}

// holdsContents checks that every content is here, with the size and block root
// that the submission gives it.
func (s *service) holdsContents(ctx context.Context, sub archive.Submission) error {
	look, known := s.store.contents.Locator(), s.pending.uploadsOf(sub)
	for _, b := range sub.Bindings {
		have, err := s.held(ctx, b.Digest, look, known)
		switch {
		case errors.Is(err, ErrMissing), errors.Is(err, ErrDamaged):
			return wire.Errorf(wire.CodeMissing, "content of %q is not here: %s", string(b.Name), b.Digest)
		case err != nil:
			return err
		case have != b.Content:
			return wire.Errorf(wire.CodeBadRequest, "content of %q has another size or block root", string(b.Name))
		}
	}
	return nil
}

// held returns what is known of a content since it was uploaded, as long as a
// file of its size is still there, or else what its file holds.
func (s *service) held(ctx context.Context, d archive.Digest, look content.Look, known map[archive.Digest]upload) (archive.Content, error) {
	size, _, err := look(d)
	if err != nil {
		return archive.Content{}, err
	}
	if u, ok := known[d]; ok && u.size == uint64(size) {
		return archive.Content{Digest: d, Size: u.size, Blocks: u.blocks}, nil
	}
	return s.store.CheckContent(ctx, d)
}

// putContent takes a content that a writer sends under his signature, or the
// rest of one whose upload was interrupted.
func (s *service) putContent(w http.ResponseWriter, r *http.Request) error {
	up, writer, from, err := s.readUpload(r)
	if err != nil {
		return err
	}
	if s.store.contents.Holds(up.Digest, int64(up.Size)) {
		w.WriteHeader(http.StatusNoContent) // it is here: keep the body
		return nil
	}
	leave, err := enter(r.Context(), s.uploads)
	if err != nil {
		return err
	}
	defer leave()
	body := &slowReader{c: http.NewResponseController(w), r: r.Body}
	if up.Size >= minPartial {
		err = s.receiveLarge(r.Context(), up, writer, from, body)
	} else {
		err = s.receive(r.Context(), up, writer, body)
	}
	if err != nil {
		return s.uploadError(r, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readUpload checks, before the body is read, that a writer may send it.
func (s *service) readUpload(r *http.Request) (up archive.Upload, writer archive.Writer, from uint64, err error) {
	d, err := archive.ParseDigest(r.PathValue("digest"))
	if err == nil && r.URL.Query().Has("from") {
		from, err = strconv.ParseUint(r.URL.Query().Get("from"), 10, 63)
	}
	if err != nil {
		return up, writer, 0, badRequest(err)
	}
	b, err := wire.DecodeBytes(r.Header.Get(wire.HeaderUpload), archive.UploadSize)
	if err == nil {
		up, err = archive.ParseUpload(b)
	}
	if err != nil {
		return up, writer, 0, wire.Errorf(wire.CodeDenied, "%s: %v", wire.HeaderUpload, err)
	}
	if writer, err = up.Verify(s.Roster); err != nil {
		return up, writer, 0, wire.Errorf(wire.CodeDenied, "%v", err)
	}
	switch {
	case up.Digest != d || r.ContentLength < 0 || uint64(r.ContentLength)+from != up.Size || from > 0 && up.Size < minPartial:
		return up, writer, 0, wire.Errorf(wire.CodeBadRequest, "upload of another digest or length than signed")
	case up.Size > s.Roster.Limits.ContentSize || up.Size > 1<<62:
		return up, writer, 0, wire.Errorf(wire.CodeTooLarge, "content of %d bytes, at most %d", up.Size, s.Roster.Limits.ContentSize)
	}
	return up, writer, from, nil
}

// receive keeps the body under the writer's quota.
func (s *service) receive(ctx context.Context, up archive.Upload, writer archive.Writer, body io.Reader) error {
	if err := s.pending.reserveUpload(writer, up.Writer, up.Size); err != nil {
		return err
	}
	c, err := s.store.putContent(ctx, up.Digest, int64(up.Size), body)
	if err == nil {
		err = s.received(up, c)
	}
	if err != nil {
		s.pending.releaseUpload(up.Writer, up.Size)
	}
	return err
}

// received remembers a content that is here, and charged.
func (s *service) received(up archive.Upload, c archive.Content) error {
	row := upload{writer: up.Writer, size: up.Size, blocks: c.Blocks, at: s.Now().Unix()}
	return s.pending.putUploads(up.Writer, map[archive.Digest]upload{up.Digest: row})
}

func (s *service) uploadError(r *http.Request, err error) error {
	switch {
	case errors.Is(err, archive.ErrIntegrity):
		return wire.Errorf(wire.CodeBadRequest, "%v", err)
	case errors.Is(err, ErrFull):
		return s.refusal("upload", err)
	case r.Context().Err() != nil, errors.Is(err, errBody):
		return bodyError(err)
	}
	return s.refusal("upload", err)
}

// errBody says that the peer did not send what it should.
var errBody = errors.New("request body")

// slowReader gives the peer requestTime for each stride that it sends.
type slowReader struct {
	c     *http.ResponseController
	r     io.Reader
	since int
}

func (r *slowReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if r.since += n; r.since >= stride {
		r.since = 0
		r.c.SetReadDeadline(time.Now().Add(requestTime))
		r.c.SetWriteDeadline(time.Now().Add(2 * requestTime))
	}
	if err != nil && err != io.EOF {
		err = errors.Join(errBody, err)
	}
	return n, err
}

// isPending says whether a name waits for the next update phase.
func (s *service) isPending(w http.ResponseWriter, r *http.Request) error {
	b, err := wire.DecodeBytes(r.URL.Query().Get("name"), archive.MaxName)
	if err != nil {
		return badRequest(err)
	}
	if err := archive.Name(b).Check(); err != nil {
		return badRequest(err)
	}
	wire.WriteJSON(w, wire.PendingState{Pending: s.pending.Wants(archive.Name(b)), Due: s.due()})
	return nil
}
