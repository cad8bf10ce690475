package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
	"github.com/bonafide-archive/bonafide/trust"
)

func (p *phase) newestEpoch() archive.Epoch {
	p.know.Lock()
	defer p.know.Unlock()
	return p.newest.Epoch
}

func (p *phase) setAway(id uint32, away bool) {
	p.know.update(func() { p.away[id] = away })
}

// takeCertificate takes a certificate that a peer holds.
func (p *phase) takeCertificate(ctx context.Context, x *peer, b []byte) error {
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return archive.ErrFormat
	}
	n := binary.BigEndian.Uint32(b)
	rec, cert, err := archive.VerifyRecord(p.Roster, b[4:4+n], b[4+n:])
	if err != nil {
		return err
	}
	if rec.Epoch > p.newestEpoch()+1 {
		if err := p.fetchHistory(ctx, x); err != nil {
			return nil // another peer may have it whole
		}
	} else if err := p.takeRecord(rec, cert); errors.Is(err, archive.ErrIntegrity) {
		return err
	} else if err != nil {
		p.log.Error("keep record", "epoch", rec.Epoch, "err", err)
		return nil
	}
	p.know.update(func() { p.holds[x.ID] = rec.Epoch })
	return nil
}

// takeRecord keeps a verified record and its certificate, if it is the one after
// the newest we hold.
func (p *phase) takeRecord(rec archive.EpochRecord, cert archive.Certificate) error {
	p.recording.Lock()
	defer p.recording.Unlock()
	p.know.Lock()
	newest := p.newest
	p.know.Unlock()
	if rec.Epoch != newest.Epoch+1 {
		return nil
	}
	if rec.Previous != newest.Head() {
		return fmt.Errorf("record of epoch %d: %w: not on top of the one before", rec.Epoch, archive.ErrIntegrity)
	}
	if err := p.durable("record", func() error { return p.store.PutRecord(rec, cert) }); err != nil {
		return err
	}
	p.know.update(func() { p.newest = rec })
	return nil
}

// putRecord keeps what we helped to certify.
func (p *phase) putRecord(rec archive.EpochRecord, cert archive.Certificate) error {
	if err := p.takeRecord(rec, cert); err != nil {
		return err
	}
	if p.newestEpoch() < rec.Epoch {
		return fmt.Errorf("record of epoch %d was not kept", rec.Epoch)
	}
	return nil
}

// fetchHistory takes from a peer all records after the newest we hold; that one too
// while we linger for the peer to hold it.
func (p *phase) fetchHistory(ctx context.Context, x *peer) error {
	p.know.update(func() { p.fetching++ })
	defer p.know.update(func() { p.fetching-- })
	for {
		ctx, cancel := context.WithTimeout(ctx, p.Timeout)
		records, err := x.client.History(ctx, p.historyFrom(x.ID), wire.MaxHistory)
		cancel()
		if err != nil || len(records) == 0 {
			return err
		}
		before := p.newestEpoch()
		for _, r := range records {
			rec, cert, err := archive.VerifyRecord(p.Roster, []byte(r.Record), r.Certificate)
			if err != nil {
				return err
			}
			if err := p.takeRecord(rec, cert); err != nil {
				return err
			}
			p.know.update(func() { p.holds[x.ID] = max(p.holds[x.ID], rec.Epoch) })
		}
		if p.newestEpoch() == before {
			return nil
		}
	}
}

// historyFrom is the first epoch of which a peer is to show the record.
func (p *phase) historyFrom(id uint32) archive.Epoch {
	p.know.Lock()
	defer p.know.Unlock()
	if p.lingering && p.holds[id] < p.newest.Epoch {
		return p.newest.Epoch
	}
	return p.newest.Epoch + 1
}

