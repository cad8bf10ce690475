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
	"strings"
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

// proposalBody yields the bytes of a body's submissions, their digests strictly
// ascending, and then io.EOF. What it yielded last is its own again with the next.
type proposalBody interface {
	next() ([]byte, archive.Digest, error)
}

// opener opens a body at its begin.
type opener func() proposalBody

// rows walks the tree's pairs in order from a name on, until fn returns an
// error.
type rows func(ctx context.Context, from []byte, fn func(name, val []byte) error) error

// additions is what an epoch adds to the tree. There may be a million names: none is
// held as an entry before it is needed, no submission as a whole, and no name of
// those that are over quota, of which faulty replicas propose what they like.
type additions struct {
	archive archive.Digest
	epoch   archive.Epoch
	at      time.Time // the epoch's
	age     time.Duration
	writers []archive.Writer
	keys    []archive.KeyID       // of the writers
	places  map[archive.KeyID]int // of the keys
	subs    []submitted           // by ascending digest
	values  []value
}

// submitted is a submission without its bindings.
type submitted struct {
	digest  archive.Digest
	created int64  // Unix s
	in      uint64 // bit i: the i-th proposal contains it
	names   uint64
	size    uint64 // of its contents, in bytes
	writer  int
	refused bool // over quota
}

// first returns the first proposal that contains s.
func (s submitted) first() int { return bits.TrailingZeros64(s.in) }

// value is one value wanted for a name.
type value struct {
	name archive.Name
	archive.Content
	writer, sub uint32
}

// merge returns what the proposals add to the tree (talk, slide "Operation of
// Bonafide"). It depends on its arguments alone, so all replicas get the same:
// what is too old, not permitted or over quota is dropped, a name that is bound
// keeps its entry, and of several values for one name that of most proposals
// wins, then the lowest.
func merge(ctx context.Context, r *archive.Roster, e archive.Epoch, at time.Time, bodies []opener, old rows) (*additions, error) {
	a := &additions{
		archive: r.ID(), epoch: e, at: at, age: r.Limits.SubmissionAge.Std(),
		writers: r.Writers, places: make(map[archive.KeyID]int),
	}
	for i, w := range r.Writers {
		k := archive.KeyIDOf(ed25519Public(w.Key))
		a.keys, a.places[k] = append(a.keys, k), i
	}
	if err := unite(bodies, a.admit); err != nil {
		return nil, err
	}
	a.withinQuota()
	if err := a.gather(bodies); err != nil {
		return nil, err
	}
	a.contest()
	return a, a.unbound(ctx, old)
}

// head is the next submission of a body; nil at its end.
type head struct {
	raw    []byte
	digest archive.Digest
}

// unite merges sorted bodies: it calls take once for every submission, with those
// that contain it as bits.
func unite(bodies []opener, take func(raw []byte, d archive.Digest, in uint64) error) error {
	heads, all := make([]head, len(bodies)), make([]proposalBody, len(bodies))
	advance := func(i int) (err error) {
		heads[i].raw, heads[i].digest, err = all[i].next()
		if errors.Is(err, io.EOF) {
			heads[i].raw, err = nil, nil
		}
		return err
	}
	for i, open := range bodies {
		all[i] = open()
		if err := advance(i); err != nil {
			return err
		}
	}
	for {
		least, in := lowest(heads)
		if in == 0 {
			return nil
		}
		if err := take(least.raw, least.digest, in); err != nil {
			return err
		}
		for ; in != 0; in &= in - 1 {
			if err := advance(bits.TrailingZeros64(in)); err != nil {
				return err
			}
		}
	}
}

// lowest returns the head of the lowest digest, and whose it is, as bits.
func lowest(heads []head) (least head, in uint64) {
	for i, h := range heads {
		c := bytes.Compare(h.digest[:], least.digest[:])
		switch {
		case h.raw == nil || in != 0 && c > 0:
		case in != 0 && c == 0:
			in |= 1 << i
		default:
			least, in = h, 1<<i
		}
	}
	return least, in
}

// admit takes a submission, unless it is of another archive or writer, outside its
// age at the epoch's time, or for names that its writer may not write.
func (a *additions) admit(raw []byte, d archive.Digest, in uint64) error {
	s, err := archive.ParseSubmission(raw)
	if err != nil {
		return err
	}
	w, ok := a.places[s.Writer]
	if !ok || s.Archive != a.archive || a.writers[w].Permitted(s) != nil || s.Fresh(a.at, a.age) != nil {
		return nil
	}
	a.subs = append(a.subs, submitted{
		digest: d, created: s.Created.Unix(), in: in, names: uint64(len(s.Bindings)), size: s.Size(), writer: w,
	})
	return nil
}

// withinQuota drops what exceeds its writer's quota. What stands in more
// proposals comes first, then what is older, then the lower digest.
func (a *additions) withinQuota() {
	order := make([]*submitted, len(a.subs))
	for i := range a.subs {
		order[i] = &a.subs[i]
	}
	slices.SortFunc(order, func(x, y *submitted) int {
		return cmp.Or(
			cmp.Compare(bits.OnesCount64(y.in), bits.OnesCount64(x.in)),
			cmp.Compare(x.created, y.created),
			bytes.Compare(x.digest[:], y.digest[:]),
		)
	})
	used := make([]Stats, len(a.writers))
	for _, s := range order {
		w, have := a.writers[s.writer], &used[s.writer]
		if s.names > w.Names-min(have.Names, w.Names) || s.size > w.Bytes-min(have.Bytes, w.Bytes) {
			s.refused = true
			continue
		}
		have.Names, have.Bytes = have.Names+s.names, have.Bytes+s.size
	}
}

