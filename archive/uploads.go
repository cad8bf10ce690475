package archive

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
)

const uploadsHeader = "bonafide/uploads/v1\n"

// Bounds of the contents that are sent together.
const (
	// MaxUploads bounds their number.
	MaxUploads = 1000
	// MaxUploadsSize bounds the sum of their sizes, in bytes: a replica keeps
	// them in memory until it knows that they are right.
	MaxUploadsSize = 8 << 20
)

const (
	// UploadsPrefix is how many of the first bytes of an encoded Uploads say
	// whose it is and how long.
	UploadsPrefix = len(uploadsHeader) + 32 + 32 + 4
	uploadsItem   = 32 + 4
)

// Sized is a content that an Uploads announces.
type Sized struct {
	Digest Digest
	Size   uint32
}

// Uploads is a writer's signed leave to send many contents to the replicas at
// once.
type Uploads struct {
	Archive   Digest
	Writer    KeyID
	Contents  []Sized // 1 to MaxUploads, digests strictly ascending
	Signature [ed25519.SignatureSize]byte
}

// SignUploads returns the leave to send contents, which are within the bounds
// and by ascending digest, to archive.
func SignUploads(key ed25519.PrivateKey, archive Digest, contents []Sized) Uploads {
	u := Uploads{Archive: archive, Writer: KeyIDOf(key.Public().(ed25519.PublicKey)), Contents: contents}
	copy(u.Signature[:], ed25519.Sign(key, u.signed()))
	return u
}

func (u Uploads) signed() []byte {
	b := append(make([]byte, 0, UploadsPrefix+len(u.Contents)*uploadsItem+len(u.Signature)), uploadsHeader...)
	b = append(b, u.Archive[:]...)
	b = append(b, u.Writer[:]...)
	b = be32(b, uint32(len(u.Contents)))
	for _, c := range u.Contents {
		b = append(b, c.Digest[:]...)
		b = be32(b, c.Size)
	}
	return b
}

// Bytes returns the signed bytes, then the signature.
func (u Uploads) Bytes() []byte { return append(u.signed(), u.Signature[:]...) }

// Size returns the sum of the sizes.
func (u Uploads) Size() uint64 {
	var sum uint64
	for _, c := range u.Contents {
		sum += uint64(c.Size)
	}
	return sum
}

// UploadsHead reads off the first UploadsPrefix bytes of an encoded Uploads for
// which archive and from which writer it is, and how many bytes follow.
func UploadsHead(prefix []byte) (archive Digest, writer KeyID, rest int, err error) {
	r := reader{b: prefix}
	r.literal(uploadsHeader)
	archive, writer = r.digest(), KeyID(r.digest())
	n := r.u32()
	err = r.end()
	if err == nil && (n < 1 || n > MaxUploads) {
		err = fmt.Errorf("%w: %d contents", ErrFormat, n)
	}
	if err != nil {
		return Digest{}, KeyID{}, 0, fmt.Errorf("uploads: %w", err)
	}
	return archive, writer, int(n)*uploadsItem + ed25519.SignatureSize, nil
}

// ParseUploads parses what Bytes returns, and checks its bounds and order.
func ParseUploads(b []byte) (Uploads, error) {
	archive, writer, rest, err := UploadsHead(b[:min(len(b), UploadsPrefix)])
	if err != nil {
		return Uploads{}, err
	}
	if len(b) != UploadsPrefix+rest {
		return Uploads{}, fmt.Errorf("uploads: %w: %d bytes", ErrFormat, len(b))
	}
	u := Uploads{Archive: archive, Writer: writer}
	r := reader{b: b[UploadsPrefix:]}
	for len(r.b) > ed25519.SignatureSize {
		u.Contents = append(u.Contents, Sized{r.digest(), r.u32()})
	}
	copy(u.Signature[:], r.take(len(u.Signature)))
	if err := u.checkContents(); err != nil {
		return Uploads{}, fmt.Errorf("uploads: %w", err)
	}
	return u, r.end()
}

func (u Uploads) checkContents() error {
	for i, c := range u.Contents {
		if i > 0 && bytes.Compare(u.Contents[i-1].Digest[:], c.Digest[:]) >= 0 {
			return fmt.Errorf("%w: digests out of order", ErrFormat)
		}
	}
	if n := u.Size(); n > MaxUploadsSize {
		return fmt.Errorf("%w: %d bytes of contents", ErrFormat, n)
	}
	return nil
}

// Verify checks that u is for the archive of r and signed by one of its
// writers.
func (u Uploads) Verify(r *Roster) (Writer, error) {
	w, err := r.Admit(u.Archive, u.Writer)
	if err != nil {
		return Writer{}, err
	}
	if !ed25519.Verify(ed25519.PublicKey(w.Key), u.signed(), u.Signature[:]) {
		return Writer{}, fmt.Errorf("uploads: signature %w", ErrIntegrity)
	}
	return w, nil
}
