package replica

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
	"github.com/bonafide-archive/bonafide/trust"
)

// shell returns the record that a block of the attempt at tick makes on base,
// without root and names: what needs no bodies.
func shell(base archive.EpochRecord, tick uint64, b consensus.Block) archive.EpochRecord {
	rec := archive.EpochRecord{
		Archive: base.Archive, Epoch: base.Epoch + 1, Tick: tick, Roster: base.Roster, Previous: base.Head(),
		Time: medianTime(b), Block: b.Digest(), Counts: slices.Clone(base.Counts),
	}
	for _, p := range b.Proposals {
		m := p.Join.Manifest
		rec.Joined = append(rec.Joined, m.Replica)
		for i := range rec.Counts {
			if rec.Counts[i].Replica == m.Replica {
				rec.Counts[i].Counts = trust.Counts{Reset: m.Reset, Restart: m.Restart}
			}
		}
	}
	return rec
}

// medianTime returns the lower median of the times in a block: with Q of them,
// at least one correct replica's is as low and one as high.
func medianTime(b consensus.Block) time.Time {
	var all []int64
	for _, p := range b.Proposals {
		all = append(all, p.Join.Manifest.Time)
	}
	slices.Sort(all)
	return time.Unix(all[(len(all)-1)/2], 0).UTC()
}

// proposalBody yields a body's submissions, their digests strictly ascending,
// and then io.EOF.
type proposalBody interface {
	next() (archive.Submission, archive.Digest, error)
}

// rows walks the tree's pairs in order from a name on, until fn returns an
// error.
type rows func(ctx context.Context, from []byte, fn func(name, val []byte) error) error

// merge returns what the proposals add to the tree (talk, slide "Operation of
// Bonafide"). It depends on its arguments alone, so all replicas get the same:
// what is too old, not permitted or over quota is dropped, a name that is bound
// keeps its entry, and of several values for one name that of most proposals
// wins, then the lowest.
func merge(ctx context.Context, r *archive.Roster, e archive.Epoch, at time.Time, bodies []proposalBody, old rows) ([]tree.Pair, error) {
	all, err := unite(bodies)
	if err != nil {
		return nil, err
	}
	wanted := contest(withinQuota(admissible(all, r, at)), e)
	return unbound(ctx, wanted, old)
}

// united is a submission with the proposals that contain it.
type united struct {
	archive.Submission
	digest archive.Digest
	in     uint64 // bit i: the i-th proposal
	writer archive.Writer
}

// unite merges sorted bodies: every submission once.
func unite(bodies []proposalBody) (all []united, err error) {
	heads := make([]*united, len(bodies))
	advance := func(i int) error {
		s, d, err := bodies[i].next()
		heads[i] = nil
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			heads[i] = &united{Submission: s, digest: d}
		}
		return err
	}
	for i := range bodies {
		if err := advance(i); err != nil {
			return nil, err
		}
	}
	for {
		least := lowest(heads)
		if least == nil {
			return all, nil
		}
		u := *least
		for i, h := range heads {
			if h == nil || h.digest != u.digest {
				continue
			}
			u.in |= 1 << i
			if err := advance(i); err != nil {
				return nil, err
			}
		}
		all = append(all, u)
	}
}

func lowest(heads []*united) (least *united) {
	for _, h := range heads {
		if h != nil && (least == nil || bytes.Compare(h.digest[:], least.digest[:]) < 0) {
			least = h
		}
	}
	return least
}

// admissible drops what is of another archive or writer, outside its age at the
// epoch's time, or for names that its writer may not write.
func admissible(all []united, r *archive.Roster, at time.Time) (kept []united) {
	id, writers := r.ID(), make(map[archive.KeyID]archive.Writer)
	for _, w := range r.Writers {
		writers[archive.KeyIDOf(ed25519Public(w.Key))] = w
	}
	for _, u := range all {
		w, ok := writers[u.Writer]
		if !ok || u.Archive != id || w.Permitted(u.Submission) != nil || u.Fresh(at, r.Limits.SubmissionAge.Std()) != nil {
			continue
		}
		u.writer = w
		kept = append(kept, u)
	}
	return kept
}

