package wire

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/bonafide-archive/bonafide/archive"
)

// PathTree is the endpoint of Client.TreeFile.
const PathTree = "/v1/tree"

// TreeFile opens the file of the tree under a head, and returns its size as the
// replica gives it. Nothing of it is proven. Reading fails when the replica sends
// nothing for the client's timeout.
func (c *Client) TreeFile(ctx context.Context, head archive.Digest) (io.ReadCloser, int64, error) {
	ctx, w := watch(ctx, c.timeout)
	resp, err := c.do(ctx, http.MethodGet, PathTree+"?head="+head.String(), nil, http.Header{})
	if err != nil {
		return nil, 0, c.wrap("tree file", w.end(err))
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength < 0 {
		resp.Body.Close()
		return nil, 0, c.wrap("tree file", w.end(fmt.Errorf("%w: no length", archive.ErrFormat)))
	}
	return &watchedBody{watchedReader{resp.Body, w}, resp.Body}, resp.ContentLength, nil
}