// catchUp brings tree and device to the newest epoch that we hold a certificate
// of: the tree by digest, then the head, upward only, then the counter. It tries
// until ctx ends, or a newer epoch is there to try. One whose tree nobody gives it
// sets aside.
func (p *phase) catchUp(ctx context.Context) error {
	began := time.Now()
	for wait := retryPause; ; wait = min(2*wait, maxRepairPause) {
		target := p.newestSoon(ctx)
		if target.Epoch < p.floor() {
			p.log.Warn("cannot take part", "err", errBurnt, "device", p.floor(), "epoch", target.Epoch)
			return p.rebase(target)
		}
		err := p.adopt(ctx, target)
		switch {
		case err == nil:
			p.step("tree and device at the newest epoch", began, "epoch", target.Epoch)
			return p.rebase(target)
		case ctx.Err() != nil || !errors.Is(err, errTree):
			return fmt.Errorf("catch up to epoch %d: %w", target.Epoch, err)
		}
		p.log.Info("cannot repair the tree yet", "epoch", target.Epoch, "err", err)
		if time.Since(began) > p.Roster.Limits.Join.Std()/4 && p.setAside(target) {
			continue
		}
		if p.awaitNewer(ctx, target.Epoch, wait); ctx.Err() != nil {
			return fmt.Errorf("catch up to epoch %d: %w", target.Epoch, errors.Join(err, ctx.Err()))
		}
	}
}

// floor is the epoch below which nothing may become our head: the counter's, or the
// next if that is the epoch of our head, whatever record it names. A crash may have
// come before the counter's advance; then the slots that showed what we had committed
// are gone, and the attacker may have taken the record.
func (p *phase) floor() archive.Epoch {
	slots, counter := p.statement.Slots, p.statement.Counter
	if archive.Digest(slots.Archive) == p.id && slots.Epoch > 0 && slots.Epoch-1 == counter {
		return archive.Epoch(slots.Epoch)
	}
	return archive.Epoch(counter)
}

// setAside forgets the epoch after that of our head, though we hold its certificate,
// and says whether it did. All who had its tree may have lost it; then those who
// committed its record, but have not seen the certificate, must certify it once more,
// and may need us for that. An epoch that we are to end the phase with stays.
func (p *phase) setAside(rec archive.EpochRecord) bool {
	held, ok := p.named()
	if !ok || p.last || held.Epoch+1 != rec.Epoch || p.statement.Counter > uint64(held.Epoch) {
		return false
	}
	p.log.Warn("nobody gives the tree of this epoch; helping to certify it once more", "epoch", rec.Epoch)
	p.know.update(func() { p.newest = held })
	return true
}

// newestSoon returns the newest epoch that we hold a certificate of. While peers
// send more of their history it waits for the rest: a repair of the tree for each
// part would take what was bound since again and again.
func (p *phase) newestSoon(ctx context.Context) (newest archive.EpochRecord) {
	for before := p.base.Epoch; ; before = newest.Epoch {
		quiet, cancel := context.WithTimeout(ctx, historyPause)
		p.know.wait(quiet, func() (bool, error) {
			newest = p.newest
			return newest.Epoch > before || newest.Epoch == p.base.Epoch || p.fetching == 0, nil
		})
		cancel()
		if newest.Epoch == before || newest.Epoch == p.base.Epoch || ctx.Err() != nil {
			return newest
		}
	}
}

// historyPause is after which silence of the peers a history counts as whole.
const historyPause = 500 * time.Millisecond

// maxRepairPause bounds the pause between attempts to repair the tree.
const maxRepairPause = 2 * time.Second

// awaitNewer waits for an epoch after e, but not longer than limit.
func (p *phase) awaitNewer(ctx context.Context, e archive.Epoch, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	p.know.wait(ctx, func() (bool, error) { return p.newest.Epoch > e, nil })
}

// rebase makes rec what we build on.
func (p *phase) rebase(rec archive.EpochRecord) error {
	p.know.update(func() { p.setBase(rec) })
	p.publishBase()
	return nil
}

// setBase wants know.
func (p *phase) setBase(rec archive.EpochRecord) {
	if rec.Epoch != p.base.Epoch {
		p.wanted = 0
		clear(p.reached)
	}
	p.base = rec
	p.inDoubt = p.doubt()
}

// adopt makes tree, head and counter those of a certified record.
func (p *phase) adopt(ctx context.Context, rec archive.EpochRecord) error {
	if err := p.ensureTree(ctx, rec); err != nil {
		return err
	}
	held, ok := p.named()
	if ok && held.Epoch > rec.Epoch {
		return fmt.Errorf("the device holds epoch %d: %w", held.Epoch, archive.ErrIntegrity)
	}
	if ok && held.Epoch == rec.Epoch {
		if err := p.mend(ctx, rec); err != nil || rec.Epoch == p.base.Epoch {
			return err
		}
	} else if err := p.storeHead(ctx, rec); err != nil {
		return err
	}
	p.caughtUp = true
	if _, cert, err := p.store.Record(rec.Epoch); err == nil && rec.Epoch > 0 {
		p.publishCertificate(rec, cert)
	}
	if ok && held.Epoch < rec.Epoch { // so no attempt of ours was at a later epoch
		p.dropPhaseData(rec.Epoch)
	}
	return nil
}

