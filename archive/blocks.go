package archive

import (
	"fmt"
	"io"
)

// BlockList is the SHA-256 of each block of a content, in order.
type BlockList []Digest

// Bytes returns the digests, one after another.
func (l BlockList) Bytes() []byte {
	b := make([]byte, 0, len(l)*len(Digest{}))
	for _, d := range l {
		b = append(b, d[:]...)
	}
	return b
}

// ParseBlockList parses what Bytes returns, of at most limit blocks.
func ParseBlockList(b []byte, limit int) (BlockList, error) {
	n := len(b) / len(Digest{})
	if len(b)%len(Digest{}) != 0 || n > limit {
		return nil, fmt.Errorf("block list: %w: %d bytes", ErrFormat, len(b))
	}
	l := make(BlockList, n)
	for i := range l {
		copy(l[i][:], b[i*len(Digest{}):])
	}
	return l, nil
}

// Root returns the block root that the list leads to: the RFC 6962 tree hash
// over its digests.
func (l BlockList) Root() Digest {
	var s blockStack
	for _, d := range l {
		s = s.push(d)
	}
	return s.root()
}

// ReadBlocks returns the list of the blocks that r gives until its end, at most
// limit of them. r must begin where a block does.
func ReadBlocks(r io.Reader, limit int) (BlockList, error) {
	var l BlockList
	h := NewContentHasher()
	for len(l) < limit {
		n, err := io.CopyN(h.block, r, BlockSize)
		if n > 0 {
			l = append(l, Digest(h.block.Sum(nil)))
			h.block.Reset()
		}
		if err == io.EOF {
			return l, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return l, nil
}

// BlockCount returns how many blocks the content has.
func (c Content) BlockCount() uint64 {
	return c.Size/BlockSize + (c.Size%BlockSize+BlockSize-1)/BlockSize
}

// BlockLen returns the length of block i.
func (c Content) BlockLen(i uint64) uint64 { return min(BlockSize, c.Size-i*BlockSize) }

// CheckBlocks returns nil if l is the list of the content's blocks, provided
// that the writer told the block root right.
func (c Content) CheckBlocks(l BlockList) error {
	switch {
	case uint64(len(l)) != c.BlockCount():
		return fmt.Errorf("block list: %w: %d blocks, want %d", ErrIntegrity, len(l), c.BlockCount())
	case l.Root() != c.Blocks:
		return fmt.Errorf("block list: %w: another root", ErrIntegrity)
	}
	return nil
}
