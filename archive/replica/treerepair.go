package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// TreeSource gives proven pages of a tree. *wire.Client is one.
type TreeSource interface {
	ProofRange(ctx context.Context, head archive.Digest, from, to []byte, limit int) (tree.Proof, error)
}

const (
	// pageLimit is how many names a page of a repair asks for, pageLeast how
	// few a page that is not the last may have: a source that gives less is
	// making time.
	pageLimit, pageLeast = wire.MaxPage, 128
	// maxBehind is how many epochs an old file may be behind and be of use.
	maxBehind = 1000
	// pageTimeout bounds the wait for one page.
	pageTimeout = 10 * time.Second
)

// RepairTree makes store's tree that of rec, which the caller has verified. What
// the old file still holds it keeps, as far as that fits the root; all else it
// takes from the sources in pages of proven ranges, each checked before it is
// used. Where nothing is left it takes a source's whole file, which must be sound
// in every page. A source that lies, fails or is slow is dropped and another takes over.
// Sources may be ahead of rec. The new file takes the place of the old one when
// its root is right, and only then; whoever has the old one open must open it
// again.
func RepairTree(ctx context.Context, store *Store, rec archive.EpochRecord, sources []TreeSource, log *slog.Logger) error {
	record := func(e archive.Epoch) (archive.EpochRecord, error) {
		rec, _, err := store.Record(e)
		return rec, err
	}
	r := &treeRepair{store: store, rec: rec, record: record, sources: sources, log: log, timeout: pageTimeout}
	return r.run(ctx)
}

type treeRepair struct {
	store   *Store
	rec     archive.EpochRecord
	record  func(archive.Epoch) (archive.EpochRecord, error) // of history
	log     *slog.Logger
	timeout time.Duration
	fetched atomic.Uint64 // names

	sources []TreeSource

	fetching sync.WaitGroup // what runs ahead of build

	mu      sync.Mutex // guards what follows
	dropped []bool     // by source
	damaged []int      // by source: pages that it said are damaged
	turn    int
}

// way yields the pairs of the tree as far as it can. Only the root says
// whether they are right.
type way func(context.Context) iter.Seq2[tree.Pair, error]

func (r *treeRepair) run(ctx context.Context) error {
	r.store.building.Lock()
	defer r.store.building.Unlock()
	if err := errors.Join(os.MkdirAll(r.store.dir, 0o700), evict(r.store.TreePath())); err != nil {
		return fmt.Errorf("repair tree: %w", err)
	}
	r.dropped, r.damaged = make([]bool, len(r.sources)), make([]int, len(r.sources))
	tries, sound := r.attempts(ctx)
	if sound {
		return nil
	}
	for _, try := range tries {
		err := r.build(ctx, try)
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrFull) {
			return err
		}
		r.log.Info("the tree must be repaired another way", "because", err)
	}
	err := r.adoptAny(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	r.log.Info("the tree must be taken page by page", "because", err)
	return r.build(ctx, r.whole)
}

func (r *treeRepair) build(ctx context.Context, try way) error {
	ctx, cancel := context.WithCancel(ctx)
	_, _, err := boltstore.Build(ctx, r.store.TreePath(), try(ctx), &r.rec.Root)
	cancel()
	r.fetching.Wait()
	if err != nil {
		return full(fmt.Errorf("repair tree: %w", err))
	}
	r.log.Info("tree repaired", "names", r.rec.Names, "fetched", r.fetched.Load())
	return nil
}

// whole takes everything from the sources.
func (r *treeRepair) whole(ctx context.Context) iter.Seq2[tree.Pair, error] {
	return newFetch(ctx, r, []span{{}}).next()
}

// attempts are the ways to make use of the old file, the cheapest first; or that
// nothing is wrong with it.
func (r *treeRepair) attempts(ctx context.Context) (tries []way, sound bool) {
	base, least, all, sound, err := r.salvage(ctx)
	if err != nil || sound {
		return nil, sound
	}
	cuts := [][]span{least}
	if !slices.EqualFunc(least, all, span.equal) {
		cuts = append(cuts, all)
	}
	for _, spans := range cuts {
		old := func(ctx context.Context) iter.Seq2[tree.Pair, error] { return r.mended(ctx, spans, base.Epoch) }
		if base.Epoch == r.rec.Epoch {
			tries = append(tries, old)
			continue
		}
		for _, src := range r.sources {
			if c, ok := src.(changesSource); ok {
				tries = append(tries, func(ctx context.Context) iter.Seq2[tree.Pair, error] {
					return interleaved(old(ctx), r.changes(ctx, c, base))
				})
			}
		}
	}
	return tries, false
}

