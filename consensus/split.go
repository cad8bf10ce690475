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
	cutBits  = 17 // past minPiece, a cut every 128 KiB on average
)

// Split cuts what r yields into pieces of at most MaxPiece bytes and hands them
// to emit in order; a piece is valid only during the call. Cuts follow the
// content, so bodies that are mostly alike share most pieces. The same bytes are
// always cut alike; nothing is emitted for none. It holds one piece in memory.
func Split(r io.Reader, emit func(piece []byte) error) error {
	in := bufio.NewReaderSize(r, MaxPiece)
	for {
		ahead, err := in.Peek(MaxPiece)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(ahead) == 0 {
			return nil
		}
		n := cut(ahead)
		if err := emit(ahead[:n]); err != nil {
			return err
		}
		if _, err := in.Discard(n); err != nil {
			return err
		}
	}
}

// cut returns where the first piece of b ends: after the first byte, from
// minPiece on, at which the high bits of the gear hash are zero. Each byte
// shifts the hash by one bit, so 64 bytes decide it.
func cut(b []byte) int {
	var hash uint64
	for i := max(0, minPiece-64); i < len(b); i++ {
		hash = hash<<1 + gear[b[i]]
		if i+1 >= minPiece && hash>>(64-cutBits) == 0 {
			return i + 1
		}
	}
	return len(b)
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
