package archive

import (
	"crypto/sha256"
	"fmt"
)

const (
	entryVersion = 1
	// HashSHA256 identifies SHA-256 wherever a format names its hash: the
	// multicodec number.
	HashSHA256 = 0x12
)

// EntrySize is the length of an encoded Entry.
const EntrySize = 2 + 32 + 8 + 32 + 32 + 8

// Content describes the bytes that a name is bound to.
type Content struct {
	Digest Digest // SHA-256 of the bytes
	Size   uint64 // in bytes
	Blocks Digest // RFC 6962 root over the SHA-256 of each 1 MiB block
}

// Entry is what the tree holds for a name.
type Entry struct {
	Content
	Writer KeyID // who added it
	Epoch  Epoch // the epoch it was bound in
}

// Bytes returns the entry's encoding:
//
//	0x01 || 0x12 || digest || be64 size || block root || writer || be64 epoch
func (e Entry) Bytes() []byte {
	b := make([]byte, 0, EntrySize)
	b = append(b, entryVersion, HashSHA256)
	b = e.appendTuple(b)
	return be64(b, uint64(e.Epoch))
}

// appendTuple appends what two submissions of one name can differ in.
func (e Entry) appendTuple(b []byte) []byte {
	b = append(b, e.Digest[:]...)
	b = be64(b, e.Size)
	b = append(b, e.Blocks[:]...)
	return append(b, e.Writer[:]...)
}

// ParseEntry parses what Bytes returns.
func ParseEntry(b []byte) (Entry, error) {
	r := reader{b: b}
	version, hash := r.u8(), r.u8()
	var e Entry
	e.Digest, e.Size, e.Blocks = r.digest(), r.u64(), r.digest()
	e.Writer, e.Epoch = KeyID(r.digest()), Epoch(r.u64())
	if err := r.end(); err != nil {
		return Entry{}, fmt.Errorf("entry: %w", err)
	}
	if version != entryVersion || hash != HashSHA256 {
		return Entry{}, fmt.Errorf("entry: %w: version %d, hash 0x%02x", ErrFormat, version, hash)
	}
	return e, nil
}

// BlockSize is the length of every block of a content but the last.
const BlockSize = 1 << 20

// ContentHasher computes a Content from the bytes written to it, in constant
// memory. Make one with NewContentHasher. The first block is hashed once: its
// digest is the state of the whole's.
type ContentHasher struct {
	whole, block hashState // block: of those after the first
	size         uint64
	stack        blockStack
}

type hashState interface {
	Write(p []byte) (int, error)
	Sum(b []byte) []byte
	Reset()
}

// subtree is a perfect subtree of the block tree that awaits its sibling.
type subtree struct {
	level int
	hash  Digest
}

// NewContentHasher returns a hasher of the empty content.
func NewContentHasher() *ContentHasher {
	return &ContentHasher{whole: sha256.New(), block: sha256.New()}
}

// Write adds p to the content. It never fails.
func (h *ContentHasher) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		room := BlockSize - h.size%BlockSize
		part := p[:min(uint64(len(p)), room)]
		h.whole.Write(part)
		if h.size >= BlockSize {
			h.block.Write(part)
		}
		h.size += uint64(len(part))
		p = p[len(part):]
		if h.size%BlockSize == 0 {
			h.stack = h.endBlock(h.stack)
		}
	}
	return n, nil
}

// endBlock ends the current block and pushes it.
func (h *ContentHasher) endBlock(stack blockStack) blockStack {
	if h.size <= BlockSize {
		return stack.push(Digest(h.whole.Sum(nil)))
	}
	sum := Digest(h.block.Sum(nil))
	h.block.Reset()
	return stack.push(sum)
}

// Content returns the description of all bytes written so far and ends the
// hasher's use.
func (h *ContentHasher) Content() Content {
	stack := h.stack
	if h.size%BlockSize != 0 {
		stack = h.endBlock(stack)
	}
	return Content{Digest: Digest(h.whole.Sum(nil)), Size: h.size, Blocks: stack.root()}
}

// blockStack is the perfect subtrees of a block tree that grows to the right,
// the widest first.
type blockStack []subtree

// push adds the block with digest d, whose leaf is SHA256(0x00 || d), and joins
// subtrees of equal height.
func (s blockStack) push(d Digest) blockStack {
	s = append(s, subtree{0, DigestOf(append([]byte{0x00}, d[:]...))})
	for n := len(s); n > 1 && s[n-1].level == s[n-2].level; n = len(s) {
		s = append(s[:n-2], subtree{s[n-2].level + 1, nodeHash(s[n-2].hash, s[n-1].hash)})
	}
	return s
}

// root joins all subtrees.
func (s blockStack) root() Digest {
	if len(s) == 0 {
		return DigestOf(nil) // RFC 6962, section 2.1: the empty tree is SHA256("")
	}
	root := s[len(s)-1].hash
	for i := len(s) - 2; i >= 0; i-- {
		root = nodeHash(s[i].hash, root)
	}
	return root
}

// nodeHash returns SHA256(0x01 || left || right).
func nodeHash(left, right Digest) Digest {
	return DigestOf(append(append([]byte{0x01}, left[:]...), right[:]...))
}