// salvage finds the epoch of the old file, and the ranges of it that must be
// fetched: at the least, and if that was not all. A sound file is the right one.
func (r *treeRepair) salvage(ctx context.Context) (base archive.EpochRecord, least, all []span, sound bool, err error) {
	t, err := r.store.OpenTree(true)
	if err != nil {
		return base, nil, nil, false, err
	}
	defer t.Close()
	root, err := t.Root()
	if err != nil {
		return base, nil, nil, false, err
	}
	base = r.base(archive.Digest(root))
	few, many, err := t.Salvage(ctx, base.Root)
	if root != base.Root {
		few = nil // an update phase that made no epoch may have added names to it
	}
	sound = err == nil && len(many) == 0 && base.Root == r.rec.Root
	return base, rowSpans(few), rowSpans(many), sound, err
}

// base is the record of the epoch whose root the old file claims: that of the
// repair unless history has another. That it is wrong costs time, no more.
func (r *treeRepair) base(root archive.Digest) archive.EpochRecord {
	if root == archive.Digest(r.rec.Root) {
		return r.rec
	}
	for e := r.rec.Epoch; e > 1 && e+maxBehind > r.rec.Epoch; e-- {
		rec, err := r.record(e - 1)
		if err != nil {
			break
		}
		if archive.Digest(rec.Root) == root {
			return rec
		}
	}
	return r.rec
}

// span is a range of names, from <= name < to; nil to: no bound.
type span struct{ from, to []byte }

// rowSpans returns the ranges in which pairs are wrong, not digests alone.
func rowSpans(all []boltstore.Damage) []span {
	var spans []span
	for _, d := range all {
		if d.Level == 0 {
			spans = append(spans, span{d.From, d.To})
		}
	}
	return joined(spans)
}

// joined sorts the spans and joins those that touch.
func joined(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return bytes.Compare(a.from, b.from) })
	var out []span
	for _, s := range spans {
		n := len(out)
		if n == 0 || out[n-1].to != nil && bytes.Compare(out[n-1].to, s.from) < 0 {
			out = append(out, s)
			continue
		}
		if last := &out[n-1]; last.to != nil && (s.to == nil || bytes.Compare(last.to, s.to) < 0) {
			last.to = s.to
		}
	}
	return out
}

func (s span) equal(o span) bool { return bytes.Equal(s.from, o.from) && bytes.Equal(s.to, o.to) }

// mended yields the old file's pairs outside the spans as of epoch e, and the
// sources' inside.
func (r *treeRepair) mended(ctx context.Context, spans []span, e archive.Epoch) iter.Seq2[tree.Pair, error] {
	return func(yield func(tree.Pair, error) bool) {
		t, err := r.store.OpenTree(true)
		if err != nil {
			yield(tree.Pair{}, err)
			return
		}
		defer t.Close()
		f := newFetch(ctx, r, spans)
		var from []byte
		for _, s := range spans {
			if bytes.Compare(from, s.from) < 0 && !forward(local(ctx, t, from, s.from, e), yield) {
				return
			}
			if !forward(f.next(), yield) {
				return
			}
			if from = s.to; from == nil {
				return
			}
		}
		forward(local(ctx, t, from, nil, e), yield)
	}
}

// forward yields all that pairs gives, until an error or the end of interest.
func forward(pairs iter.Seq2[tree.Pair, error], yield func(tree.Pair, error) bool) bool {
	for p, err := range pairs {
		if !yield(p, err) || err != nil {
			return false
		}
	}
	return true
}

// errEnough ends a walk.
var errEnough = errors.New("enough")

