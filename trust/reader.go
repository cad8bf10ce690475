package trust

import (
	"encoding/binary"
	"errors"
)

var errShort = errors.New("cut short")

// A reader takes big-endian fields off a byte string. After the first that is
// not there, it returns zeros, and end says so.
type reader struct {
	buf []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err == nil && n > len(r.buf) {
		r.err = errShort
	}
	if r.err != nil {
		return nil
	}
	b := r.buf[:n:n]
	r.buf = r.buf[n:]
	return b
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) hash() (h [32]byte) {
	copy(h[:], r.take(len(h)))
	return h
}

// sized takes a byte string behind its 16-bit length (a TPM2B), at most limit
// bytes long.
func (r *reader) sized(limit int) []byte {
	n := int(r.u16())
	if r.err == nil && n > limit {
		r.err = errors.New("byte string too long")
	}
	return r.take(n)
}

// flag takes a byte that is 0 or 1.
func (r *reader) flag() bool {
	b := r.u8()
	if b > 1 && r.err == nil {
		r.err = errors.New("flag is neither 0 nor 1")
	}
	return b == 1
}

// end returns the first error, or one if bytes are left over.
func (r *reader) end() error {
	if r.err == nil && len(r.buf) > 0 {
		r.err = errors.New("trailing bytes")
	}
	return r.err
}
