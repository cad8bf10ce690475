package consensus

import (
	"bufio"
	"errors"
	"io"
)

// MaxPiece bounds a piece's bytes.
const MaxPiece = 1 << 20

const (
	minPiece = 1 << 15
	cutMask  = 1<<17 - 1 // a cut every 128 KiB on average, past minPiece
)

// Split cuts what r yields into pieces of at most MaxPiece bytes and hands them
// to emit in order; a piece is valid only during the call. Cuts follow the
// content, so bodies that are mostly alike share most pieces. The same bytes are
// always cut alike; nothing is emitted for none.
func Split(r io.Reader, emit func(piece []byte) error) error {
	in := bufio.NewReaderSize(r, 1<<16)
	piece := make([]byte, 0, minPiece)
	var roll uint64
	for {
		b, err := in.ReadByte()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		piece = append(piece, b)
		roll = roll<<1 + gear[b]
		if !cut(roll, len(piece)) {
			continue
		}
		if err := emit(piece); err != nil {
			return err
		}
		piece, roll = piece[:0], 0
	}
	if len(piece) == 0 {
		return nil
	}
	return emit(piece)
}

// cut looks at the high bits, which the last 64 bytes decide.
func cut(roll uint64, size int) bool {
	return size == MaxPiece || size >= minPiece && roll>>(64-17)&cutMask == 0
}

// gear gives each byte its random-looking word: splitmix64 of the byte.
var gear = func() (t [256]uint64) {
	for i := range t {
		z := (uint64(i) + 1) * 0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		t[i] = z ^ z>>31
	}
	return t
}()
