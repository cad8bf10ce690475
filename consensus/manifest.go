package consensus

import "crypto/sha256"

const manifestName = "bonafide/manifest/v1\n"

// Bounds of a manifest.
const (
	MaxPieces = 1 << 13   // pieces of one body
	MaxTime   = 1<<38 - 1 // unix seconds
)

// Piece names one piece of a proposal's body by its SHA-256 and its size.
type Piece struct {
	Digest [32]byte
	Size   uint32
}

// NewPiece describes the bytes b.
func NewPiece(b []byte) Piece {
	return Piece{Digest: sha256.Sum256(b), Size: uint32(len(b))}
}

// Manifest describes what one replica proposes: when, in which boot, and the
// body's pieces in order. Size is the sum of their sizes.
type Manifest struct {
	Instance       [32]byte
	Replica        uint32
	Time           int64 // unix seconds
	Reset, Restart uint32
	Size           uint64
	Pieces         []Piece
}

// Bytes is the manifest's one encoding.
func (m Manifest) Bytes() []byte {
	w := newWriter(manifestName)
	w.instance(m.Instance)
	w.replica(m.Replica)
	w.u64(uint64(m.Time))
	w.u32(m.Reset)
	w.u32(m.Restart)
	w.u64(m.Size)
	w.count(len(m.Pieces))
	for _, p := range m.Pieces {
		w.raw(p.Digest[:])
		w.u32(p.Size)
	}
	return w.b
}

// Digest is SHA256(Bytes()).
func (m Manifest) Digest() [32]byte { return sha256.Sum256(m.Bytes()) }

// ParseManifest accepts exactly what Bytes returns.
func ParseManifest(b []byte) (Manifest, error) {
	r := newReader(manifestName, b)
	m := Manifest{Instance: r.hash(), Replica: r.u32(), Time: int64(r.u64()),
		Reset: r.u32(), Restart: r.u32(), Size: r.u64()}
	for range r.count(MaxPieces, pieceSize) {
		m.Pieces = append(m.Pieces, Piece{Digest: r.hash(), Size: r.u32()})
	}
	if err := r.end(); err != nil {
		return Manifest{}, err
	}
	if err := canonical(m, b); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

const pieceSize = 32 + 4

func (m Manifest) form() error {
	if m.Time < 0 || m.Time > MaxTime {
		return malformed("time %d", m.Time)
	}
	if len(m.Pieces) > MaxPieces {
		return malformed("%d pieces", len(m.Pieces))
	}
	var sum uint64
	for _, p := range m.Pieces {
		if p.Size == 0 || p.Size > MaxPiece {
			return malformed("piece of %d bytes", p.Size)
		}
		sum += uint64(p.Size)
	}
	if sum != m.Size {
		return malformed("pieces of %d bytes, size %d", sum, m.Size)
	}
	return nil
}
