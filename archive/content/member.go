package content

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/disk"
)

// block is what everything in a tar file is a multiple of.
const block = 512

// removedPrefix is where tar puts the members that were removed.
const (
	removedPrefix = "removed"
	removedSum    = 'r' + 'e' + 'm' + 'o' + 'v' + 'e' + 'd'
)

// member is what a header says of the bytes after it.
type member struct {
	digest  archive.Digest
	size    int64
	removed bool
}

// span returns the length of a member with its header and padding.
func span(size int64) int64 { return block + (size+block-1)/block*block }

// header is a block before a member.
type header [block]byte

// fixedSum is the sum of the bytes that every header has: those that header
// writes, with the checksum as spaces.
const fixedSum = 3*7*'0' + 6 + 4 + 4 + // mode 0000644, user, group
	11*'0' + 8*' ' + '0' + // time, checksum, type
	'u' + 's' + 't' + 'a' + 'r' + 2*'0' + 2*7*'0' // magic, version, devices

// header returns the one ustar header that a member may have:
//
//	name[100] mode[8] uid[8] gid[8] size[12] mtime[12] checksum[8] type[1]
//	link[100] magic[6] version[2] uname[32] gname[32] major[8] minor[8] prefix[155] pad[12]
func (m member) header() (h header) {
	hex.Encode(h[:], m.digest[:])
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	octal(h[124:135], uint64(m.size))
	copy(h[136:], "00000000000\x00")
	h[156] = '0'
	copy(h[257:], "ustar\x0000")
	copy(h[329:], "0000000\x000000000\x00")
	sum := uint64(fixedSum)
	for _, part := range [][]byte{h[:64], h[124:135]} {
		for _, c := range part {
			sum += uint64(c)
		}
	}
	if m.removed {
		copy(h[345:], removedPrefix)
		sum += removedSum
	}
	octal(h[148:154], sum)
	h[155] = ' '
	return h
}

// octal writes n into all of b.
func octal(b []byte, n uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i], n = '0'+byte(n&7), n>>3
	}
}

// parseHeader returns what a header says, if it is one that a pack may have.
func parseHeader(b []byte) (m member, ok bool) {
	if len(b) < block || b[0] == 0 {
		return m, false
	}
	if _, err := hex.Decode(m.digest[:], b[:64]); err != nil {
		return m, false
	}
	for _, c := range b[124:135] {
		m.size = m.size<<3 | int64(c&7)
	}
	m.removed = b[345] != 0
	return m, m.size <= Small && m.headed(b)
}

// headed reports whether b begins with the header of the member.
func (m member) headed(b []byte) bool {
	h := m.header()
	return bytes.Equal(b[:block], h[:])
}

// whole reports whether b is the member from its header to the end of its
// padding, with the bytes that its name promises.
func (m member) whole(b []byte) bool {
	return int64(len(b)) == span(m.size) && m.headed(b) &&
		sha256.Sum256(b[block:block+m.size]) == m.digest && disk.Zero(b[block+m.size:])
}
