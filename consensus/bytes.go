package consensus

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrForm is what every refusal of a message's bytes or shape unwraps to.
var ErrForm = errors.New("malformed message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrForm, fmt.Sprintf(format, args...))
}

// writer appends big-endian fields; it cannot fail.
type writer struct{ b []byte }

func newWriter(name string) *writer      { return &writer{b: []byte(name)} }
func (w *writer) raw(b []byte)           { w.b = append(w.b, b...) }
func (w *writer) u32(v uint32)           { w.b = binary.BigEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64)           { w.b = binary.BigEndian.AppendUint64(w.b, v) }
func (w *writer) count(n int)            { w.u32(uint32(n)) }
func (w *writer) blob(b []byte)          { w.count(len(b)); w.raw(b) }
func (w *writer) digest() [32]byte       { return sha256.Sum256(w.b) }
func (w *writer) replica(id uint32)      { w.u32(id) }
func (w *writer) instance(inst [32]byte) { w.raw(inst[:]) }

// reader takes big-endian fields off hostile bytes. The first failure sticks,
// and every later field is then zero, so that a decoder is a straight list.
type reader struct {
	b   []byte
	err error
}

// newReader begins a message that must open with name.
func newReader(name string, b []byte) *reader {
	r := &reader{b: b}
	if head := r.take(len(name)); r.err == nil && string(head) != name {
		r.err = malformed("not a %q", name[:len(name)-1])
	}
	return r
}

func (r *reader) take(n int) []byte {
	if r.err == nil && n > len(r.b) {
		r.err = malformed("truncated")
	}
	if r.err != nil {
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
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

// count reads how many items of at least size bytes follow, at most limit of
// them and never more than the bytes left can hold.
func (r *reader) count(limit, size int) int {
	n := r.u32()
	if r.err == nil && (uint64(n) > uint64(limit) || uint64(n)*uint64(size) > uint64(len(r.b))) {
		r.err = malformed("%d items are too many", n)
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

// blob reads a byte string of at most limit bytes, copied; nil if it is empty.
func (r *reader) blob(limit int) []byte {
	return append([]byte(nil), r.take(r.count(limit, 1))...)
}

// end is the decoder's verdict: a failed field, bytes left over, or nothing.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.err = malformed("%d bytes left over", len(r.b))
	}
	return r.err
}

// message is what all formats have in common: one encoding and a rule of form.
type message interface {
	Bytes() []byte
	form() error
}

// canonical says whether m, decoded from b, has good form and b is its encoding.
func canonical(m message, b []byte) error {
	if err := m.form(); err != nil {
		return err
	}
	if !bytes.Equal(m.Bytes(), b) {
		return malformed("not the canonical encoding")
	}
	return nil
}

// ascending says whether ids strictly increase: in order, and nobody twice.
func ascending[T any](items []T, id func(T) uint32) error {
	for i := 1; i < len(items); i++ {
		if id(items[i]) <= id(items[i-1]) {
			return malformed("replica %d after %d", id(items[i]), id(items[i-1]))
		}
	}
	return nil
}