// mend advances the counter to the head's epoch, in case a crash came between
// the two.
func (p *phase) mend(ctx context.Context, rec archive.EpochRecord) error {
	for p.statement.Counter < uint64(rec.Epoch) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deviceTime)
		err := p.durable("counter", func() error { return p.MAS.Advance(ctx) })
		if err == nil {
			err = p.lookAgain(ctx)
		}
		cancel()
		if err != nil {
			return fmt.Errorf("advance counter: %w", err)
		}
	}
	p.trees.offer(rec)
	return nil
}

// growth says that the pairs of a root, without those bound after the epoch of a
// head, give that head's root: names were added, none was changed or removed.
type growth struct {
	from archive.Digest
	to   tree.Hash
}

// storeHead makes rec our head, once it is known that its tree, filtered to the
// epoch that the head names now, gives that epoch's root: nothing has been changed
// or removed, whatever is certified.
func (p *phase) storeHead(ctx context.Context, rec archive.EpochRecord) error {
	if held, ok := p.named(); ok && p.grown != (growth{held.Head(), rec.Root}) {
		if err := p.appendOnly(ctx, held, rec); err != nil {
			return err
		}
	}
	slots := trust.Slots{Head: rec.Head(), Epoch: uint64(rec.Epoch), Archive: p.id}
	if p.last {
		slots.Boot = p.statement.Counts
	}
	if err := p.durable("head", func() error { return p.storeSlots(ctx, slots) }); err != nil {
		return fmt.Errorf("store head: %w", err)
	}
	if err := p.mend(ctx, rec); err != nil {
		return err
	}
	p.know.update(func() { p.setBase(rec) })
	if err := p.settle(rec); err != nil {
		p.log.Warn("clear pending submissions", "err", err)
	}
	return nil
}

// isDone says whether an earlier process of this boot has stored the head that
// ends the phase.
func (p *phase) isDone() bool {
	slots := p.statement.Slots
	return !p.inDoubt && slots.Tick == 0 && slots.Boot == p.statement.Counts && slots != trust.Slots{}
}

// appendOnly checks that the tree on disk is rec's and, without what came after
// held, held's.
func (p *phase) appendOnly(ctx context.Context, held, rec archive.EpochRecord) error {
	t, err := p.store.OpenTree(true)
	if err != nil {
		return err
	}
	defer t.Close()
	all, err := t.RehashEach(ctx, upTo(rec.Epoch), upTo(held.Epoch))
	if err != nil {
		return err
	}
	for i, want := range []archive.EpochRecord{rec, held} {
		if !gives(all[i], want) {
			return notGrown(rec.Epoch, want.Epoch)
		}
	}
	return nil
}

func gives(h boltstore.Rehashed, rec archive.EpochRecord) bool {
	return h.Root == rec.Root && h.Count == rec.Names
}

func notGrown(at, of archive.Epoch) error {
	return fmt.Errorf("tree for epoch %d %w: names of epoch %d were changed or removed", at, archive.ErrIntegrity, of)
}

// upTo keeps the rows bound in epochs up to e. A row that is no entry is kept,
// so that it shows.
func upTo(e archive.Epoch) func(name, val []byte) bool {
	return func(_, val []byte) bool {
		entry, err := archive.ParseEntry(val)
		return err != nil || entry.Epoch <= e
	}
}

var errTree = errors.New("tree is not that of the epoch")

// ensureTree makes the tree on disk that of rec. Later rows, of an attempt whose
// head was never stored, are dropped; whatever else is wrong is repaired from
// peers.
func (p *phase) ensureTree(ctx context.Context, rec archive.EpochRecord) error {
	good, later, err := p.rehash(ctx, rec)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case good && !later:
		return nil
	}
	p.trees.withdraw()
	switch {
	case good:
		err = p.withoutLater(ctx, rec)
	case rec.Names == 0:
		err = p.durable("empty tree", func() error {
			_, _, err := boltstore.Build(ctx, p.store.TreePath(), nothing, (*tree.Hash)(&rec.Root))
			return err
		})
	default:
		p.log.Warn("the tree does not give the root of its epoch; repairing it", "epoch", rec.Epoch, "err", err)
		err = p.durable("tree repaired", func() error { return p.repair(ctx, rec) })
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errTree, err)
	}
	return nil
}

