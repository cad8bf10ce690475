// Package archive holds the values that the parts of an archive exchange:
// names, entries, submissions, rosters, epoch records, certificates, answers
// and receipts, each with one encoding, and the pure checks that make them
// believable. It does no I/O, reads no clock and keeps no state, so whatever
// verifies here verifies offline, decades later. SPEC.md gives the bytes.
package archive

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// Errors that callers decide on. Checks wrap them with what was wrong.
var (
	// ErrName reports a name that no archive takes.
	ErrName = errors.New("bad name")
	// ErrFormat reports bytes that are not the one encoding of a value.
	ErrFormat = errors.New("bad encoding")
	// ErrRoster reports a roster that contradicts itself or is not the one
	// expected.
	ErrRoster = errors.New("bad roster")
	// ErrIntegrity reports a proof, signature, digest or certificate that
	// does not check.
	ErrIntegrity = errors.New("does not verify")
	// ErrNotWriter reports a submission by a key the roster does not list,
	// or for a name its prefixes do not cover.
	ErrNotWriter = errors.New("not permitted to write")
	// ErrExpired reports a submission created too long before, or after,
	// the time it is judged by.
	ErrExpired = errors.New("submission outside its age")
)

// Epoch counts completed update phases; 0 is the empty archive.
type Epoch uint64

// Digest is a SHA-256 digest.
type Digest [sha256.Size]byte

// DigestOf returns SHA256(b).
func DigestOf(b []byte) Digest { return sha256.Sum256(b) }

// String returns the digest in lower-case hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether every byte is zero.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText returns String.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts exactly what MarshalText returns.
func (d *Digest) UnmarshalText(text []byte) error {
	return unhex(d[:], string(text))
}

// ParseDigest parses 64 lower-case hexadecimal digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	return d, unhex(d[:], s)
}

// unhex fills dst from lower-case hexadecimal of exactly its length.
func unhex(dst []byte, s string) error {
	if len(s) != 2*len(dst) {
		return fmt.Errorf("%w: %d hexadecimal digits, want %d", ErrFormat, len(s), 2*len(dst))
	}
	if _, err := hex.Decode(dst, []byte(s)); err != nil || hex.EncodeToString(dst) != s {
		return fmt.Errorf("%w: not lower-case hexadecimal", ErrFormat)
	}
	return nil
}
