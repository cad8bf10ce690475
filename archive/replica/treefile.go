package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// treeFile serves the file of the current tree to a peer that has lost all of
// its own. Only the service phase does: nothing writes to the file meanwhile, and
// a peer that takes it slowly holds up nobody.
func (p *peerHandler) treeFile(w http.ResponseWriter, r *http.Request) error {
	head, err := archive.ParseDigest(r.URL.Query().Get("head"))
	if err != nil {
		return badRequest(err)
	}
	leave, err := enter(r.Context(), p.files)
	if err != nil {
		return err
	}
	defer leave()
	lent, release, err := p.trees.Lend()
	if err != nil {
		return err
	}
	defer release()
	if lent.Head != head {
		return staleHead(lent)
	}
	f, err := lent.Tree.File()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(f.Size(), 10))
	io.CopyBuffer(struct{ io.Writer }{&slowWriter{ResponseWriter: w}}, struct{ io.Reader }{f}, make([]byte, 256<<10)) // the peer may be gone
	return nil
}

// fileSource gives the file of a tree whole. *wire.Client is one.
type fileSource interface {
	TreeFile(ctx context.Context, head archive.Digest) (io.ReadCloser, int64, error)
}

const (
	// fileBase and fileRow bound the file of a tree, in bytes: any row fits into
	// fileRow three times.
	fileBase, fileRow = 64 << 20, 4 << 10
	// fileRate is how slow a source of a file may be, in bytes a second.
	fileRate = 1 << 20
)

// adoptAny takes the file of the tree from a source that has it whole. That is
// several times as fast as to build it from proven pages, and no less safe: the
// file is checked like the own one, which was the attacker's too. A file too large
// for the disk may be one source's lie, so the others are asked as well.
func (r *treeRepair) adoptAny(ctx context.Context) error {
	errs := []error{errNoSource}
	for _, src := range r.sources {
		f, ok := src.(fileSource)
		if !ok {
			continue
		}
		err := r.adopt(ctx, f)
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("tree file: %w", errors.Join(errs...))
}

func (r *treeRepair) adopt(ctx context.Context, src fileSource) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(r.timeout, cancel)
	defer late.Stop()
	body, size, err := src.TreeFile(ctx, r.rec.Head())
	if err != nil {
		return err
	}
	defer body.Close()
	if most := fileBase + int64(min(r.rec.Names, 1<<40))*fileRow; size > most {
		return fmt.Errorf("%w: file of %d bytes, at most %d", archive.ErrIntegrity, size, most)
	}
	room, err := r.store.contents.Reserve(size)
	if err != nil {
		return err
	}
	defer room.Release()
	late.Reset(r.timeout + time.Duration(size/fileRate)*time.Second)
	if err := boltstore.Adopt(ctx, r.store.TreePath(), io.LimitReader(body, size), r.rec.Root); err != nil {
		return full(err)
	}
	r.fetched.Add(r.rec.Names)
	r.log.Info("tree repaired, from a peer's file", "names", r.rec.Names, "bytes", size)
	return nil
}

var _ fileSource = (*wire.Client)(nil)
