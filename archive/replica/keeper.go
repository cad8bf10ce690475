package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// keep keeps the store right in the background: the tree from the start, and
// whenever it was found wrong; everything on a schedule. That nothing is answered
// from the tree is no reason to leave it: the next update phase needs it whole.
func (s *service) keep(ctx context.Context) {
	if e, _ := heldEpoch(s.Roster, s.statement); e == 0 {
		s.logIf(s.clean(found{}))
		return
	}
	ready := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { s.keepTree(ctx, ready) })
	wg.Go(func() { s.keepAll(ctx, ready) })
	wg.Wait()
}

// keepTree restores the tree that the MAS vouches for whenever there is none on
// the shelf. It closes ready the first time.
func (s *service) keepTree(ctx context.Context, ready chan<- struct{}) {
	for first := true; ctx.Err() == nil; {
		if !s.restored(ctx) {
			return
		}
		if first {
			first = false
			close(ready)
		}
		select {
		case <-ctx.Done():
		case <-s.wake:
		}
	}
}

// restored puts the right tree on the shelf, and tries until it can. It is false
// if the service ends before that.
func (s *service) restored(ctx context.Context) bool {
	for ctx.Err() == nil {
		if s.shelf.reason() == nil {
			return true
		}
		err := s.restore(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		s.shelf.withdraw(errTreeDamaged)
		s.Log.Error("the tree cannot be restored yet", "error", err)
		pause(ctx, s.Retry)
	}
	return false
}

// keepAll fetches the contents that are missing, then audits and repairs
// everything, and does so again on a schedule; sooner, but ever less so, while
// something could not be repaired.
func (s *service) keepAll(ctx context.Context, ready <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-ready:
	}
	s.sweep(ctx, true)
	for wait := s.Retry; ctx.Err() == nil; {
		if s.sweep(ctx, false) {
			wait = s.AuditEvery
		} else {
			wait = min(2*wait, s.AuditEvery)
		}
		pause(ctx, wait)
	}
}

// restore opens the tree of the head that the MAS attests, repaired if need be.
func (s *service) restore(ctx context.Context) error {
	rec, cert, err := s.headRecord(ctx)
	if err != nil {
		return err
	}
	err = s.openChecked(ctx, rec, cert)
	if err == nil || ctx.Err() != nil {
		return err
	}
	s.shelf.withdraw(errTreeDamaged)
	s.Log.Warn("the tree is damaged; repairing it from peers", "because", err)
	s.lendRemains(rec, cert)
	if err := RepairTree(ctx, s.store, rec, treeSources(s.sources()), s.Log); err != nil {
		return err
	}
	if err := s.openChecked(ctx, rec, cert); err != nil {
		return err
	}
	s.remains.withdraw(errTreeDamaged)
	return nil
}

// lendRemains gives peers what can still be proven of a damaged tree: theirs may
// be damaged too, but elsewhere.
func (s *service) lendRemains(rec archive.EpochRecord, cert archive.Certificate) {
	t, err := s.store.OpenTree(true)
	if err != nil {
		s.remains.withdraw(errTreeDamaged)
		return
	}
	s.remains.put(t, rec, cert)
}

// LendRemains lends the tree to peers, also one that is damaged, or from which
// nothing is answered: of either they believe what is proven.
func (s *service) LendRemains() (*Lent, func(), error) {
	lent, release, err := s.shelf.Lend()
	if errors.Is(err, errTreeDamaged) {
		return s.remains.Lend()
	}
	return lent, release, err
}

// errRenew ends a service process whose pending buffer is damaged.
var errRenew = fmt.Errorf("pending: %w: the service starts anew, with what can be read of it", ErrDamaged)

func (s *service) sources() []Source {
	var out []Source
	for _, p := range s.peers {
		out = append(out, p)
	}
	return out
}

// headRecord returns the record that the MAS attests as head, from a peer if the
// disk does not have it.
func (s *service) headRecord(ctx context.Context) (archive.EpochRecord, archive.Certificate, error) {
	e, head := heldEpoch(s.Roster, s.statement)
	rec, cert, err := s.store.Record(e)
	if err == nil && rec.Head() == head {
		return rec, cert, nil
	}
	s.Log.Warn("damage: the record of the head; fetching it from peers", "epoch", e, "because", err)
	return repairRecord(ctx, s.store, e, head, s.sources(), s.Timeout)
}

// openChecked opens the tree, rehashes it from its rows alone, and puts it on
// the shelf if it has the root of rec.
func (s *service) openChecked(ctx context.Context, rec archive.EpochRecord, cert archive.Certificate) error {
	t, err := s.store.OpenTree(true)
	if err != nil {
		return err
	}
	seen := s.wanted()
	root, count, err := t.Rehash(ctx, seen.look)
	if err == nil && (root != rec.Root || count != rec.Names) {
		err = fmt.Errorf("%w: root %x of %d names, want %x of %d", ErrDamaged, root, count, rec.Root, rec.Names)
	}
	if err == nil { // the digests that proofs are made of
		err = auditAgain(ctx, t, rec)
	}
	if err != nil {
		t.Close()
		return err
	}
	s.shelf.put(t, rec, cert)
	s.logIf(s.clean(seen))
	return nil
}

