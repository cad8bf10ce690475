package archive

import (
	"fmt"

	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

const receiptFormat = "bonafide/receipt/v1"

// MaxReceipt bounds an encoded receipt, in bytes.
const MaxReceipt = 16 << 20

// Receipt is f+1 answers that agree on a name, kept: one self-contained file
// that proves the binding offline to anyone who holds the first roster.
type Receipt struct {
	Format       string     `json:"format"`
	Archive      Digest     `json:"archive"`
	Name         Name       `json:"name"`
	Record       string     `json:"record"` // the epoch record's text
	Certificate  []byte     `json:"certificate"`
	Proof        tree.Proof `json:"proof"`
	Nonce        Digest     `json:"nonce"`        // that the attestations answer
	Attestations []Attested `json:"attestations"` // at least f+1, by ascending replica
	Rosters      []string   `json:"rosters"`      // changes since the first roster, oldest first
}

// NewReceipt keeps the answers that agree on n; they must share one head.
func NewReceipt(n Name, nonce trust.Nonce, answers []*Verified) Receipt {
	a := answers[0]
	rc := Receipt{
		Format: receiptFormat, Archive: a.Record.Archive, Name: n, Record: string(a.Record.Bytes()),
		Certificate: a.Certificate.Bytes(), Proof: a.Proof, Nonce: Digest(nonce), Rosters: []string{},
	}
	for _, v := range answers {
		rc.Attestations = append(rc.Attestations, Attested{v.Replica, v.Attestation})
	}
	return rc
}

// Bytes returns the receipt's one encoding: JSON, indented.
func (rc Receipt) Bytes() []byte {
	b, err := encodeText(rc)
	if err != nil {
		panic("archive: encode receipt: " + err.Error())
	}
	return b
}

// ParseReceipt parses what Bytes returns. It does not verify.
func ParseReceipt(b []byte) (Receipt, error) {
	var rc Receipt
	if len(b) > MaxReceipt {
		return rc, fmt.Errorf("receipt: %w: %d bytes", ErrFormat, len(b))
	}
	if err := decodeText(b, &rc); err != nil {
		return rc, fmt.Errorf("receipt: %w", err)
	}
	if rc.Format != receiptFormat {
		return rc, fmt.Errorf("receipt: %w: format %q, want %q", ErrFormat, rc.Format, receiptFormat)
	}
	return rc, nil
}

// Verify checks the receipt against the archive's first roster and returns
// what it proves: the entry of its name, as of the returned epoch record.
func (rc Receipt) Verify(r *Roster) (Entry, EpochRecord, error) {
	entry, rec, err := rc.verify(r)
	if err != nil {
		return Entry{}, EpochRecord{}, fmt.Errorf("receipt: %w", err)
	}
	return entry, rec, nil
}

func (rc Receipt) verify(r *Roster) (entry Entry, rec EpochRecord, err error) {
	if rc.Archive != r.ID() {
		return entry, rec, fmt.Errorf("%w: of archive %s, not %s", ErrIntegrity, rc.Archive, r.ID())
	}
	if err := rc.Name.Check(); err != nil {
		return entry, rec, fmt.Errorf("%w: %w", ErrIntegrity, err)
	}
	if len(rc.Rosters) > 0 {
		return entry, rec, fmt.Errorf("%w: roster changes, which this version does not know", ErrIntegrity)
	}
	if rec, _, err = VerifyRecord(r, []byte(rc.Record), rc.Certificate); err != nil {
		return entry, rec, err
	}
	if err = rc.verifyHeads(r, rec); err != nil {
		return entry, rec, err
	}
	view, err := VerifyProof(rec, rc.Proof)
	if err != nil {
		return entry, rec, err
	}
	entry, ok, err := Lookup(view, rc.Name)
	if err == nil && !ok {
		err = fmt.Errorf("%w: the proof shows that %q is not bound", ErrIntegrity, rc.Name)
	}
	return entry, rec, err
}

// verifyHeads checks that f+1 or more distinct replicas attest rec as their
// head.
func (rc Receipt) verifyHeads(r *Roster, rec EpochRecord) error {
	if n := len(rc.Attestations); n < r.F+1 || n > r.N() {
		return fmt.Errorf("%w: %d attestations, want %d to %d", ErrIntegrity, n, r.F+1, r.N())
	}
	for i, v := range rc.Attestations {
		if i > 0 && rc.Attestations[i-1].Replica >= v.Replica {
			return fmt.Errorf("%w: attestations not by distinct replicas in order", ErrIntegrity)
		}
		if _, err := VerifyHead(r, rec, v, trust.Nonce(rc.Nonce)); err != nil {
			return fmt.Errorf("replica %d: %w", v.Replica, err)
		}
	}
	return nil
}
