package archive

import (
	"fmt"
	"time"

	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

const answerFormat = "bonafide/answer/v1"

// MaxAnswer bounds an encoded answer, in bytes.
const MaxAnswer = 32 << 20

// Answer is one replica's reply to a Get (talk, slide "Bottom tier: get"): the
// proof, the epoch record and certificate it leads to, and an attestation over
// the client's nonce that this record is the newest it holds.
type Answer struct {
	Format      string            `json:"format"`
	Replica     uint32            `json:"replica"`
	Record      string            `json:"record"`      // the epoch record's text
	Certificate []byte            `json:"certificate"` // the record's
	Attestation trust.Attestation `json:"attestation"` // over the client's nonce
	Proof       tree.Proof        `json:"proof"`       // of a name or a range
}

// NewAnswer puts together a replica's reply.
func NewAnswer(replica uint32, rec EpochRecord, cert Certificate, att trust.Attestation, proof tree.Proof) Answer {
	return Answer{Format: answerFormat, Replica: replica, Record: string(rec.Bytes()), Certificate: cert.Bytes(), Attestation: att, Proof: proof}
}

// Verified is what an answer shows once it has been checked.
type Verified struct {
	Replica     uint32
	Record      EpochRecord
	Head        Digest
	Certificate Certificate
	Attestation trust.Attestation
	Statement   trust.Statement
	Proof       tree.Proof
	View        *tree.View
}

// Verify checks the answer as the reply of the given replica to nonce: the
// proof against the root, its record against the attested head, the
// attestation against the roster, in service mode, and the certificate.
func (a Answer) Verify(r *Roster, replica uint32, nonce trust.Nonce) (*Verified, error) {
	if a.Format != answerFormat || a.Replica != replica {
		return nil, fmt.Errorf("answer %w: format %q of replica %d", ErrIntegrity, a.Format, a.Replica)
	}
	rec, cert, err := VerifyRecord(r, []byte(a.Record), a.Certificate)
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	st, err := VerifyHead(r, rec, Attested{replica, a.Attestation}, nonce)
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	view, err := VerifyProof(rec, a.Proof)
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	return &Verified{replica, rec, rec.Head(), cert, a.Attestation, st, a.Proof, view}, nil
}

// VerifyRecord parses a record and its certificate and checks both against the
// roster.
func VerifyRecord(r *Roster, record, certificate []byte) (EpochRecord, Certificate, error) {
	rec, err := ParseRecord(record)
	if err != nil {
		return rec, Certificate{}, fmt.Errorf("%w: %w", ErrIntegrity, err)
	}
	if id := r.ID(); rec.Archive != id || rec.Roster != id {
		return rec, Certificate{}, fmt.Errorf("epoch record %w: of another archive or roster", ErrIntegrity)
	}
	cert, err := ParseCertificate(certificate)
	if err != nil {
		return rec, cert, fmt.Errorf("%w: %w", ErrIntegrity, err)
	}
	return rec, cert, cert.Verify(r, rec)
}

// VerifyHead checks that v attests, in service mode and over nonce, that rec is
// the newest record its replica holds.
func VerifyHead(r *Roster, rec EpochRecord, v Attested, nonce trust.Nonce) (trust.Statement, error) {
	st, err := r.VerifyAttested(v, nonce)
	switch {
	case err != nil:
		return st, err
	case st.Mode != trust.ModeService:
		return st, fmt.Errorf("%w: attested in %s mode", ErrIntegrity, st.Mode)
	case Digest(st.Slots.Archive) != rec.Archive:
		return st, fmt.Errorf("%w: attested for another archive", ErrIntegrity)
	case Digest(st.Slots.Head) != rec.Head() || st.Slots.Epoch != uint64(rec.Epoch) || st.Counter != uint64(rec.Epoch):
		return st, fmt.Errorf("%w: attests another head", ErrIntegrity)
	}
	return st, nil
}

// VerifyProof checks a proof against the root and count of rec.
func VerifyProof(rec EpochRecord, p tree.Proof) (*tree.View, error) {
	view, err := tree.Verify(rec.Root, p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIntegrity, err)
	}
	if view.Count() != rec.Names {
		return nil, fmt.Errorf("%w: proof of %d names, the record has %d", ErrIntegrity, view.Count(), rec.Names)
	}
	return view, nil
}

// Lookup returns what the view says of a name: its entry, or that there is
// none.
func Lookup(view *tree.View, n Name) (Entry, bool, error) {
	val, ok, err := view.Lookup([]byte(n))
	if err != nil {
		return Entry{}, false, fmt.Errorf("%w: %w", ErrIntegrity, err)
	}
	if !ok {
		return Entry{}, false, nil
	}
	e, err := ParseEntry(val)
	return e, err == nil, err
}

// Undisturbed reports whether the answering replica joined the epoch that it
// attests and has not been reset since. Only then does its word for an absence
// count.
func (v *Verified) Undisturbed() bool {
	want, ok := v.Record.CountsOf(v.Replica)
	return ok && v.Record.HasJoined(v.Replica) && v.Statement.Counts == want
}

// Due returns when the update phase after rec is scheduled. From then on an
// absence as of rec is no longer believed.
func (rec EpochRecord) Due(s Schedule) time.Time { return s.Next(rec.Time) }
