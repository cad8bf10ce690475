package archive

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	countersignatureFormat = "bonafide/countersignature/v1"
	countersignatureHeader = countersignatureFormat + "\n"
)

// MaxCountersignatures bounds the text of all countersignatures of a roster.
const MaxCountersignatures = MaxReplicas * 512

// A Countersignature is a member's word that it serves a roster as it stands:
// its service key's signature of the roster's digest. It lies beside the
// roster, whose digest is the archive ID.
type Countersignature struct {
	Replica   uint32
	Roster    Digest
	Key       PublicKey // service key, which the roster knows by its digest
	Signature []byte
}

// Countersign signs r as the given replica, whose service key is key.
func Countersign(key ed25519.PrivateKey, replica uint32, r *Roster) Countersignature {
	c := Countersignature{Replica: replica, Roster: r.ID(), Key: PublicKey(key.Public().(ed25519.PublicKey))}
	c.Signature = ed25519.Sign(key, c.message())
	return c
}

// message is what is signed:
//
//	"bonafide/countersignature/v1\n" || roster || be32 replica
func (c Countersignature) message() []byte {
	return be32(append([]byte(countersignatureHeader), c.Roster[:]...), c.Replica)
}

// String returns the countersignature's one encoding: a line of text, without
// its end.
func (c Countersignature) String() string {
	return fmt.Sprintf("%s %d %s %s %x", countersignatureFormat, c.Replica, c.Roster, c.Key, c.Signature)
}

// ParseCountersignatures parses lines of String, each with its end. It does not
// verify.
func ParseCountersignatures(b []byte) (all []Countersignature, err error) {
	if len(b) > MaxCountersignatures {
		return nil, fmt.Errorf("countersignatures: %w: %d bytes", ErrFormat, len(b))
	}
	for line := range strings.Lines(string(b)) {
		c, err := parseCountersignature(line)
		if err != nil {
			return nil, fmt.Errorf("countersignature: %w", err)
		}
		all = append(all, c)
	}
	return all, nil
}

func parseCountersignature(line string) (c Countersignature, err error) {
	field := strings.Split(strings.TrimSuffix(line, "\n"), " ")
	if len(field) != 5 || len(field[4]) != 2*ed25519.SignatureSize {
		return c, fmt.Errorf("%w: not a %s", ErrFormat, countersignatureFormat)
	}
	if _, err := fmt.Sscan(field[1], &c.Replica); err != nil {
		return c, fmt.Errorf("%w: replica %q", ErrFormat, field[1])
	}
	if c.Roster, err = ParseDigest(field[2]); err != nil {
		return c, err
	}
	if err := c.Key.UnmarshalText([]byte(field[3])); err != nil {
		return c, err
	}
	if c.Signature, err = hex.DecodeString(field[4]); err != nil {
		return c, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if c.String()+"\n" != line {
		return c, fmt.Errorf("%w: not in its one form", ErrFormat)
	}
	return c, nil
}

// Verify checks that c is its replica's word for r.
func (c Countersignature) Verify(r *Roster) error {
	m, ok := r.Replica(c.Replica)
	if !ok {
		return fmt.Errorf("countersignature %w: replica %d is not in the roster", ErrIntegrity, c.Replica)
	}
	if c.Roster != r.ID() {
		return fmt.Errorf("countersignature %w: replica %d signed roster %s, not %s", ErrIntegrity, c.Replica, c.Roster, r.ID())
	}
	spki, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(c.Key))
	if err != nil || DigestOf(spki) != m.TLS {
		return fmt.Errorf("countersignature %w: not by the service key of replica %d", ErrIntegrity, c.Replica)
	}
	if len(c.Key) != ed25519.PublicKeySize || !ed25519.Verify(ed25519.PublicKey(c.Key), c.message(), c.Signature) {
		return fmt.Errorf("countersignature %w: wrong signature of replica %d", ErrIntegrity, c.Replica)
	}
	return nil
}

// Uncountersigned returns the replicas of r, ascending, whose word is not among
// all; an error if one of all is not what it says.
func (r *Roster) Uncountersigned(all []Countersignature) (missing []uint32, err error) {
	signed := make(map[uint32]bool)
	for _, c := range all {
		if err := c.Verify(r); err != nil {
			return nil, err
		}
		signed[c.Replica] = true
	}
	for _, m := range r.Replicas {
		if !signed[m.ID] {
			missing = append(missing, m.ID)
		}
	}
	return missing, nil
}
