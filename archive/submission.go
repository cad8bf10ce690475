package archive

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

const (
	submissionHeader = "bonafide/submission/v1\n"
	uploadHeader     = "bonafide/upload/v1\n"
)

const (
	// MaxBindings bounds the names of one submission.
	MaxBindings = 1000
	// SubmissionPrefix is how many of a submission's first bytes name its
	// archive and its writer, so a stranger is refused before the rest is
	// read.
	SubmissionPrefix = len(submissionHeader) + 32 + 32
	// MaxSubmission bounds an encoded submission, in bytes.
	MaxSubmission = SubmissionPrefix + 8 + 1 + 4 + MaxBindings*(2+MaxName+32+8+32) + ed25519.SignatureSize
)

// KeyID names a writer's key: the SHA-256 of its public half.
type KeyID [sha256.Size]byte

// KeyIDOf returns the key ID of an Ed25519 public key.
func KeyIDOf(pub ed25519.PublicKey) KeyID { return sha256.Sum256(pub) }

// String returns the key ID in lower-case hexadecimal.
func (k KeyID) String() string { return Digest(k).String() }

// Binding asks for a name to be bound to a content.
type Binding struct {
	Name Name
	Content
}

// Submission is what a writer sends to Add: names and contents under one
// signature.
type Submission struct {
	Archive   Digest // archive ID
	Writer    KeyID
	Created   time.Time // whole seconds, UTC
	Bindings  []Binding // 1 to MaxBindings, names strictly ascending
	Signature [ed25519.SignatureSize]byte
}

// Sign sets the writer and the signature of s by key.
func (s *Submission) Sign(key ed25519.PrivateKey) {
	s.Writer = KeyIDOf(key.Public().(ed25519.PublicKey))
	copy(s.Signature[:], ed25519.Sign(key, s.signed()))
}

// Bytes returns the signed bytes, then the signature.
func (s Submission) Bytes() []byte { return append(s.signed(), s.Signature[:]...) }

// Digest identifies the submission.
func (s Submission) Digest() Digest { return DigestOf(s.Bytes()) }

func (s Submission) signed() []byte {
	b := append([]byte(submissionHeader), s.Archive[:]...)
	b = append(b, s.Writer[:]...)
	b = be64(b, uint64(s.Created.Unix()))
	b = append(b, HashSHA256)
	b = be32(b, uint32(len(s.Bindings)))
	for _, x := range s.Bindings {
		b = be16(b, uint16(len(x.Name)))
		b = append(b, x.Name...)
		b = append(b, x.Digest[:]...)
		b = be64(b, x.Size)
		b = append(b, x.Blocks[:]...)
	}
	return b
}

// ParseSubmission parses what Bytes returns, and checks its form: names that
// an archive takes, in order. It checks neither signature nor rights.
func ParseSubmission(b []byte) (Submission, error) {
	s, err := parseSubmission(b)
	if err != nil {
		return Submission{}, fmt.Errorf("submission: %w", err)
	}
	return s, nil
}

func parseSubmission(b []byte) (s Submission, err error) {
	if len(b) > MaxSubmission {
		return s, fmt.Errorf("%w: %d bytes", ErrFormat, len(b))
	}
	r := reader{b: b}
	r.literal(submissionHeader)
	s.Archive, s.Writer = r.digest(), KeyID(r.digest())
	s.Created = time.Unix(int64(r.u64()), 0).UTC()
	hash, n := r.u8(), r.u32()
	if r.err == nil && (hash != HashSHA256 || n < 1 || n > MaxBindings) {
		return s, fmt.Errorf("%w: hash 0x%02x, %d names", ErrFormat, hash, n)
	}
	for i := uint32(0); i < n && r.err == nil; i++ {
		s.Bindings = append(s.Bindings, r.binding())
	}
	copy(s.Signature[:], r.take(len(s.Signature)))
	if err := r.end(); err != nil {
		return s, err
	}
	return s, s.checkNames()
}

func (r *reader) binding() (x Binding) {
	n := int(r.u16())
	if n > MaxName && r.err == nil {
		r.err = fmt.Errorf("%w: %d bytes", ErrName, n)
		return x
	}
	x.Name = Name(r.take(n))
	x.Digest, x.Size, x.Blocks = r.digest(), r.u64(), r.digest()
	return x
}

func (s Submission) checkNames() error {
	for i, x := range s.Bindings {
		if err := x.Name.Check(); err != nil {
			return err
		}
		if i > 0 && s.Bindings[i-1].Name >= x.Name {
			return fmt.Errorf("%w: names out of order", ErrFormat)
		}
	}
	return nil
}

