package content

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/bonafide-archive/bonafide/archive"
)

// block is what everything in a tar file is a multiple of.
const block = 512

// removedPrefix is where tar puts the members that were removed.
const removedPrefix = "removed"

// member is what a header says of the bytes after it.
type member struct {
	digest  archive.Digest
	size    int64
	removed bool
}

// span returns the length of a member with its header and padding.
func span(size int64) int64 { return block + (size+block-1)/block*block }

// header returns the one ustar header that a member may have:
//
//	name[100] mode[8] uid[8] gid[8] size[12] mtime[12] checksum[8] type[1]
//	link[100] magic[6] version[2] uname[32] gname[32] major[8] minor[8] prefix[155] pad[12]
func (m member) header() []byte {
	b := make([]byte, block)
	hex.Encode(b, m.digest[:])
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x0000000000000\x00", m.size))
	copy(b[148:], "        0") // the checksum counts itself as spaces
	copy(b[257:], "ustar\x0000")
	copy(b[329:], "0000000\x000000000\x00")
	if m.removed {
		copy(b[345:], removedPrefix)
	}
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// parseHeader returns what a header says, if it is one that a pack may have.
func parseHeader(b []byte) (m member, ok bool) {
	if len(b) < block || b[0] == 0 || b[135] != 0 {
		return m, false
	}
	if _, err := hex.Decode(m.digest[:], b[:64]); err != nil {
		return m, false
	}
	size, err := strconv.ParseUint(string(b[124:135]), 8, 33)
	if err != nil || size > Small {
		return m, false
	}
	m.size, m.removed = int64(size), b[345] != 0
	return m, bytes.Equal(b[:block], m.header())
}

// whole reports whether b is the member from its header to the end of its
// padding, with the bytes that its name promises.
func (m member) whole(b []byte) bool {
	return int64(len(b)) == span(m.size) && bytes.Equal(b[:block], m.header()) &&
		sha256.Sum256(b[block:block+m.size]) == m.digest && zero(b[block+m.size:])
}

// zero reports whether b is all zeros.
func zero(b []byte) bool { return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }
