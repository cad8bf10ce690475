package wire

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree"
)

// Bounds of the bodies of PathProofs, in bytes.
const (
	MaxProofsRequest = len(archive.Digest{}) + MaxProofs*(2+archive.MaxName)
	MaxProofsReply   = 4 + tree.MaxProof
)

// ProofsRequest asks for the proofs of names, 1 to MaxProofs, under a head that
// was attested before.
type ProofsRequest struct {
	Head  archive.Digest
	Names []archive.Name
}

// Bytes returns head || { be16 length || name }.
func (q ProofsRequest) Bytes() []byte {
	b := slices.Clone(q.Head[:])
	for _, n := range q.Names {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(n))), n...)
	}
	return b
}

// ParseProofsRequest parses what Bytes returns, and checks each name.
func ParseProofsRequest(b []byte) (q ProofsRequest, err error) {
	if len(b) > MaxProofsRequest || len(b) < len(q.Head) {
		return q, fmt.Errorf("request: %w: %d bytes", archive.ErrFormat, len(b))
	}
	q.Head = archive.Digest(b)
	for b = b[len(q.Head):]; len(b) > 0; {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return q, fmt.Errorf("request: %w: torn name", archive.ErrFormat)
		}
		end := 2 + int(binary.BigEndian.Uint16(b))
		n := archive.Name(b[2:end])
		if err := n.Check(); err != nil {
			return q, fmt.Errorf("request: %w", err)
		}
		q.Names, b = append(q.Names, n), b[end:]
	}
	if len(q.Names) == 0 || len(q.Names) > MaxProofs {
		return q, fmt.Errorf("request: %w: %d names", archive.ErrFormat, len(q.Names))
	}
	return q, nil
}

// AppendProof adds be32 length || p to a reply of PathProofs.
func AppendProof(reply []byte, p tree.Proof) []byte {
	return append(binary.BigEndian.AppendUint32(reply, uint32(len(p))), p...)
}

// ParseProofs parses a reply of 1 to n proofs, which share its memory.
func ParseProofs(b []byte, n int) (all []tree.Proof, err error) {
	for len(b) > 0 && len(all) < n {
		if len(b) < 4 || len(b)-4 < int(binary.BigEndian.Uint32(b)) {
			return nil, fmt.Errorf("%w: torn proof", archive.ErrFormat)
		}
		end := 4 + int(binary.BigEndian.Uint32(b))
		all, b = append(all, b[4:end:end]), b[end:]
	}
	if len(all) == 0 || len(b) > 0 {
		return nil, fmt.Errorf("%w: not 1 to %d proofs", archive.ErrFormat, n)
	}
	return all, nil
}

// Proofs asks for the proofs of names, MaxProofs of them at most, under a head
// that was attested before. It returns those of the first names, of one at least:
// as many as one reply holds.
func (c *Client) Proofs(ctx context.Context, head archive.Digest, names []archive.Name) ([]tree.Proof, error) {
	q := ProofsRequest{head, names}
	b, err := c.post(ctx, PathProofs, "application/octet-stream", q.Bytes(), int64(MaxProofsReply))
	if err != nil {
		return nil, c.wrap("proofs", err)
	}
	all, err := ParseProofs(b, len(names))
	return all, c.wrap("proofs", err)
}
