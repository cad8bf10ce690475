package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree"
)

// ErrNotYet reports an epoch later than the newest.
var ErrNotYet = errors.New("no such epoch yet")

// ListAt is List as of an earlier epoch: it calls fn for all names that begin with
// prefix and were bound by then, and returns that epoch's record. No replica keeps
// old trees. So it lists all names, leaves out what was bound later, and compares
// the root of the rest with the one that was certified; each is told how many of
// the names of that epoch have come. fn sees nothing before the roots agree. Since
// the past does not change, this does not end with ErrStale; it returns ErrNotYet
// for an epoch that is to come.
func (c *Client) ListAt(ctx context.Context, at archive.Epoch, prefix string, each func(done, total uint64), fn func(archive.Name, archive.Entry) error) (archive.EpochRecord, error) {
	if err := archive.CheckPrefix(prefix); err != nil {
		return archive.EpochRecord{}, err
	}
	rec, err := c.record(ctx, at)
	if err != nil {
		return rec, err
	}
	p := &past{rec: rec, prefix: prefix, each: each, hasher: tree.NewHasher()}
	if _, err := c.List(ctx, "", p.take); err != nil && !errors.Is(err, ErrStale) {
		return rec, err
	}
	if err := p.check(); err != nil {
		return rec, err
	}
	for _, b := range p.found {
		if err := fn(b.name, b.entry); err != nil {
			return rec, err
		}
	}
	return rec, nil
}

// past is the tree of an old epoch, as it is rebuilt.
type past struct {
	rec    archive.EpochRecord
	prefix string
	each   func(done, total uint64)
	hasher *tree.Hasher
	found  []bound // those with the prefix
}

type bound struct {
	name  archive.Name
	entry archive.Entry
}

// take adds a name, if it was bound by then.
func (p *past) take(n archive.Name, e archive.Entry) error {
	if e.Epoch > p.rec.Epoch {
		return nil
	}
	if err := p.hasher.Add([]byte(n), e.Bytes()); err != nil {
		return fmt.Errorf("name %q %w: %w", n, ErrIntegrity, err)
	}
	p.each(p.hasher.Count(), p.rec.Names)
	if strings.HasPrefix(string(n), p.prefix) {
		p.found = append(p.found, bound{n, e})
	}
	return nil
}

// check compares the rebuilt tree with the record.
func (p *past) check() error {
	root, _, err := p.hasher.Finish()
	if err != nil {
		return err
	}
	if n := p.hasher.Count(); n != p.rec.Names || root != p.rec.Root {
		return fmt.Errorf("epoch %d %w: %d names that were bound by then make root %s, %d names with root %s were certified",
			p.rec.Epoch, ErrIntegrity, n, archive.Digest(root), p.rec.Names, archive.Digest(p.rec.Root))
	}
	return nil
}

// record returns the record of an epoch, from any replica that shows its
// certificate.
func (c *Client) record(ctx context.Context, at archive.Epoch) (archive.EpochRecord, error) {
	if at == 0 {
		return archive.Genesis(c.Roster), nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	rec, _, err := first(ctx, c.preferred(), func(ctx context.Context, r *replica) (archive.EpochRecord, error) {
		records, err := r.peer.History(ctx, at, 1)
		switch {
		case err != nil:
			return archive.EpochRecord{}, inTime(err, c.Timeout)
		case len(records) == 0:
			return archive.EpochRecord{}, ErrNotYet
		}
		rec, _, err := archive.VerifyRecord(c.Roster, []byte(records[0].Record), records[0].Certificate)
		if err == nil && rec.Epoch != at {
			err = fmt.Errorf("%w: sent the record of epoch %d", ErrIntegrity, rec.Epoch)
		}
		return rec, err
	}, func(archive.EpochRecord) {})
	return rec, notYet(err)
}

// notYet is ErrNotYet if that is what so many replicas say that one of them is
// right.
func notYet(err error) error {
	var none *NoQuorumError
	if !errors.As(err, &none) {
		return err
	}
	said := 0
	for _, err := range none.Replicas {
		if errors.Is(err, ErrNotYet) {
			said++
		}
	}
	if 3*said > len(none.Replicas) { // f+1 of 3f+1
		return ErrNotYet
	}
	return err
}
