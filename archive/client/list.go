package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
)

const (
	firstPage = wire.MaxFirst // names in the page that comes with each answer
	morePages = wire.MaxPage
	leastPage = 128 // names in a page that is not the last: fewer is making time
)

// listing is one List under way. Its pages follow one another without a gap.
type listing struct {
	c   *Client
	fn  func(archive.Name, archive.Entry) error
	rec *archive.EpochRecord // of the first session
	at  []byte               // proven complete below
	to  []byte               // nil: to the end
}

// List calls fn for all names that begin with prefix, in order, each page
// proven complete before fn sees it, and returns the epoch record as of which
// the whole is. If an absence as of that epoch is not to be believed any more,
// it returns ErrStale after the last name: the names are right, but newer ones
// may be missing. An error of fn ends the listing and is returned.
func (c *Client) List(ctx context.Context, prefix string, fn func(archive.Name, archive.Entry) error) (archive.EpochRecord, error) {
	if err := archive.CheckPrefix(prefix); err != nil {
		return archive.EpochRecord{}, err
	}
	l := &listing{c: c, fn: fn, at: []byte(prefix), to: tree.PrefixEnd([]byte(prefix))}
	for try := 0; ; try++ {
		err := l.run(ctx)
		if errors.Is(err, errOver) && try < reopenings {
			continue
		}
		if l.rec == nil {
			return archive.EpochRecord{}, err
		}
		return *l.rec, err
	}
}

// run goes on with the listing in a new session, to its end if that lasts.
func (l *listing) run(ctx context.Context) error {
	s, err := l.c.open(ctx, wire.AnswerRequest{Range: &wire.Range{From: l.at, To: l.to, Limit: firstPage}})
	if err != nil {
		return err
	}
	defer s.close()
	if l.rec == nil {
		if s.current() != nil && s.better() {
			return errOver
		}
		l.rec = &s.rec
	}
	view := s.group(s.head)[0].View
	for {
		more, err := l.emit(view)
		if err != nil {
			return err
		}
		if !more {
			return s.current()
		}
		p, err := s.page(ctx, l.at, l.to)
		if err != nil {
			return err
		}
		view = p.view
	}
}

// emit passes the names that view proves complete to fn, and reports whether
// there are more.
func (l *listing) emit(view *tree.View) (more bool, err error) {
	pairs, next, err := page(view, l.at, l.to)
	if err != nil {
		return false, err
	}
	for _, p := range pairs {
		if err := l.pair(p); err != nil {
			return false, err
		}
	}
	l.at = next
	return next != nil, nil
}

// pair passes one name to fn. Names are never removed, so what a later epoch
// shows is the first session's listing, once newer names are left out.
func (l *listing) pair(p tree.Pair) error {
	e, err := archive.ParseEntry(p.Val)
	if err != nil {
		return fmt.Errorf("entry of %q %w: %w", p.Name, ErrIntegrity, err)
	}
	if e.Epoch > l.rec.Epoch {
		return nil
	}
	return l.fn(archive.Name(p.Name), e)
}

// page returns the verified page from `from` on, of any one replica.
func (s *session) page(ctx context.Context, from, to []byte) (shown, error) {
	return prove(ctx, s, func(ctx context.Context, r *replica) (shown, error) {
		p, err := r.peer.ProofRange(ctx, s.head, from, to, morePages)
		if err != nil {
			return shown{}, err
		}
		return s.check(r, p, func(v *tree.View) error {
			pairs, next, err := page(v, from, to)
			if err == nil && next != nil && len(pairs) < leastPage {
				err = fmt.Errorf("%w: page of %d names", wire.ErrSlow, len(pairs))
			}
			return err
		})
	})
}
