package replica

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
)

// changes serves the names bound since an epoch, a page at a time, to a peer
// that holds the tree of that epoch.
func (p *peerHandler) changes(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	head, err := archive.ParseDigest(q.Get("head"))
	since, err2 := strconv.ParseUint(q.Get("since"), 10, 64)
	from, err3 := wire.DecodeBytes(q.Get("from"), archive.MaxName+1)
	if err := errors.Join(err, err2, err3); err != nil {
		return badRequest(err)
	}
	leave, err := enter(r.Context(), p.proofs)
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
	page := changesPage{since: archive.Epoch(since)}
	if err := lent.Tree.Walk(r.Context(), from, page.add); err != nil && !errors.Is(err, errEnough) {
		if r.Context().Err() != nil {
			return err
		}
		return p.damaged(lent, err)
	}
	b := page.Bytes()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b) // the peer may be gone
	return nil
}

// changesPage gathers one page of changes.
type changesPage struct {
	wire.Changes
	since   archive.Epoch
	scanned int
	size    int
}

// add takes the next pair of the tree; errEnough says that the page ends before.
func (c *changesPage) add(name, val []byte) error {
	if c.scanned == wire.MaxScan || len(c.Pairs) == wire.MaxPage || c.size >= wire.MaxChanges/2 {
		c.Next = name
		return errEnough
	}
	c.scanned++
	e, err := archive.ParseEntry(val)
	if err != nil {
		return err
	}
	if e.Epoch > c.since {
		c.Pairs = append(c.Pairs, tree.Pair{Name: name, Val: val})
		c.size += tree.LeafSize(name, val)
	}
	return nil
}
