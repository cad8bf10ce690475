package replica

import "github.com/bonafide-archive/bonafide/archive"

// room is how the bytes of one proposal's body are shared out, so that nobody
// can flood the others' Adds out of it: half is set aside for the writers of the
// roster in equal parts, and half is for whoever comes first.
type room struct{ each, common uint64 }

func roomFor(writers int) room {
	return room{maxBody / 2 / uint64(max(writers, 1)), maxBody / 2}
}

// fits says whether a writer may have size more bytes in a body, where used is
// what each has already.
func (r room) fits(used map[archive.KeyID]uint64, writer archive.KeyID, size uint64) bool {
	if used[writer]+size <= r.each {
		return true
	}
	common := r.beyond(used[writer]+size) - r.beyond(used[writer])
	for _, n := range used {
		common += r.beyond(n)
	}
	return common <= r.common
}

// beyond returns what of a writer's n bytes is not in his own part.
func (r room) beyond(n uint64) uint64 { return n - min(n, r.each) }

// bodySize is what a submission takes in a body.
func bodySize(s archive.Submission) uint64 { return 4 + uint64(len(s.Bytes())) }