// withinQuota drops what exceeds its writer's quota. What stands in more
// proposals comes first, then what is older, then the lower digest.
func withinQuota(all []united) (kept []united) {
	slices.SortFunc(all, func(a, b united) int {
		return cmp.Or(
			cmp.Compare(bits.OnesCount64(b.in), bits.OnesCount64(a.in)),
			a.Created.Compare(b.Created),
			bytes.Compare(a.digest[:], b.digest[:]),
		)
	})
	used := make(map[archive.KeyID]Stats)
	for _, u := range all {
		have, n, size := used[u.Writer], uint64(len(u.Bindings)), u.Size()
		if n > u.writer.Names-min(have.Names, u.writer.Names) || size > u.writer.Bytes-min(have.Bytes, u.writer.Bytes) {
			continue
		}
		used[u.Writer] = Stats{have.Names + n, have.Bytes + size}
		kept = append(kept, u)
	}
	return kept
}

// value is one value wanted for a name, with the proposals that want it.
type value struct {
	name string
	val  []byte
	in   uint64
}

// contest returns one value for each name, by ascending name: that of most
// proposals, of several the one whose encoding is lowest.
func contest(all []united, e archive.Epoch) (won []value) {
	var wanted []value
	for _, u := range all {
		for _, x := range u.Bindings {
			wanted = append(wanted, value{string(x.Name), u.Entry(x, e).Bytes(), u.in})
		}
	}
	slices.SortFunc(wanted, func(a, b value) int {
		return cmp.Or(cmp.Compare(a.name, b.name), bytes.Compare(a.val, b.val))
	})
	for i := 0; i < len(wanted); {
		v := wanted[i]
		for i++; i < len(wanted) && wanted[i].name == v.name && bytes.Equal(wanted[i].val, v.val); i++ {
			v.in |= wanted[i].in
		}
		if n := len(won); n == 0 || won[n-1].name != v.name {
			won = append(won, v)
		} else if bits.OnesCount64(v.in) > bits.OnesCount64(won[n-1].in) {
			won[n-1] = v
		}
	}
	return won
}

var errDone = errors.New("done")

// unbound returns the values whose names the old rows do not hold, by one scan
// of both in order.
func unbound(ctx context.Context, wanted []value, old rows) (pairs []tree.Pair, err error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	err = old(ctx, []byte(wanted[0].name), func(name, _ []byte) error {
		for len(wanted) > 0 && wanted[0].name < string(name) {
			pairs, wanted = append(pairs, wanted[0].pair()), wanted[1:]
		}
		if len(wanted) > 0 && wanted[0].name == string(name) {
			wanted = wanted[1:]
		}
		if len(wanted) == 0 {
			return errDone
		}
		return nil
	})
	if err != nil && !errors.Is(err, errDone) {
		return nil, err
	}
	for _, v := range wanted {
		pairs = append(pairs, v.pair())
	}
	return pairs, nil
}

func (v value) pair() tree.Pair { return tree.Pair{Name: []byte(v.name), Val: v.val} }

// apply builds the record of the block, or the one that it carries, and the tree
// that belongs to it.
func (a *attempt) apply(ctx context.Context, b consensus.Block) (archive.EpochRecord, error) {
	began := time.Now()
	origin, want, err := a.origin(b)
	if err != nil {
		return want, err
	}
	for _, p := range origin.Proposals {
		if err := a.body(ctx, p); err != nil {
			return want, fmt.Errorf("fetch proposals: %w", err)
		}
	}
	rec := want
	if rec.Root, rec.Names, err = a.bind(ctx, origin, want); err != nil {
		return rec, fmt.Errorf("apply: %w", err)
	}
	if b.Carried != nil && !bytes.Equal(rec.Bytes(), b.Carried.Record) {
		return rec, fmt.Errorf("apply: carried record %w: its block gives another", archive.ErrIntegrity)
	}
	if _, err := archive.ParseRecord(rec.Bytes()); err != nil {
		return rec, fmt.Errorf("apply: %w", err)
	}
	a.step(StepApplied, began, "epoch", rec.Epoch, "names", rec.Names, "carried", b.Carried != nil)
	return rec, nil
}

