package replica

import (
	"bytes"
	"context"

	"github.com/bonafide-archive/bonafide/archive"
)

// SmallContent is a content in memory.
type SmallContent struct {
	Digest archive.Digest
	Bytes  []byte
}

// PutContents keeps contents, each provided that it has its digest, and returns
// them described, in the same order. All are on the disk when it returns; the
// bytes are the caller's again.
func (s *Store) PutContents(ctx context.Context, all []SmallContent) ([]archive.Content, error) {
	var out []archive.Content
	for _, x := range all {
		c, err := s.putContent(ctx, x.Digest, int64(len(x.Bytes)), bytes.NewReader(x.Bytes))
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}
