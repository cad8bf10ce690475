package wire

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree"
)

// ErrUpdating says that the peer is in an update phase: it shows its agreement
// key and serves no clients.
var ErrUpdating = errors.New("in an update phase")

// ErrPin says that the peer shows neither of the keys that the roster names.
var ErrPin = errors.New("peer shows another key than the roster's")

// Code says why a replica refused.
type Code string

// The codes, and the HTTP status that each travels with.
const (
	CodeBadRequest  Code = "bad-request"
	CodeDenied      Code = "denied"
	CodeQuota       Code = "quota"
	CodeConflict    Code = "conflict"
	CodeMissing     Code = "missing"
	CodeUnavailable Code = "unavailable"
	CodeStaleHead   Code = "stale-head"
	CodeDamaged     Code = "damaged"
	CodeNoEpoch     Code = "no-epoch"
	CodeTooLarge    Code = "too-large"
	CodeFull        Code = "full"
)

var statuses = map[Code]int{
	CodeBadRequest:  http.StatusBadRequest,
	CodeDenied:      http.StatusForbidden,
	CodeQuota:       http.StatusTooManyRequests,
	CodeConflict:    http.StatusConflict,
	CodeMissing:     http.StatusNotFound,
	CodeUnavailable: http.StatusServiceUnavailable,
	CodeStaleHead:   http.StatusPreconditionFailed,
	CodeDamaged:     http.StatusInternalServerError,
	CodeNoEpoch:     http.StatusTooEarly,
	CodeTooLarge:    http.StatusRequestEntityTooLarge,
	CodeFull:        http.StatusInsufficientStorage,
}

// Conflict proves, under the record that stands beside it, what a name is bound
// to.
type Conflict struct {
	Name  archive.Name `json:"name"`
	Proof tree.Proof   `json:"proof"`
}

// Error is a replica's refusal. It is its word alone, except for what the
// conflicts prove.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Record and Certificate are the replica's current ones, for a conflict
	// and for a stale head.
	Record      string     `json:"record,omitempty"`
	Certificate []byte     `json:"certificate,omitempty"`
	Conflicts   []Conflict `json:"conflicts,omitempty"` // at most MaxProven
}

// Errorf returns an Error with a formatted message.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Error returns code and message.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// Is makes errors.Is(err, &Error{Code: c}) true for every Error of code c.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == ""
}

// Bound checks a conflict and returns the entry that it proves, and the record
// under which.
func (e *Error) Bound(r *archive.Roster, c Conflict) (archive.Entry, archive.EpochRecord, error) {
	rec, _, err := archive.VerifyRecord(r, []byte(e.Record), e.Certificate)
	if err != nil {
		return archive.Entry{}, rec, fmt.Errorf("conflict: %w", err)
	}
	view, err := archive.VerifyProof(rec, c.Proof)
	if err != nil {
		return archive.Entry{}, rec, fmt.Errorf("conflict: %w", err)
	}
	entry, ok, err := archive.Lookup(view, c.Name)
	if err == nil && !ok {
		err = fmt.Errorf("%w: %q is not bound", archive.ErrIntegrity, c.Name)
	}
	return entry, rec, err
}

// WriteError sends err: an *Error as it is, anything else as unavailable
// without its text, which is for the replica's own log.
func WriteError(w http.ResponseWriter, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = Errorf(CodeUnavailable, "internal error")
	}
	status, ok := statuses[e.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	writeJSON(w, status, e)
}

// WriteJSON sends v in its one encoding.
func WriteJSON(w http.ResponseWriter, v any) { writeJSON(w, http.StatusOK, v) }

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := archive.EncodeJSON(v)
	if err != nil {
		panic("wire: encode reply: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b) // the peer may be gone
}