// origin returns the block whose proposals are to be merged and the record it
// makes, without root and names.
func (a *attempt) origin(b consensus.Block) (consensus.Block, archive.EpochRecord, error) {
	if b.Carried == nil {
		return b, shell(a.base, a.tick, b), nil
	}
	rec, err := archive.ParseRecord(b.Carried.Record)
	if err != nil {
		return b, rec, err
	}
	o, err := consensus.ParseBlock(b.Carried.Block)
	if err != nil {
		return b, rec, err
	}
	return o, shell(a.base, rec.Tick, o), nil
}

// body fetches what is missing of a proposal, from those who vouched for it
// first.
func (a *attempt) body(ctx context.Context, p consensus.ProposalCertificate) error {
	from := []uint32{p.Replica()}
	for _, v := range p.Vouchers {
		from = append(from, v.Voter)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := make(chan error, 1)
	a.work.run(func(context.Context) {
		stopped <- a.wait(ctx, func() (bool, error) { return false, nil })
		cancel()
	})
	err := a.hold(ctx, p.Join.Manifest, a.sources(from...))
	cancel()
	if err == nil {
		return nil
	}
	return errors.Join(err, <-stopped)
}

// bind adds what the block's proposals want to the tree, and returns its root,
// recomputed from the rows, and the number of names. The rows are right, but they
// may lie in a file in which the attacker has led searches astray: where it cannot
// be written to, it is made anew from them.
func (a *attempt) bind(ctx context.Context, origin consensus.Block, rec archive.EpochRecord) (root tree.Hash, names uint64, err error) {
	if !a.trees.offers(a.base) { // an earlier attempt of this phase has written it
		if err := a.ensureTree(ctx, a.base); err != nil {
			return root, 0, err
		}
	}
	err = a.trees.exclusive(func() error {
		root, names, err = a.write(ctx, origin, rec)
		if err == nil || ctx.Err() != nil {
			return err
		}
		a.log.Warn("cannot write to the tree; making its file anew", "err", err)
		if failed := a.withoutLater(ctx, a.base); failed != nil {
			return errors.Join(err, failed)
		}
		root, names, err = a.write(ctx, origin, rec)
		return err
	})
	return root, names, err
}

// write adds what the proposals want to the tree in one transaction.
func (a *attempt) write(ctx context.Context, origin consensus.Block, rec archive.EpochRecord) (root tree.Hash, names uint64, err error) {
	var t *boltstore.Store
	err = a.durable("tree opened", func() (err error) { t, err = a.store.OpenTree(false); return err })
	if err != nil {
		return root, 0, err
	}
	defer t.Close()
	var bodies []proposalBody
	for _, p := range origin.Proposals {
		bodies = append(bodies, newBodyScanner(a.phase.dir.body(p.Join.Manifest)))
	}
	pairs, err := merge(ctx, a.Roster, rec.Epoch, rec.Time, bodies, t.Walk)
	if err != nil {
		return root, 0, err
	}
	if err := a.durable("tree", func() error { _, _, err := t.Apply(ctx, pairs); return err }); err != nil {
		return root, 0, err
	}
	all, err := t.RehashEach(ctx, nil, upTo(a.base.Epoch))
	if err != nil {
		return root, 0, err
	}
	if !gives(all[1], a.base) {
		return root, 0, notGrown(rec.Epoch, a.base.Epoch)
	}
	a.grown = growth{a.base.Head(), all[0].Root}
	return all[0].Root, all[0].Count, nil
}
