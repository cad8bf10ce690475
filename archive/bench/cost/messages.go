package cost

// Lengths of what an update phase says, in bytes, of consensus/SPEC.md,
// archive/replica/SPEC.md, archive/SPEC.md and trust/SPEC.md. A proposal is empty, and
// so a manifest has no pieces.
const (
	Attestation = 24 + 1 + 3 + 1 + 192 + 8 + 8 + 4 + 4 + 1 + 64 // of a software device, alone under its signature
	manifest    = 21 + 32 + 4 + 8 + 4 + 4 + 8 + 4
	voucher     = 20 + 32 + 4 + 4 + 32 + 64
	item        = 1 + 4 // before each payload on a board
)

// Join is a replica's join: a challenge of each other replica, and an attestation.
func Join(replicas float64) float64 {
	return 17 + 4 + manifest + 4 + (replicas-1)*(4+32) + 4 + Attestation
}

// Proposal is a proposal certificate: a join and 2f+1 vouchers.
func Proposal(replicas float64) float64 {
	return 21 + 4 + Join(replicas) + 4 + Quorum(replicas)*(4+64)
}

// Block is a block with the proposals of all.
func Block(replicas float64) float64 {
	return 18 + 32 + 4 + replicas*(4+Proposal(replicas)) + 4
}

// Certificate is that of an epoch: 2f+1 attestations.
func Certificate(replicas float64) float64 {
	return 24 + 8 + 4 + Quorum(replicas)*(4+4+Attestation)
}

// record is about an epoch record: its lines, and of each replica an ID that joined
// and the counts.
func record(replicas float64) float64 { return 435 + replicas*9 }

// Board is what one replica publishes in a phase and each other reads: the epoch it
// builds on, the answers to its hellos, its join, a voucher for each other, its
// proposal, the block, three ballots, two with an attestation, and the certificate.
func Board(replicas float64) float64 {
	others := replicas - 1
	return item + 40 +
		others*(item+40+Attestation) +
		item + Join(replicas) +
		others*(item+voucher) +
		item + Proposal(replicas) +
		item + Block(replicas) +
		3*(item+64) + 2*Attestation +
		item + 4 + record(replicas) + Certificate(replicas)
}

// Pairs is how many boards are read: each replica's by each other.
func Pairs(replicas float64) float64 { return replicas * (replicas - 1) }
