package consensus

import "io"

// MaxPiece bounds a piece's bytes.
const MaxPiece = 1 << 20

// Split cuts what r yields into content-defined pieces.
func Split(r io.Reader, emit func(piece []byte) error) error { panic("consensus: to come") }
