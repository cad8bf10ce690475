package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// reader takes fixed fields off the front of b. The first field that is not
// there makes err stick, and all later ones zero, so a parser reads its fields
// in a row and looks at err once. All numbers are big-endian.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err == nil && len(r.b) < n {
		r.err = fmt.Errorf("%w: cut short", ErrFormat)
	}
	if r.err != nil {
		return make([]byte, min(n, 64))
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) literal(s string) {
	if r.err == nil && !bytes.HasPrefix(r.b, []byte(s)) {
		r.err = fmt.Errorf("%w: does not begin with %q", ErrFormat, s)
		return
	}
	r.take(len(s))
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) digest() (d Digest) {
	copy(d[:], r.take(len(d)))
	return d
}

// end returns the first error, or one if bytes are left.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.err = fmt.Errorf("%w: %d bytes too many", ErrFormat, len(r.b))
	}
	return r.err
}

func be16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func be32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func be64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }
