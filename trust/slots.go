package trust

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// SlotsSize is the length of encoded slots, in bytes.
const SlotsSize = 192

const slotsUsed = 32 + 8 + 8 + 8 + 8 + 8 + 32 + 32

// A Vote is the one vote of a replica that must outlive an update phase: it
// committed Record as Epoch in attempt Tick.
type Vote struct {
	Epoch, Tick uint64
	Record      [32]byte
}

// Slots is what a MAS stores.
type Slots struct {
	Head      [32]byte // SHA-256 of the newest epoch record
	Epoch     uint64   // its epoch
	Tick      uint64   // newest attempt of the next epoch that the replica joined
	Boot      Counts   // the boot in which it joined
	Committed Vote
	Archive   [32]byte // archive ID
}

// Bytes returns the one encoding of s: the fields in order, big-endian, then
// zeros up to SlotsSize.
func (s Slots) Bytes() []byte {
	b := make([]byte, 0, SlotsSize)
	b = append(b, s.Head[:]...)
	b = binary.BigEndian.AppendUint64(b, s.Epoch)
	b = binary.BigEndian.AppendUint64(b, s.Tick)
	b = binary.BigEndian.AppendUint32(b, s.Boot.Reset)
	b = binary.BigEndian.AppendUint32(b, s.Boot.Restart)
	b = binary.BigEndian.AppendUint64(b, s.Committed.Epoch)
	b = binary.BigEndian.AppendUint64(b, s.Committed.Tick)
	b = append(b, s.Committed.Record[:]...)
	b = append(b, s.Archive[:]...)
	return b[:SlotsSize]
}

// ParseSlots decodes what Bytes encodes and refuses anything else.
func ParseSlots(b []byte) (Slots, error) {
	if len(b) != SlotsSize {
		return Slots{}, fmt.Errorf("slots: %d bytes, want %d", len(b), SlotsSize)
	}
	r := reader{buf: b}
	var s Slots
	s.Head = r.hash()
	s.Epoch, s.Tick = r.u64(), r.u64()
	s.Boot = Counts{Reset: r.u32(), Restart: r.u32()}
	s.Committed = Vote{Epoch: r.u64(), Tick: r.u64(), Record: r.hash()}
	s.Archive = r.hash()
	for _, c := range b[slotsUsed:] {
		if c != 0 {
			return Slots{}, errors.New("slots: spare bytes are not zero")
		}
	}
	return s, nil
}