// Verify checks that s is for the archive of r and signed by a writer that r
// lists. Rights to the names and age are Permitted and Fresh.
func (s Submission) Verify(r *Roster) (Writer, error) {
	w, err := r.Admit(s.Archive, s.Writer)
	if err != nil {
		return Writer{}, err
	}
	if !ed25519.Verify(ed25519.PublicKey(w.Key), s.signed(), s.Signature[:]) {
		return Writer{}, fmt.Errorf("submission: signature %w", ErrIntegrity)
	}
	return w, nil
}

// SubmissionWriter reads the archive and writer off the first SubmissionPrefix
// bytes of a submission.
func SubmissionWriter(prefix []byte) (Digest, KeyID, error) {
	r := reader{b: prefix}
	r.literal(submissionHeader)
	a, w := r.digest(), KeyID(r.digest())
	if err := r.end(); err != nil {
		return Digest{}, KeyID{}, fmt.Errorf("submission: %w", err)
	}
	return a, w, nil
}

// Fresh checks that s was created at most age before now, and not more than an
// hour after it.
func (s Submission) Fresh(now time.Time, age time.Duration) error {
	if d := now.Sub(s.Created); d > age || d < -time.Hour {
		return fmt.Errorf("%w: created %s", ErrExpired, s.Created.Format(time.RFC3339))
	}
	return nil
}

// Size returns the sum of the sizes of the contents, saturating.
func (s Submission) Size() uint64 {
	var sum uint64
	for _, x := range s.Bindings {
		if sum += x.Size; sum < x.Size {
			return ^uint64(0)
		}
	}
	return sum
}

// Permitted checks that w may write every name of s.
func (w Writer) Permitted(s Submission) error {
	for _, x := range s.Bindings {
		if !w.mayWrite(x.Name) {
			return fmt.Errorf("%w: %q", ErrNotWriter, x.Name)
		}
	}
	return nil
}

func (w Writer) mayWrite(n Name) bool {
	for _, p := range w.Prefixes {
		if strings.HasPrefix(string(n), p) {
			return true
		}
	}
	return len(w.Prefixes) == 0
}

// Upload is a writer's signed leave to send one content to the replicas.
type Upload struct {
	Archive   Digest
	Writer    KeyID
	Digest    Digest
	Size      uint64
	Signature [ed25519.SignatureSize]byte
}

// UploadSize is the length of an encoded Upload.
const UploadSize = len(uploadHeader) + 32 + 32 + 32 + 8 + ed25519.SignatureSize

// SignUpload returns the leave to send c to archive, by key.
func SignUpload(key ed25519.PrivateKey, archive Digest, c Content) Upload {
	u := Upload{Archive: archive, Writer: KeyIDOf(key.Public().(ed25519.PublicKey)), Digest: c.Digest, Size: c.Size}
	copy(u.Signature[:], ed25519.Sign(key, u.signed()))
	return u
}

func (u Upload) signed() []byte {
	b := append([]byte(uploadHeader), u.Archive[:]...)
	b = append(b, u.Writer[:]...)
	b = append(b, u.Digest[:]...)
	return be64(b, u.Size)
}

// Bytes returns the signed bytes, then the signature.
func (u Upload) Bytes() []byte { return append(u.signed(), u.Signature[:]...) }

// ParseUpload parses what Bytes returns.
func ParseUpload(b []byte) (Upload, error) {
	r := reader{b: b}
	r.literal(uploadHeader)
	u := Upload{Archive: r.digest(), Writer: KeyID(r.digest()), Digest: r.digest(), Size: r.u64()}
	copy(u.Signature[:], r.take(len(u.Signature)))
	if err := r.end(); err != nil {
		return Upload{}, fmt.Errorf("upload: %w", err)
	}
	return u, nil
}

// Verify checks that u is for the archive of r and signed by one of its
// writers.
func (u Upload) Verify(r *Roster) (Writer, error) {
	w, err := r.Admit(u.Archive, u.Writer)
	if err != nil {
		return Writer{}, err
	}
	if !ed25519.Verify(ed25519.PublicKey(w.Key), u.signed(), u.Signature[:]) {
		return Writer{}, fmt.Errorf("upload: signature %w", ErrIntegrity)
	}
	return w, nil
}

// PublicKey is an Ed25519 public key with the text form ed25519:HEX.
type PublicKey []byte

const publicKeyPrefix = "ed25519:"

// String returns the text form.
func (k PublicKey) String() string { return publicKeyPrefix + hex.EncodeToString(k) }

// MarshalText returns String.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText accepts exactly what MarshalText returns.
func (k *PublicKey) UnmarshalText(text []byte) error {
	rest, ok := bytes.CutPrefix(text, []byte(publicKeyPrefix))
	if !ok {
		return fmt.Errorf("%w: key does not begin with %q", ErrFormat, publicKeyPrefix)
	}
	b := make([]byte, ed25519.PublicKeySize)
	if err := unhex(b, string(rest)); err != nil {
		return err
	}
	*k = b
	return nil
}
