package content

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive/disk"
)

// room says whether something will fit on the disk, so that a full one shows
// before the first byte is written. It does not allocate: that would fill the
// holes.
type room struct {
	root disk.Root

	mu    sync.Mutex
	taken int64 // by what is being written now
}

// A Share is room on the disk that is set aside for what is being written.
type Share struct {
	room *room
	left int64
}

// take sets n bytes aside.
func (r *room) take(n int64) (*Share, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var st unix.Statfs_t
	if err := unix.Statfs(string(r.root), &st); err == nil && st.Blocks > 0 {
		free := int64(st.Bavail) * st.Bsize
		if free-Headroom-r.taken < n {
			return nil, fmt.Errorf("%w: %d bytes free, %d kept free", disk.ErrFull, free, Headroom+r.taken)
		}
	}
	r.taken += n
	return &Share{r, n}, nil
}

// Wrote says that n of the bytes are in the file.
func (s *Share) Wrote(n int64) {
	n = min(n, s.left)
	s.left -= n
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	s.room.taken -= n
}

// Release gives back what is left of the room.
func (s *Share) Release() { s.Wrote(s.left) }

// Reserve sets n bytes aside, or returns disk.ErrFull if then less than Headroom
// would be left. One goroutine uses a Share at a time.
func (s *Store) Reserve(n int64) (*Share, error) { return s.room.take(n) }