func auditAgain(ctx context.Context, t *boltstore.Store, rec archive.EpochRecord) error {
	damages, err := t.Audit(ctx, rec.Root)
	if err == nil && len(damages) > 0 {
		err = fmt.Errorf("%w: %v", ErrDamaged, damages[0])
	}
	return err
}

func (s *service) logIf(err error) {
	if err != nil {
		s.Log.Error("clean the pending buffer", "error", err)
	}
}

// found collects, while the tree is rehashed, which of the pending names and
// uploaded contents are bound.
type found struct {
	names   map[archive.Name]bool
	uploads map[archive.Digest]bool
}

// wanted returns a found that looks for all that waits.
func (s *service) wanted() found {
	f := found{names: s.pending.wantedNames(), uploads: make(map[archive.Digest]bool)}
	for d := range s.pending.allUploads() {
		f.uploads[d] = false
	}
	return f
}

// look keeps every row, and notes what it looks for.
func (f found) look(name, val []byte) bool {
	if _, ok := f.names[archive.Name(name)]; ok {
		f.names[archive.Name(name)] = true
	}
	if e, err := archive.ParseEntry(val); err == nil {
		if _, ok := f.uploads[e.Digest]; ok {
			f.uploads[e.Digest] = true
		}
	}
	return true
}

// clean drops from the pending buffer the submissions whose names are all bound,
// by whomever, or that are too old to be bound ever; and contents that nobody
// has asked to bind in all that time.
func (s *service) clean(f found) error {
	s.cleaning.Lock()
	defer s.cleaning.Unlock()
	var drop []archive.Digest
	keep := make(map[archive.Digest]bool)
	err := s.pending.Each(func(sub archive.Submission) error {
		if s.tooOld(sub.Created) || f.bindsAll(sub) {
			drop = append(drop, sub.Digest())
			return nil
		}
		for _, b := range sub.Bindings {
			keep[b.Digest] = true
		}
		return nil
	})
	if err == nil && len(drop) > 0 {
		err = s.pending.Drop(drop)
	}
	if err != nil {
		return err
	}
	return s.cleanUploads(f, keep)
}

func (f found) bindsAll(sub archive.Submission) bool {
	for _, b := range sub.Bindings {
		if !f.names[b.Name] {
			return false
		}
	}
	return true
}

// tooOld judges by the local clock, and so leaves an hour of slack.
func (s *service) tooOld(t time.Time) bool {
	return s.Now().Sub(t) > s.Roster.Limits.SubmissionAge.Std()+time.Hour
}

// cleanUploads forgets the uploads of bound contents, and removes contents that
// were uploaded and never wanted. Only a tree that was looked through says that
// a content is not bound.
func (s *service) cleanUploads(f found, pending map[archive.Digest]bool) error {
	drop := make(map[archive.Digest]upload)
	var remove []archive.Digest
	for d, u := range s.pending.allUploads() {
		bound, looked := f.uploads[d]
		unwanted := looked && !bound && !pending[d] && s.tooOld(time.Unix(u.at, 0))
		if unwanted {
			remove = append(remove, d)
		}
		if bound || unwanted {
			drop[d] = u
		}
	}
	err := s.store.contents.Remove(remove)
	if err == nil && len(drop) > 0 {
		err = s.pending.dropUploads(drop)
	}
	return err
}

// sweep audits the replica's own store and repairs it; a shallow one looks for
// missing contents only. It reports whether all is right then.
func (s *service) sweep(ctx context.Context, shallow bool) bool {
	a := s.auditor(AuditOptions{Repair: true}, logEvents(s.Log))
	a.shallow, a.resume = shallow, true
	report, err := a.run(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.Log.Error("audit", "error", err)
		}
		return false
	}
	if err := s.store.contents.Tidy(ctx); err != nil && ctx.Err() == nil {
		s.Log.Error("contents", "error", err)
	}
	return report.Sound()
}

// auditor returns an audit of the served store. What it comes to goes into the
// status; when it replaces the tree, the service answers from the new one.
func (s *service) auditor(o AuditOptions, emit func(Event)) *auditor {
	a := newAuditor(s.Config, s.store, s.peers, o, func(e Event) {
		if e.Kind == EventReport {
			s.unsound.Store(!e.Report.Sound())
		}
		emit(e)
	})
	a.pending = s.pending
	a.renew = func() error {
		s.die(errRenew)
		return errRenew
	}
	a.reopened = func() error {
		s.shelf.withdraw(wire.Errorf(wire.CodeUnavailable, "the tree is being checked"))
		kick(s.wake)
		return nil
	}
	return a
}
