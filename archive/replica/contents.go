package replica

import (
	"context"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/content"
)

// SmallContent is a content of at most 64 KiB.
type SmallContent = content.Bytes

// PutContents keeps small contents with one write and one fsync. If one has not
// the digest that it should, none is kept; after another error, some may be. All
// are on the disk when it returns without one.
func (s *Store) PutContents(ctx context.Context, all []SmallContent) ([]archive.Content, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.contents.PutAll(all)
}
