package consensus

import "crypto/sha256"

const (
	joinName  = "bonafide/join/v1\n"
	nonceName = "bonafide/join-nonce/v1\n"
)

// Bounds of everything that is counted in replicas.
const (
	MaxMembers     = 16
	MaxAttestation = 1 << 13 // bytes; opaque here
)

// Challenge is the nonce with which Replica asked for a fresh attestation.
type Challenge struct {
	Replica uint32
	Nonce   [32]byte
}

// Join is a replica's entry into an attempt: what it proposes, the challenges
// of its peers, and its device's attestation over Nonce, opaque here.
type Join struct {
	Manifest    Manifest
	Challenges  []Challenge // ascending by replica
	Attestation []byte
}

// Nonce is what the attestation must answer. Manifest and challenges determine it:
//
//	SHA256("bonafide/join-nonce/v1\n" || instance || manifest digest || be32 n || n * (be32 replica || nonce))
func (j Join) Nonce() [32]byte {
	w := newWriter(nonceName)
	digest := j.Manifest.Digest()
	w.instance(j.Manifest.Instance)
	w.raw(digest[:])
	w.challenges(j.Challenges)
	return w.digest()
}

func (w *writer) challenges(cs []Challenge) {
	w.count(len(cs))
	for _, c := range cs {
		w.replica(c.Replica)
		w.raw(c.Nonce[:])
	}
}

// Answers returns whether the join's nonce covers nonce as replica's challenge.
func (j Join) Answers(replica uint32, nonce [32]byte) bool {
	for _, c := range j.Challenges {
		if c.Replica == replica {
			return c.Nonce == nonce
		}
	}
	return false
}

// Bytes is the join's one encoding.
func (j Join) Bytes() []byte {
	w := newWriter(joinName)
	w.blob(j.Manifest.Bytes())
	w.challenges(j.Challenges)
	w.blob(j.Attestation)
	return w.b
}

// Digest is SHA256(Bytes()); vouchers name a join by it.
func (j Join) Digest() [32]byte { return sha256.Sum256(j.Bytes()) }

// ParseJoin accepts exactly what Bytes returns.
func ParseJoin(b []byte) (Join, error) {
	r := newReader(joinName, b)
	manifest := r.take(r.count(maxManifest, 1))
	j := Join{}
	for range r.count(MaxMembers, challengeSize) {
		j.Challenges = append(j.Challenges, Challenge{Replica: r.u32(), Nonce: r.hash()})
	}
	j.Attestation = r.blob(MaxAttestation)
	if err := r.end(); err != nil {
		return Join{}, err
	}
	var err error
	if j.Manifest, err = ParseManifest(manifest); err != nil {
		return Join{}, err
	}
	if err := canonical(j, b); err != nil {
		return Join{}, err
	}
	return j, nil
}

const (
	challengeSize = 4 + 32
	maxManifest   = len(manifestName) + 32 + 4 + 8 + 4 + 4 + 8 + 4 + MaxPieces*pieceSize
	maxJoin       = len(joinName) + 4 + maxManifest + 4 + MaxMembers*challengeSize + 4 + MaxAttestation
)

func (j Join) form() error {
	if err := j.Manifest.form(); err != nil {
		return err
	}
	if len(j.Challenges) > MaxMembers || len(j.Attestation) > MaxAttestation {
		return malformed("%d challenges, attestation of %d bytes", len(j.Challenges), len(j.Attestation))
	}
	return ascending(j.Challenges, func(c Challenge) uint32 { return c.Replica })
}
