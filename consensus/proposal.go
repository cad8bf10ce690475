package consensus

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
)

const proposalName = "bonafide/proposal/v1\n"

// Member is one replica as the engine knows it.
type Member struct {
	ID      uint32
	Address string // host:port of the engine
	Key     ed25519.PublicKey
}

// ProposalCertificate proves that a replica's body survives: its join, and the
// vouchers of a quorum for exactly that join.
type ProposalCertificate struct {
	Join     Join
	Vouchers []Voucher // exactly a quorum, ascending by voter
}

// Replica is whose proposal it is.
func (p ProposalCertificate) Replica() uint32 { return p.Join.Manifest.Replica }

// Bytes is the certificate's one encoding. Of a voucher only voter and
// signature are written: the join determines the rest.
func (p ProposalCertificate) Bytes() []byte {
	w := newWriter(proposalName)
	w.blob(p.Join.Bytes())
	w.count(len(p.Vouchers))
	for _, v := range p.Vouchers {
		w.replica(v.Voter)
		w.raw(v.Signature[:])
	}
	return w.b
}

// Digest is SHA256(Bytes()).
func (p ProposalCertificate) Digest() [32]byte { return sha256.Sum256(p.Bytes()) }

// ParseProposalCertificate accepts exactly what Bytes returns; it checks no signature.
func ParseProposalCertificate(b []byte) (ProposalCertificate, error) {
	r := newReader(proposalName, b)
	join := r.take(r.count(maxJoin, 1))
	var vouchers []Voucher
	for range r.count(MaxMembers, voucherPart) {
		v := Voucher{Voter: r.u32()}
		copy(v.Signature[:], r.take(len(v.Signature)))
		vouchers = append(vouchers, v)
	}
	if err := r.end(); err != nil {
		return ProposalCertificate{}, err
	}
	j, err := ParseJoin(join)
	if err != nil {
		return ProposalCertificate{}, err
	}
	p := ProposalCertificate{Join: j, Vouchers: vouchers}
	p.fill(sha256.Sum256(join))
	if err := canonical(p, b); err != nil {
		return ProposalCertificate{}, err
	}
	return p, nil
}

// fill gives each voucher what the join says of it.
func (p ProposalCertificate) fill(join [32]byte) {
	for i := range p.Vouchers {
		v := &p.Vouchers[i]
		v.Instance, v.Replica, v.Join = p.Join.Manifest.Instance, p.Replica(), join
	}
}

const (
	voucherPart = 4 + 64
	maxProposal = len(proposalName) + 4 + maxJoin + 4 + MaxMembers*voucherPart
)

func (p ProposalCertificate) form() error {
	if err := p.Join.form(); err != nil {
		return err
	}
	if len(p.Vouchers) > MaxMembers {
		return malformed("%d vouchers", len(p.Vouchers))
	}
	return ascending(p.Vouchers, func(v Voucher) uint32 { return v.Voter })
}

// Check says whether p belongs to inst, comes from a member, and carries
// exactly quorum vouchers of distinct members for its join. The attestation in
// the join is the caller's to check.
func (p ProposalCertificate) Check(inst [32]byte, quorum int, members []Member) error {
	if err := p.form(); err != nil {
		return err
	}
	if p.Join.Manifest.Instance != inst {
		return malformed("proposal of replica %d is of another instance", p.Replica())
	}
	if _, ok := member(members, p.Replica()); !ok {
		return malformed("proposal of replica %d, which is no member", p.Replica())
	}
	if len(p.Vouchers) != quorum {
		return malformed("proposal of replica %d has %d vouchers, not %d", p.Replica(), len(p.Vouchers), quorum)
	}
	return p.checkVouchers(members)
}

func (p ProposalCertificate) checkVouchers(members []Member) error {
	join := p.Join.Digest()
	for _, v := range p.Vouchers {
		m, ok := member(members, v.Voter)
		if !ok {
			return malformed("voucher of replica %d, which is no member", v.Voter)
		}
		if v.Instance != p.Join.Manifest.Instance || v.Replica != p.Replica() || v.Join != join {
			return malformed("voucher of replica %d is for another join", v.Voter)
		}
		if err := v.Verify(m.Key); err != nil {
			return fmt.Errorf("voucher of replica %d for replica %d: %w", v.Voter, p.Replica(), err)
		}
	}
	return nil
}

func member(members []Member, id uint32) (Member, bool) {
	for _, m := range members {
		if m.ID == id {
			return m, true
		}
	}
	return Member{}, false
}