// gather reads the values of what is not refused, each from the first body that
// contains it. There are no more than the quotas of all writers.
func (a *additions) gather(bodies []opener) error {
	left, names := make([]int, len(bodies)), uint64(0)
	for _, s := range a.subs {
		if !s.refused {
			left[s.first()]++
			names += s.names
		}
	}
	a.values = make([]value, 0, names)
	for i, open := range bodies {
		if err := a.gatherFrom(open(), i, left[i]); err != nil {
			return err
		}
	}
	return nil
}

// gatherFrom reads the values of the left submissions whose first body is the i-th.
func (a *additions) gatherFrom(body proposalBody, i, left int) error {
	for sub := 0; left > 0; {
		raw, d, err := body.next()
		if err != nil {
			return fmt.Errorf("read again: %w", err)
		}
		for sub < len(a.subs) && bytes.Compare(a.subs[sub].digest[:], d[:]) < 0 {
			sub++
		}
		if sub == len(a.subs) || a.subs[sub].digest != d || a.subs[sub].refused || a.subs[sub].first() != i {
			continue
		}
		s, err := archive.ParseSubmission(raw)
		if err != nil {
			return err
		}
		for _, x := range s.Bindings {
			a.values = append(a.values, value{x.Name, x.Content, uint32(a.subs[sub].writer), uint32(sub)})
		}
		left--
	}
	return nil
}

// contest leaves one value for each name, by ascending name: that of most
// proposals, of several the one whose encoding is lowest.
func (a *additions) contest() {
	slices.SortFunc(a.values, func(v, w value) int {
		if v.name != w.name {
			return strings.Compare(string(v.name), string(w.name))
		}
		return bytes.Compare(a.entry(v), a.entry(w))
	})
	won, most := 0, 0
	for rest := a.values; len(rest) > 0; {
		v, in := rest[0], uint64(0)
		for len(rest) > 0 && rest[0].name == v.name && rest[0].Content == v.Content && rest[0].writer == v.writer {
			in |= a.subs[rest[0].sub].in
			rest = rest[1:]
		}
		votes := bits.OnesCount64(in)
		if won == 0 || a.values[won-1].name != v.name {
			won++
		} else if votes <= most {
			continue
		}
		a.values[won-1], most = v, votes
	}
	clear(a.values[won:])
	a.values, a.subs = a.values[:won], nil
}

// entry is the tree's value for v.
func (a *additions) entry(v value) []byte {
	return archive.Entry{Content: v.Content, Writer: a.keys[v.writer], Epoch: a.epoch}.Bytes()
}

var errDone = errors.New("done")

// unbound leaves the values whose names the old rows do not hold, by one scan of
// both in order.
func (a *additions) unbound(ctx context.Context, old rows) error {
	wanted, kept := a.values, a.values[:0]
	if len(wanted) == 0 {
		return nil
	}
	err := old(ctx, []byte(wanted[0].name), func(name, _ []byte) error {
		for len(wanted) > 0 && string(wanted[0].name) < string(name) {
			kept, wanted = append(kept, wanted[0]), wanted[1:]
		}
		if len(wanted) > 0 && string(wanted[0].name) == string(name) {
			wanted = wanted[1:]
		}
		if len(wanted) == 0 {
			return errDone
		}
		return nil
	})
	if err != nil && !errors.Is(err, errDone) {
		return err
	}
	a.values = append(kept, wanted...)
	return nil
}

// addedAtOnce is how many pairs are held as such at a time.
const addedAtOnce = 1 << 15

// each calls fn with the pairs, by ascending name, some at a time.
func (a *additions) each(fn func([]tree.Pair) error) error {
	for some := range slices.Chunk(a.values, addedAtOnce) {
		pairs := make([]tree.Pair, len(some))
		for i, v := range some {
			pairs[i] = tree.Pair{Name: []byte(v.name), Val: a.entry(v)}
		}
		if err := fn(pairs); err != nil {
			return err
		}
	}
	return nil
}

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

// write adds what the proposals want to the tree.
func (a *attempt) write(ctx context.Context, origin consensus.Block, rec archive.EpochRecord) (root tree.Hash, names uint64, err error) {
	var t *boltstore.Store
	err = a.durable("tree opened", func() (err error) { t, err = a.store.OpenTree(false); return err })
	if err != nil {
		return root, 0, err
	}
	defer t.Close()
	var bodies []opener
	for _, p := range origin.Proposals {
		bodies = append(bodies, func() proposalBody { return newBodyScanner(a.phase.dir.body(p.Join.Manifest)) })
	}
	added, err := merge(ctx, a.Roster, rec.Epoch, rec.Time, bodies, t.Walk)
	if err != nil {
		return root, 0, err
	}
	err = added.each(func(pairs []tree.Pair) error {
		return a.durable("tree", func() error { _, _, err := t.Apply(ctx, pairs); return err })
	})
	if err != nil {
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