func nothing(func(tree.Pair, error) bool) {}

// rehash recomputes the tree from its rows: whether those up to rec's epoch give
// its root, and whether there are later ones.
func (p *phase) rehash(ctx context.Context, rec archive.EpochRecord) (good, later bool, err error) {
	t, err := p.store.OpenTree(true)
	if err != nil {
		return false, false, err
	}
	defer t.Close()
	keep := upTo(rec.Epoch)
	root, n, err := t.Rehash(ctx, func(name, val []byte) bool {
		if keep(name, val) {
			return true
		}
		later = true
		return false
	})
	return err == nil && root == rec.Root && n == rec.Names, later, err
}

// withoutLater makes the tree's file anew, of the rows up to rec's epoch.
func (p *phase) withoutLater(ctx context.Context, rec archive.EpochRecord) error {
	return p.durable("tree without later rows", func() error { return p.rebuild(ctx, rec) })
}

// rebuild writes the rows up to rec's epoch to a new file.
func (p *phase) rebuild(ctx context.Context, rec archive.EpochRecord) error {
	t, err := p.store.OpenTree(true)
	if err != nil {
		return err
	}
	defer t.Close()
	_, _, err = boltstore.Build(ctx, p.store.TreePath(), rowsUpTo(ctx, t, rec.Epoch), &rec.Root)
	return err
}

func rowsUpTo(ctx context.Context, t *boltstore.Store, e archive.Epoch) iter.Seq2[tree.Pair, error] {
	return func(yield func(tree.Pair, error) bool) {
		keep := upTo(e)
		err := t.Walk(ctx, nil, func(name, val []byte) error {
			if keep(name, val) && !yield(tree.Pair{Name: name, Val: val}, nil) {
				return errDone
			}
			return nil
		})
		if err != nil && !errors.Is(err, errDone) {
			yield(tree.Pair{}, err)
		}
	}
}

// repair takes the tree of rec from the peers, first from those who answer
// first: a hung one must not cost the phase.
func (p *phase) repair(ctx context.Context, rec archive.EpochRecord) error {
	var mu sync.Mutex
	var sources []TreeSource
	var all sync.WaitGroup
	for _, x := range p.peers {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, p.patience())
			defer cancel()
			if _, err := x.client.History(ctx, rec.Epoch, 1); err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			sources = append(sources, x.client)
		})
	}
	all.Wait()
	if len(sources) == 0 {
		return errors.New("no peer answers")
	}
	return RepairTree(ctx, p.store, rec, sources, p.log)
}

// patience bounds the wait for one small answer of a peer where others could
// give it too.
func (p *phase) patience() time.Duration {
	return min(p.Timeout, max(time.Second, p.Roster.Limits.Phase.Std()/20))
}

// settle drops from the pending buffer what the epoch has decided: submissions
// whose names are all bound now, to whatever, and those that can be bound no
// more.
func (p *phase) settle(rec archive.EpochRecord) error {
	t, err := p.store.OpenTree(true)
	if err != nil {
		return err
	}
	defer t.Close()
	return p.durable("pending dropped", func() error {
		return p.store.thinPending(func(s archive.Submission) (bool, error) {
			over, err := p.isSettled(t, rec, s)
			return !over, err
		})
	})
}

// isSettled says whether a submission has nothing to wait for: it is too old, all its
// names are bound, or it is none that the roster admits.
func (p *phase) isSettled(t *boltstore.Store, rec archive.EpochRecord, s archive.Submission) (bool, error) {
	if rec.Time.Sub(s.Created) > p.Roster.Limits.SubmissionAge.Std() {
		return true, nil
	}
	names := make([][]byte, len(s.Bindings))
	for i, x := range s.Bindings {
		names[i] = []byte(x.Name)
	}
	vals, err := t.GetAll(names)
	if err != nil {
		return false, err
	}
	if !slices.ContainsFunc(vals, func(v []byte) bool { return v == nil }) {
		return true, nil
	}
	w, err := s.Verify(p.Roster) // last, for it is dear
	return err != nil || w.Permitted(s) != nil, nil
}
