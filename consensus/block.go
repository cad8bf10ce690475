package consensus

import (
	"crypto/sha256"
	"fmt"
)

const blockName = "bonafide/block/v1\n"

// Block is what an update phase agrees on: the proposals of at least a quorum,
// whose joins are its join set, and, where the join set shows a committed record
// of this epoch, that record instead of a new one.
type Block struct {
	Instance  [32]byte
	Proposals []ProposalCertificate // ascending by replica
	Carried   *Carried
}

// MaxBlock bounds a block's bytes.
const (
	MaxBlock    = maxBare + 4 + maxCarried
	maxBare     = len(blockName) + 32 + 4 + MaxMembers*(4+maxProposal) + 4
	minProposal = len(proposalName) + 4 + 4
)

// Bytes is the block's one encoding.
func (b Block) Bytes() []byte {
	w := newWriter(blockName)
	w.instance(b.Instance)
	w.count(len(b.Proposals))
	for _, p := range b.Proposals {
		w.blob(p.Bytes())
	}
	if b.Carried == nil {
		w.count(0)
		return w.b
	}
	w.count(1)
	w.blob(b.Carried.Bytes())
	return w.b
}

// Digest is SHA256(Bytes()), which the epoch record names.
func (b Block) Digest() [32]byte { return sha256.Sum256(b.Bytes()) }

// ParseBlock accepts exactly what Bytes returns; it checks no signature.
func ParseBlock(in []byte) (Block, error) {
	if len(in) > MaxBlock {
		return Block{}, malformed("block of %d bytes", len(in))
	}
	r := newReader(blockName, in)
	b := Block{Instance: r.hash()}
	for range r.count(MaxMembers, minProposal) {
		b.Proposals = append(b.Proposals, r.proposal())
	}
	if r.count(1, len(carriedName)) == 1 {
		b.Carried = r.carried()
	}
	if err := r.end(); err != nil {
		return Block{}, err
	}
	if err := canonical(b, in); err != nil {
		return Block{}, err
	}
	return b, nil
}

func (r *reader) proposal() (p ProposalCertificate) {
	b := r.take(r.count(maxProposal, 1))
	if r.err == nil {
		p, r.err = ParseProposalCertificate(b)
	}
	return p
}

func (r *reader) carried() *Carried {
	b := r.take(r.count(maxCarried, 1))
	if r.err != nil {
		return nil
	}
	var c Carried
	c, r.err = ParseCarried(b)
	return &c
}

func (b Block) form() error {
	if len(b.Proposals) > MaxMembers {
		return malformed("%d proposals", len(b.Proposals))
	}
	for _, p := range b.Proposals {
		if err := p.form(); err != nil {
			return err
		}
	}
	if b.Carried != nil {
		if err := b.Carried.form(); err != nil {
			return err
		}
	}
	return ascending(b.Proposals, ProposalCertificate.Replica)
}

// Check says whether b is a block of inst with the certified proposals of at
// least quorum distinct members. It is pure. What it cannot know is the caller's
// to check: the attestations in the joins, the prepare certificate of a carried
// record, and whether the join set calls for one.
func (b Block) Check(inst [32]byte, quorum int, members []Member) error {
	if err := b.form(); err != nil {
		return err
	}
	if b.Instance != inst {
		return malformed("block of another instance")
	}
	if err := b.checkProposals(quorum, members); err != nil {
		return err
	}
	if b.Carried == nil {
		return nil
	}
	if err := b.Carried.check(inst, quorum, members); err != nil {
		return fmt.Errorf("carried record: %w", err)
	}
	return nil
}

func (b Block) checkProposals(quorum int, members []Member) error {
	if len(b.Proposals) < quorum {
		return malformed("%d proposals, fewer than %d", len(b.Proposals), quorum)
	}
	for _, p := range b.Proposals {
		if err := p.Check(b.Instance, quorum, members); err != nil {
			return err
		}
	}
	return nil
}
