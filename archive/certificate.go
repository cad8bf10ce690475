package archive

import (
	"fmt"

	"github.com/bonafide-archive/bonafide/trust"
)

const (
	instanceHeader    = "bonafide/instance/v1\n"
	helloHeader       = "bonafide/hello/v1\n"
	prepareHeader     = "bonafide/prepare/v1\n"
	commitHeader      = "bonafide/commit/v1\n"
	certificateHeader = "bonafide/certificate/v1\n"
)

// MaxCertificate bounds an encoded certificate, in bytes.
const MaxCertificate = len(certificateHeader) + 12 + MaxReplicas*(8+trust.MaxAttestation)

// Instance names one attempt at one epoch; it is bound into every message of
// the attempt:
//
//	SHA256("bonafide/instance/v1\n" || archive || be64 epoch || be64 tick || previous || roster)
func Instance(archive Digest, epoch Epoch, tick uint64, previous, roster Digest) Digest {
	b := append([]byte(instanceHeader), archive[:]...)
	b = be64(be64(b, uint64(epoch)), tick)
	b = append(append(b, previous[:]...), roster[:]...)
	return DigestOf(b)
}

// InstanceAt returns the instance of the attempt at tick that certifies rec.
func (rec EpochRecord) InstanceAt(tick uint64) Digest {
	return Instance(rec.Archive, rec.Epoch, tick, rec.Previous, rec.Roster)
}

// HelloNonce is what a replica attests to answer a peer's challenge when both
// open an update phase:
//
//	SHA256("bonafide/hello/v1\n" || archive || be32 from || be32 to || challenge)
//
// from answers, to has asked.
func HelloNonce(archive Digest, from, to uint32, challenge [32]byte) trust.Nonce {
	b := append([]byte(helloHeader), archive[:]...)
	b = be32(be32(b, from), to)
	return trust.Nonce(DigestOf(append(b, challenge[:]...)))
}

// PrepareNonce is what a prepare vote attests:
//
//	SHA256("bonafide/prepare/v1\n" || instance || head)
func PrepareNonce(instance, head Digest) trust.Nonce { return voteNonce(prepareHeader, instance, head) }

// CommitNonce is what a commit vote attests:
//
//	SHA256("bonafide/commit/v1\n" || instance || head)
func CommitNonce(instance, head Digest) trust.Nonce { return voteNonce(commitHeader, instance, head) }

func voteNonce(header string, instance, head Digest) trust.Nonce {
	return trust.Nonce(DigestOf(append(append([]byte(header), instance[:]...), head[:]...)))
}

// Attested is a replica's attestation.
type Attested struct {
	Replica     uint32            `json:"replica"`
	Attestation trust.Attestation `json:"attestation"`
}

// Certificate shows that 2f+1 replicas committed one record at one tick.
type Certificate struct {
	Tick  uint64     // the attempt that certified, the record's tick or a later one
	Votes []Attested // exactly 2f+1, by ascending replica
}

// Bytes returns the certificate's encoding:
//
//	"bonafide/certificate/v1\n" || be64 tick || be32 n || (be32 replica || be32 length || attestation)...
func (c Certificate) Bytes() []byte {
	b := be64([]byte(certificateHeader), c.Tick)
	b = be32(b, uint32(len(c.Votes)))
	for _, v := range c.Votes {
		b = be32(be32(b, v.Replica), uint32(len(v.Attestation)))
		b = append(b, v.Attestation...)
	}
	return b
}

