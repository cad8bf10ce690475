package boltstore

import (
	"bytes"
	"sync"

	"github.com/bonafide-archive/bonafide/tree"
)

// A chunk of more than outlineFrom items has an outline, in blocks of
// outlineBlock, a power of two.
const outlineFrom, outlineBlock = 1024, 64

// outline is what one proof about a chunk leaves for the next: the digests of
// runs of its items, which are nodes of its tree, and where they begin; then
// runs of such runs, until there are few. Who chooses names may make a chunk as
// large as he likes; only the first proof then reads all of it.
type outline []tier

// tier is one division of a chunk into runs.
type tier struct {
	starts  []item
	digests []tree.Hash
}

func outlineOf(items []item, digests []tree.Hash) (o outline) {
	t := tier{items, digests}
	for len(t.starts) > outlineBlock {
		t = t.runs()
		o = append(o, t)
	}
	return o
}

// runs is the tier above t.
func (t tier) runs() (up tier) {
	var f tree.Fold
	for lo := 0; lo < len(t.starts); lo += outlineBlock {
		f.Reset()
		for _, d := range t.digests[lo:min(lo+outlineBlock, len(t.digests))] {
			f.Add(d)
		}
		up.starts = append(up.starts, item{name: bytes.Clone(t.starts[lo].name)})
		up.digests = append(up.digests, f.Sum())
	}
	return up
}

// sum is the digest of the chunk.
func (o outline) sum() tree.Hash {
	var f tree.Fold
	for _, d := range o[len(o)-1].digests {
		f.Add(d)
	}
	return f.Sum()
}

// outlines keeps some MB of outlines.
type outlines struct {
	mu     sync.Mutex
	of     map[chunkID]outline
	blocks int
}

// chunkID tells chunks apart: one of a single item has that item's digest.
type chunkID struct {
	level  int
	digest tree.Hash
}

const maxOutlineBlocks = 1 << 16

func (os *outlines) get(chunk chunkID) outline {
	os.mu.Lock()
	defer os.mu.Unlock()
	return os.of[chunk]
}

// put forgets all others when there are too many.
func (os *outlines) put(chunk chunkID, o outline) {
	os.mu.Lock()
	defer os.mu.Unlock()
	if os.of == nil || os.blocks+len(o[0].starts) > maxOutlineBlocks {
		os.of, os.blocks = map[chunkID]outline{}, 0
	}
	if os.of[chunk] == nil {
		os.of[chunk] = o
		os.blocks += len(o[0].starts)
	}
}
