// Package wire is the way between clients and replicas, and between replicas:
// HTTP over TLS 1.3 with pinned keys (HTTP/2, and HTTP/1.1 for uploads), the
// bodies that travel on it, and the client side of every request. What comes over
// it is bounded before it is read and believed only as far as the checks of package
// archive go. SPEC.md gives the bytes.
package wire

import (
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
)

// Paths of the endpoints.
const (
	PathAnswer  = "/v1/answer"
	PathProof   = "/v1/proof"
	PathProofs  = "/v1/proofs"
	PathHistory = "/v1/history"
	PathContent = "/v1/content/" // and the digest in hexadecimal
	PathBlocks  = "/v1/blocks/"  // likewise
	PathPartial = "/v1/partial/" // likewise
	PathBatch   = "/v1/contents"
	PathHave    = "/v1/have"
	PathAdd     = "/v1/add"
	PathPending = "/v1/pending"
	PathStatus  = "/v1/status"
)

// HeaderUpload carries an archive.Upload, in base64url, with a PUT of its
// content.
const HeaderUpload = "Bonafide-Upload"

// Bounds. Bodies that exceed them are refused, by both sides.
const (
	MaxRequest  = 16 << 10 // bytes of an AnswerRequest
	MaxHistory  = 64       // records of one reply
	MaxError    = 4 << 20  // bytes of an Error
	MaxStatus   = 16 << 10 // bytes of a Status
	MaxAck      = 1 << 10  // bytes of an Ack, a PendingState and a Partial
	MaxPage     = 1 << 12  // names of one proven page
	MaxFirst    = 1 << 8   // names of the page in an answer
	MaxProofs   = 64       // names of a ProofsRequest
	MaxProven   = 100      // conflicts that one refusal proves
	MaxBlocks   = 256      // blocks of one page of a block list
	MaxHave     = 1000     // digests of one question which contents are held
	maxHistory  = int64(MaxHistory*(2*archive.MaxRecord+2*archive.MaxCertificate) + 1<<10)
	idleDefault = 30 * time.Second
)

// Range asks for the names from From (inclusive) to To (exclusive; empty: to
// the end), one page of at most Limit of them.
type Range struct {
	From  []byte `json:"from"`
	To    []byte `json:"to"`
	Limit int    `json:"limit"`
}

// AnswerRequest asks for an answer to a fresh nonce: on Range if it is set,
// otherwise on Name.
type AnswerRequest struct {
	Nonce trust.Nonce
	Name  archive.Name
	Range *Range
}

type answerRequest struct {
	Nonce archive.Digest `json:"nonce"`
	Name  archive.Name   `json:"name,omitempty"`
	Range *Range         `json:"range,omitempty"`
}

// Bytes returns the request's one encoding.
func (q AnswerRequest) Bytes() []byte {
	b, err := archive.EncodeJSON(answerRequest{archive.Digest(q.Nonce), q.Name, q.Range})
	if err != nil {
		panic("wire: encode request: " + err.Error())
	}
	return b
}

// ParseAnswerRequest parses what Bytes returns and checks name or range.
func ParseAnswerRequest(b []byte) (AnswerRequest, error) {
	var q answerRequest
	if len(b) > MaxRequest {
		return AnswerRequest{}, fmt.Errorf("request: %w: %d bytes", archive.ErrFormat, len(b))
	}
	if err := archive.DecodeJSON(b, &q); err != nil {
		return AnswerRequest{}, fmt.Errorf("request: %w", err)
	}
	if q.Range != nil {
		return AnswerRequest{trust.Nonce(q.Nonce), q.Name, q.Range}, q.Range.check(q.Name)
	}
	return AnswerRequest{trust.Nonce(q.Nonce), q.Name, nil}, q.Name.Check()
}

func (g Range) check(n archive.Name) error {
	switch {
	case n != "":
		return fmt.Errorf("request: %w: a name and a range", archive.ErrFormat)
	case g.Limit < 1 || len(g.From) > archive.MaxName+1 || len(g.To) > archive.MaxName+1:
		return fmt.Errorf("request: %w: range", archive.ErrFormat)
	}
	return nil
}

// SignedRecord is one step of the archive's history.
type SignedRecord struct {
	Record      string `json:"record"` // the epoch record's text
	Certificate []byte `json:"certificate"`
}

// History is the reply of PathHistory: records of successive epochs, ascending.
type History struct {
	Records []SignedRecord `json:"records"`
}

// What an Ack says of a submission.
const (
	AckPending = "pending" // buffered, on the disk
	AckBound   = "bound"   // every name already has exactly this content
)

// Ack acknowledges a submission.
type Ack struct {
	Status string        `json:"status"` // AckPending or AckBound
	Due    time.Time     `json:"due"`    // when the next update phase is scheduled
	Epoch  archive.Epoch `json:"epoch"`  // pending: the one to come; bound: the newest of the entries'
}

// Partial says how many bytes a replica has of a content whose upload was
// interrupted.
type Partial struct {
	Bytes uint64 `json:"bytes"`
}

// PendingState says whether a name waits for the next update phase. It is a
// hint, proven by nothing.
type PendingState struct {
	Pending bool      `json:"pending"`
	Due     time.Time `json:"due"`
}

// Status is what a replica says of itself. Nothing in it is proven.
type Status struct {
	Replica      uint32         `json:"replica"`
	Archive      archive.Digest `json:"archive"`
	Phase        string         `json:"phase"` // "service" or "update"
	Mode         string         `json:"mode"`  // of the MAS
	Profile      trust.Profile  `json:"profile"`
	Epoch        archive.Epoch  `json:"epoch"`
	Head         archive.Digest `json:"head"`
	Root         archive.Digest `json:"root"`
	Names        uint64         `json:"names"`
	Pending      uint64         `json:"pending"` // names
	PendingBytes uint64         `json:"pending_bytes"`
	Tick         uint64         `json:"tick"`
	Counts       string         `json:"counts"` // reset.restart
	Last         time.Time      `json:"last"`   // time of the newest epoch
	Next         time.Time      `json:"next"`   // next scheduled update phase
	Overdue      bool           `json:"overdue"`
	Damaged      bool           `json:"damaged"` // answers nothing until repaired
	Note         string         `json:"note"`
}

// EncodeBytes returns b for use in a URL: base64url without padding.
func EncodeBytes(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// DecodeBytes returns what EncodeBytes encoded, of at most limit bytes.
func DecodeBytes(s string, limit int) ([]byte, error) {
	if base64.RawURLEncoding.DecodedLen(len(s)) > limit || strings.ContainsAny(s, "\r\n") {
		return nil, fmt.Errorf("%w: longer than %d bytes", archive.ErrFormat, limit)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%w: not base64url", archive.ErrFormat)
	}
	return b, nil
}