// ParseCertificate parses what Bytes returns.
func ParseCertificate(b []byte) (Certificate, error) {
	var c Certificate
	r := reader{b: b}
	r.literal(certificateHeader)
	c.Tick = r.u64()
	n := r.u32()
	if r.err == nil && n > MaxReplicas {
		r.err = fmt.Errorf("%w: %d votes", ErrFormat, n)
	}
	for i := uint32(0); i < n && r.err == nil; i++ {
		c.Votes = append(c.Votes, r.attested())
	}
	if err := r.end(); err != nil {
		return Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	return c, nil
}

func (r *reader) attested() (v Attested) {
	v.Replica = r.u32()
	n := r.u32()
	if r.err == nil && n > trust.MaxAttestation {
		r.err = fmt.Errorf("%w: attestation of %d bytes", ErrFormat, n)
		return v
	}
	v.Attestation = append(trust.Attestation(nil), r.take(int(n))...)
	return v
}

// Signers returns whose votes c has, ascending.
func (c Certificate) Signers() []uint32 {
	ids := make([]uint32, 0, len(c.Votes))
	for _, v := range c.Votes {
		ids = append(ids, v.Replica)
	}
	return ids
}

// Verify checks that c certifies rec under the roster in force: exactly 2f+1
// update-mode attestations by distinct replicas of r, each holding rec's
// previous record as head and rec as committed at c.Tick, with the epoch
// counter at the epoch before.
func (c Certificate) Verify(r *Roster, rec EpochRecord) error {
	if len(c.Votes) != r.Quorum() {
		return fmt.Errorf("certificate %w: %d votes, want %d", ErrIntegrity, len(c.Votes), r.Quorum())
	}
	if rec.Epoch == 0 || c.Tick < rec.Tick || rec.Tick == 0 {
		return fmt.Errorf("certificate %w: epoch %d, tick %d of a record first built at %d", ErrIntegrity, rec.Epoch, c.Tick, rec.Tick)
	}
	for i, v := range c.Votes {
		if i > 0 && c.Votes[i-1].Replica >= v.Replica {
			return fmt.Errorf("certificate %w: votes not by distinct replicas in order", ErrIntegrity)
		}
		if err := CheckCommit(r, rec, c.Tick, v); err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
	}
	return nil
}

// CheckPrepare checks v as a vote to prepare the record with the given head at
// tick: update mode, the tick slot at that tick.
func CheckPrepare(r *Roster, rec EpochRecord, tick uint64, v Attested) error {
	st, err := r.verifyVote(v, PrepareNonce(rec.InstanceAt(tick), rec.Head()), rec)
	if err != nil {
		return fmt.Errorf("prepare vote of replica %d: %w", v.Replica, err)
	}
	if st.Slots.Tick != tick {
		return fmt.Errorf("prepare vote of replica %d: %w: tick slot %d, want %d", v.Replica, ErrIntegrity, st.Slots.Tick, tick)
	}
	return nil
}

// CheckCommit checks v as a vote to commit rec at tick.
func CheckCommit(r *Roster, rec EpochRecord, tick uint64, v Attested) error {
	head := rec.Head()
	st, err := r.verifyVote(v, CommitNonce(rec.InstanceAt(tick), head), rec)
	if err != nil {
		return fmt.Errorf("commit vote of replica %d: %w", v.Replica, err)
	}
	want := trust.Vote{Epoch: uint64(rec.Epoch), Tick: tick, Record: head}
	if st.Slots.Committed != want {
		return fmt.Errorf("commit vote of replica %d: %w: committed slot holds another record", v.Replica, ErrIntegrity)
	}
	return nil
}

// verifyVote checks what both votes share: the replica's attestation over the
// nonce, in update mode, on top of rec's previous record.
func (r *Roster) verifyVote(v Attested, nonce trust.Nonce, rec EpochRecord) (trust.Statement, error) {
	st, err := r.VerifyAttested(v, nonce)
	switch {
	case err != nil:
		return st, err
	case st.Mode != trust.ModeUpdate:
		return st, fmt.Errorf("%w: made in %s mode", ErrIntegrity, st.Mode)
	case Digest(st.Slots.Archive) != rec.Archive:
		return st, fmt.Errorf("%w: of another archive", ErrIntegrity)
	case Digest(st.Slots.Head) != rec.Previous || st.Slots.Epoch != uint64(rec.Epoch)-1 || st.Counter != uint64(rec.Epoch)-1:
		return st, fmt.Errorf("%w: not on top of the record before", ErrIntegrity)
	}
	return st, nil
}

// VerifyAttested checks an attestation against its replica's roster entry.
func (r *Roster) VerifyAttested(v Attested, nonce trust.Nonce) (trust.Statement, error) {
	m, ok := r.Replica(v.Replica)
	if !ok {
		return trust.Statement{}, fmt.Errorf("%w: replica %d is not in the roster", ErrIntegrity, v.Replica)
	}
	st, err := m.MAS.Verify(v.Attestation, nonce)
	if err != nil {
		return trust.Statement{}, fmt.Errorf("%w: %w", ErrIntegrity, err)
	}
	return st, nil
}
