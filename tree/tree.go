// Package tree is the home of the archive's authenticated dictionary: what a
// set of names and values hashes to, and how one proves that a name is in it,
// is not in it, or that a listing leaves nothing out.
//
// The root depends only on the set of pairs, not on the order in which they
// came. Verify is pure and knows nothing of how a tree is kept; package
// boltstore keeps one on disk, Memory is the slow reference. SPEC.md beside
// this package is the format, DESIGN.md says why.
package tree

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// A name has 1 to MaxName bytes, a value 0 to MaxVal.
const MaxName, MaxVal = 1 << 12, 1 << 12

// Hash is a SHA-256 digest.
type Hash [32]byte

// Pair is one name with its value.
type Pair struct{ Name, Val []byte }

var (
	// ErrInvalidProof says that a proof does not show what is asked of it.
	ErrInvalidProof = errors.New("invalid proof")
	// ErrOrder says that names do not strictly increase.
	ErrOrder = errors.New("names out of order")
	// ErrSize says that a name or a value is too short or too long.
	ErrSize = errors.New("name or value size out of bounds")
)

const rootPrefix = "\x02bonafide-ast/1\x00\x12" // 0x12: SHA-256 in the multihash table

// LeafHash is the digest of one pair.
func LeafHash(name, val []byte) Hash {
	// SHA256(0x00 || be32 len(name) || name || value)
	var buf [256]byte
	b := binary.BigEndian.AppendUint32(append(buf[:0], 0x00), uint32(len(name)))
	return sha256.Sum256(append(append(b, name...), val...))
}

// NodeHash is the digest of an inner node.
func NodeHash(left, right Hash) Hash {
	// SHA256(0x01 || left || right)
	var b [65]byte
	b[0] = 0x01
	copy(b[1:], left[:])
	copy(b[33:], right[:])
	return sha256.Sum256(b[:])
}

// RootHash binds the number of pairs to the digest of the top chunk.
func RootHash(count uint64, top Hash) Hash {
	// SHA256(0x02 || "bonafide-ast/1\0" || 0x12 || be64 count || top)
	var buf [64]byte
	b := binary.BigEndian.AppendUint64(append(buf[:0], rootPrefix...), count)
	return sha256.Sum256(append(b, top[:]...))
}

// EmptyRoot is the root of the tree without pairs.
func EmptyRoot() Hash { return RootHash(0, Hash{}) }

// Height is the number of levels at which a leaf of digest d begins a chunk,
// unless it is the first leaf of the tree, which begins one at every level.
func Height(d Hash) int {
	zeros := 0
	for i := len(d) - 1; i >= 0; i-- {
		if d[i] != 0 {
			return (zeros + bits.TrailingZeros8(d[i])) / 6
		}
		zeros += 8
	}
	return zeros / 6
}

// CheckPair returns ErrSize unless name and val are within bounds.
func CheckPair(name, val []byte) error {
	if len(name) < 1 || len(name) > MaxName || len(val) > MaxVal {
		return fmt.Errorf("%w: name %d bytes, value %d bytes", ErrSize, len(name), len(val))
	}
	return nil
}

// PrefixEnd returns the least byte string above all that begin with prefix,
// nil if there is none.
func PrefixEnd(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := append([]byte(nil), prefix[:i+1]...)
			end[i]++
			return end
		}
	}
	return nil
}