// local yields the pairs of the old file that were bound up to epoch e. Where it
// cannot be read on, it ends: if that loses a pair, the root will tell.
func local(ctx context.Context, t *boltstore.Store, from, to []byte, e archive.Epoch) iter.Seq2[tree.Pair, error] {
	keep := upTo(e)
	return func(yield func(tree.Pair, error) bool) {
		err := t.Walk(ctx, from, func(name, val []byte) error {
			if to != nil && bytes.Compare(name, to) >= 0 || keep(name, val) && !yield(tree.Pair{Name: name, Val: val}, nil) {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) && !errors.Is(err, boltstore.ErrDamaged) {
			yield(tree.Pair{}, err)
		}
	}
}

// interleaved yields the pairs of both, each in order; of two with one name a's.
func interleaved(a, b iter.Seq2[tree.Pair, error]) iter.Seq2[tree.Pair, error] {
	return func(yield func(tree.Pair, error) bool) {
		next, stop := iter.Pull2(b)
		defer stop()
		y, err, more := next()
		upTo := func(name []byte) bool { // b's pairs below name; nil: all
			for more && (err != nil || name == nil || bytes.Compare(y.Name, name) < 0) {
				if !yield(y, err) || err != nil {
					return false
				}
				y, err, more = next()
			}
			for more && err == nil && bytes.Equal(y.Name, name) {
				y, err, more = next()
			}
			return true
		}
		for x, xerr := range a {
			if xerr == nil && !upTo(x.Name) || !yield(x, xerr) || xerr != nil {
				return
			}
		}
		upTo(nil)
	}
}

// changesSource gives the names bound since an epoch. *wire.Client is one.
type changesSource interface {
	Changes(ctx context.Context, head archive.Digest, since archive.Epoch, from []byte) (wire.Changes, error)
}

// changes yields the names bound after base up to the repair's epoch, as src
// gives them: unproven, but in no more pages than a source that is right can need
// for as many names as the records count.
func (r *treeRepair) changes(ctx context.Context, src changesSource, base archive.EpochRecord) iter.Seq2[tree.Pair, error] {
	return func(yield func(tree.Pair, error) bool) {
		under := r.rec
		var from []byte
		for pages := uint64(0); ; pages++ {
			page, newest, err := r.changesPage(ctx, src, under, base.Epoch, from)
			if left := newest.Names - base.Names; err == nil && (newest.Names < base.Names || pages > 2+newest.Names/wire.MaxScan+left/changesLeast) {
				err = fmt.Errorf("%w: %d pages of changes", wire.ErrSlow, pages)
			}
			under = newest
			if err != nil {
				yield(tree.Pair{}, err)
				return
			}
			r.fetched.Add(uint64(len(page.Pairs)))
			pairs, err := boundBy(page.Pairs, r.rec.Epoch)
			for _, p := range pairs {
				if !yield(p, nil) {
					return
				}
			}
			if err != nil {
				yield(tree.Pair{}, err)
				return
			}
			if len(page.Next) == 0 {
				return
			}
			from = page.Next
		}
	}
}

// changesLeast is how many names a page of changes has at the least, unless the
// replica found fewer among wire.MaxScan: a MiB of the longest.
const changesLeast = 512

// changesPage asks under a record, or under the newer one that the source names.
func (r *treeRepair) changesPage(ctx context.Context, src changesSource, under archive.EpochRecord, since archive.Epoch, from []byte) (wire.Changes, archive.EpochRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	page, err := src.Changes(ctx, under.Head(), since, from)
	if newer, ok := newerRecord(r.store.Roster(), under, err); ok {
		under = newer
		page, err = src.Changes(ctx, under.Head(), since, from)
	}
	return page, under, err
}

// fetchAhead is how many spans a repair fetches at a time, and fetchPages how
// many pages of each wait to be used.
const fetchAhead, fetchPages = 8, 2

// fetch takes spans from the sources, some at a time, in order. It ends with its
// context.
type fetch struct {
	ctx   context.Context
	spans chan chan fetched
}

type fetched struct {
	pairs []tree.Pair
	err   error
}

func newFetch(ctx context.Context, r *treeRepair, spans []span) *fetch {
	f := &fetch{ctx: ctx, spans: make(chan chan fetched, fetchAhead-1)}
	r.fetching.Go(func() {
		for _, s := range spans {
			pages := make(chan fetched, fetchPages)
			select {
			case f.spans <- pages:
				r.fetching.Go(func() { f.span(r, s, pages) })
			case <-ctx.Done():
				return
			}
		}
	})
	return f
}

// span sends the pages of one span.
func (f *fetch) span(r *treeRepair, s span, pages chan<- fetched) {
	defer close(pages)
	for from, more := s.from, true; more; {
		pairs, next, err := r.page(f.ctx, from, s.to)
		select {
		case pages <- fetched{pairs, err}:
		case <-f.ctx.Done():
			return
		}
		from, more = next, err == nil && next != nil
	}
}

// next yields the pairs of the next span.
func (f *fetch) next() iter.Seq2[tree.Pair, error] {
	return func(yield func(tree.Pair, error) bool) {
		var pages chan fetched
		select {
		case pages = <-f.spans:
		case <-f.ctx.Done():
			yield(tree.Pair{}, f.ctx.Err())
			return
		}
		for page := range pages {
			if page.err != nil {
				yield(tree.Pair{}, page.err)
				return
			}
			for _, p := range page.pairs {
				if !yield(p, nil) {
					return
				}
			}
		}
		if err := f.ctx.Err(); err != nil {
			yield(tree.Pair{}, err)
		}
	}
}

// page returns a page from a source that gives a right one in time. One that is
// damaged at all of them is asked for in smaller pieces: each may be whole at
// one.
func (r *treeRepair) page(ctx context.Context, from, to []byte) ([]tree.Pair, []byte, error) {
	for limit := pageLimit; ; limit /= 8 {
		pairs, next, err := r.pageOfAny(ctx, from, to, limit)
		if limit < 8 || !errors.Is(err, errDamagedThere) {
			return pairs, next, err
		}
	}
}

// errDamagedThere says that a page is damaged at every source that is left.
var errDamagedThere = errors.New("damaged at all peers")

// pageOfAny is page for at most limit names. The sources take turns, and those
// that fail are dropped. One that says that it is damaged may have other pages, and
// is asked after those that said so less often: it may be slow to say it.
func (r *treeRepair) pageOfAny(ctx context.Context, from, to []byte, limit int) ([]tree.Pair, []byte, error) {
	tried, none := make([]bool, len(r.sources)), errNoSource
	for {
		i, ok := r.source(tried)
		if !ok {
			return nil, nil, fmt.Errorf("tree: %w", none)
		}
		pairs, next, err := r.pageOf(ctx, r.sources[i], from, to, limit)
		switch {
		case err == nil:
			r.fetched.Add(uint64(len(pairs)))
			return pairs, next, nil
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		case errors.Is(err, &wire.Error{Code: wire.CodeDamaged}):
			tried[i], none = true, errDamagedThere
			r.noteDamaged(i)
			continue
		}
		r.log.Warn("drop a source of the tree", "because", err)
		r.drop(i)
	}
}

// source is the source whose turn it is, of those with the fewest damaged pages
// that were not tried.
func (r *treeRepair) source(tried []bool) (best int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.sources {
		i := (r.turn + k) % len(r.sources)
		if !r.dropped[i] && !tried[i] && (!ok || r.damaged[i] < r.damaged[best]) {
			best, ok = i, true
		}
	}
	r.turn = best + 1
	return best, ok
}

func (r *treeRepair) noteDamaged(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.damaged[i]++
}

func (r *treeRepair) drop(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropped[i] = true
}

// pageOf returns a page from one source. A source that has come further gives a
// page of its newer tree, which must be certified, and from which what was bound
// later is left out: nothing is ever changed or removed.
func (r *treeRepair) pageOf(ctx context.Context, src TreeSource, from, to []byte, limit int) ([]tree.Pair, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	rec := r.rec
	proof, err := src.ProofRange(ctx, rec.Head(), from, to, limit)
	if newer, ok := newerRecord(r.store.Roster(), rec, err); ok {
		rec = newer
		proof, err = src.ProofRange(ctx, rec.Head(), from, to, limit)
	}
	if err != nil {
		return nil, nil, err
	}
	view, err := archive.VerifyProof(rec, proof)
	if err != nil {
		return nil, nil, err
	}
	pairs, next, err := view.Page(from, to)
	if err != nil {
		return nil, nil, err
	}
	if next != nil && (len(pairs) < min(pageLeast, limit) || bytes.Compare(next, from) <= 0) {
		return nil, nil, fmt.Errorf("%w: page of %d names", wire.ErrSlow, len(pairs))
	}
	pairs, err = boundBy(pairs, r.rec.Epoch)
	return pairs, next, err
}

// newerRecord returns the certified record that a stale-head refusal carries, if
// it is newer than rec.
func newerRecord(r *archive.Roster, rec archive.EpochRecord, err error) (archive.EpochRecord, bool) {
	var e *wire.Error
	if !errors.As(err, &e) || e.Code != wire.CodeStaleHead {
		return rec, false
	}
	newer, _, err := archive.VerifyRecord(r, []byte(e.Record), e.Certificate)
	return newer, err == nil && newer.Epoch > rec.Epoch
}

// boundBy leaves out the pairs bound after epoch e.
func boundBy(pairs []tree.Pair, e archive.Epoch) ([]tree.Pair, error) {
	var out []tree.Pair
	for _, p := range pairs {
		entry, err := archive.ParseEntry(p.Val)
		if err != nil {
			return nil, err
		}
		if entry.Epoch <= e {
			out = append(out, p)
		}
	}
	return out, nil
}
