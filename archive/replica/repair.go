package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"slices"
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

// Source gives everything that can be repaired. Nothing it gives is believed
// without its digest. *wire.Client is one.
type Source interface {
	TreeSource
	ID() uint32
	History(ctx context.Context, from archive.Epoch, limit int) ([]wire.SignedRecord, error)
	Content(ctx context.Context, d archive.Digest, offset int64) (io.ReadCloser, int64, error)
}

// errNoSource says that no source gave what was asked for.
var errNoSource = errors.New("no peer gives it")

const (
	// pageLimit is how many names a page of a repair asks for, pageLeast how
	// few a page that is not the last may have: a source that gives less is
	// making time.
	pageLimit, pageLeast = wire.MaxPage, 128
	// pageTimeout bounds the wait for one page.
	pageTimeout = 10 * time.Second
)

// RepairTree makes store's tree that of rec, which the caller has verified. What
// the old file still holds it keeps, as far as that fits the root; all else it
// takes from the sources in pages of proven ranges, each checked before it is
// used. A source that lies, fails or is slow is dropped and another takes over.
// Sources may be ahead of rec. The new file takes the place of the old one when
// its root is right, and only then; whoever has the old one open must open it
// again.
func RepairTree(ctx context.Context, store *Store, rec archive.EpochRecord, sources []TreeSource, log *slog.Logger) error {
	r := &treeRepair{store: store, rec: rec, sources: slices.Clone(sources), log: log, timeout: pageTimeout}
	return r.run(ctx)
}

type treeRepair struct {
	store   *Store
	rec     archive.EpochRecord
	sources []TreeSource
	log     *slog.Logger
	timeout time.Duration
	fetched uint64 // names
}

func (r *treeRepair) run(ctx context.Context) error {
	r.store.building.Lock()
	defer r.store.building.Unlock()
	if err := errors.Join(os.MkdirAll(r.store.dir, 0o700), evict(r.store.TreePath())); err != nil {
		return fmt.Errorf("repair tree: %w", err)
	}
	if spans, ok := r.damaged(ctx); ok {
		err := r.build(ctx, r.mended(ctx, spans))
		if err == nil || ctx.Err() != nil || len(r.sources) == 0 {
			return err
		}
		r.log.Info("rebuild the whole tree", "because", err)
	}
	return r.build(ctx, r.remote(ctx, nil, nil))
}

func (r *treeRepair) build(ctx context.Context, pairs iter.Seq2[tree.Pair, error]) error {
	if _, _, err := boltstore.Build(ctx, r.store.TreePath(), pairs, &r.rec.Root); err != nil {
		return full(fmt.Errorf("repair tree: %w", err))
	}
	r.log.Info("tree repaired", "names", r.rec.Names, "fetched", r.fetched)
	return nil
}

// span is a range of names, from <= name < to; nil to: no bound.
type span struct{ from, to []byte }

// damaged returns the ranges of the old file that must be fetched. The rest of
// it is good if the new root is.
func (r *treeRepair) damaged(ctx context.Context) ([]span, bool) {
	t, err := r.store.OpenTree(true)
	if err != nil {
		return nil, false
	}
	defer t.Close()
	all, err := t.Audit(ctx, r.rec.Root)
	if err != nil {
		return nil, false
	}
	return rowSpans(all), true
}

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

// mended yields the old file's pairs outside the spans, and the sources' inside.
func (r *treeRepair) mended(ctx context.Context, spans []span) iter.Seq2[tree.Pair, error] {
	return func(yield func(tree.Pair, error) bool) {
		var from []byte
		for _, s := range spans {
			if bytes.Compare(from, s.from) < 0 && !forward(r.local(ctx, from, s.from), yield) {
				return
			}
			if !forward(r.remote(ctx, s.from, s.to), yield) {
				return
			}
			if from = s.to; from == nil {
				return
			}
		}
		forward(r.local(ctx, from, nil), yield)
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

// local yields the old file's pairs.
func (r *treeRepair) local(ctx context.Context, from, to []byte) iter.Seq2[tree.Pair, error] {
	return func(yield func(tree.Pair, error) bool) {
		t, err := r.store.OpenTree(true)
		if err != nil {
			yield(tree.Pair{}, err)
			return
		}
		defer t.Close()
		err = t.Walk(ctx, from, func(name, val []byte) error {
			if to != nil && bytes.Compare(name, to) >= 0 || !yield(tree.Pair{Name: name, Val: val}, nil) {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(tree.Pair{}, err)
		}
	}
}

// remote yields the pairs of rec's tree, page by page from the sources.
func (r *treeRepair) remote(ctx context.Context, from, to []byte) iter.Seq2[tree.Pair, error] {
	return func(yield func(tree.Pair, error) bool) {
		for {
			pairs, next, err := r.page(ctx, from, to)
			if err != nil {
				yield(tree.Pair{}, err)
				return
			}
			r.fetched += uint64(len(pairs))
			for _, p := range pairs {
				if !yield(p, nil) {
					return
				}
			}
			if next == nil {
				return
			}
			from = next
		}
	}
}

// page returns a page from the first source that gives a right one in time, and
// drops those before it.
func (r *treeRepair) page(ctx context.Context, from, to []byte) ([]tree.Pair, []byte, error) {
	for len(r.sources) > 0 {
		pairs, next, err := r.pageOf(ctx, r.sources[0], from, to)
		if err == nil {
			return pairs, next, nil
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		r.log.Warn("drop a source of the tree", "because", err)
		r.sources = r.sources[1:]
	}
	return nil, nil, fmt.Errorf("tree: %w", errNoSource)
}

// pageOf returns a page from one source. A source that has come further gives a
// page of its newer tree, which must be certified, and from which what was bound
// later is left out: nothing is ever changed or removed.
func (r *treeRepair) pageOf(ctx context.Context, src TreeSource, from, to []byte) ([]tree.Pair, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	rec := r.rec
	proof, err := src.ProofRange(ctx, rec.Head(), from, to, pageLimit)
	if newer, ok := newerRecord(r.store.Roster(), rec, err); ok {
		rec = newer
		proof, err = src.ProofRange(ctx, rec.Head(), from, to, pageLimit)
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
	if next != nil && (len(pairs) < pageLeast || bytes.Compare(next, from) <= 0) {
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

// repairRecord fetches the record of an epoch with the given head, and its
// certificate, from the first source that has it, and keeps it.
func repairRecord(ctx context.Context, store *Store, e archive.Epoch, head archive.Digest, sources []Source, wait time.Duration) (archive.EpochRecord, archive.Certificate, error) {
	var errs []error
	for _, src := range sources {
		rec, cert, err := recordFrom(ctx, store, src, e, head, wait)
		if err == nil {
			return rec, cert, store.PutRecord(rec, cert)
		}
		if ctx.Err() != nil {
			return rec, cert, ctx.Err()
		}
		errs = append(errs, err)
	}
	return archive.EpochRecord{}, archive.Certificate{}, fmt.Errorf("record of epoch %d: %w: %w", e, errNoSource, errors.Join(errs...))
}

func recordFrom(ctx context.Context, store *Store, src Source, e archive.Epoch, head archive.Digest, wait time.Duration) (rec archive.EpochRecord, cert archive.Certificate, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	all, err := src.History(ctx, e, 1)
	if err != nil {
		return rec, cert, err
	}
	if len(all) == 0 {
		return rec, cert, fmt.Errorf("replica %d: epoch %d: %w", src.ID(), e, ErrMissing)
	}
	rec, cert, err = archive.VerifyRecord(store.Roster(), []byte(all[0].Record), all[0].Certificate)
	if err == nil && (rec.Epoch != e || rec.Head() != head) {
		err = fmt.Errorf("replica %d: epoch %d: %w: another record", src.ID(), e, archive.ErrIntegrity)
	}
	return rec, cert, err
}

// maxLies is how many wrong contents a source may send before it is asked no
// more.
const maxLies = 3

// contentRepair fetches contents, each from the first source that sends it
// right.
type contentRepair struct {
	store   *Store
	sources []Source
	lies    map[uint32]int
	turn    int
	log     *slog.Logger
}

func newContentRepair(store *Store, sources []Source, log *slog.Logger) *contentRepair {
	return &contentRepair{store: store, sources: sources, lies: make(map[uint32]int), log: log}
}

// restore repairs one content: by block if most of it may be there still,
// otherwise whole.
func (r *contentRepair) restore(ctx context.Context, c archive.Content) error {
	err := r.mend(ctx, c)
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrFull) {
		return err
	}
	return r.fetch(ctx, c.Digest, c.Size)
}

// fetch fetches one content. It begins with another source each time, so that
// the work is spread.
func (r *contentRepair) fetch(ctx context.Context, d archive.Digest, size uint64) error {
	r.turn++
	errs := []error{errNoSource}
	for i := range r.sources {
		src := r.sources[(r.turn+i)%len(r.sources)]
		if r.lies[src.ID()] >= maxLies {
			continue
		}
		err := r.fetchFrom(ctx, src, d, int64(size))
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrFull) {
			return err
		}
		if errors.Is(err, archive.ErrIntegrity) || errors.Is(err, wire.ErrSlow) {
			r.lies[src.ID()]++
			r.log.Warn("a peer gave a wrong content, or too slowly", "peer", src.ID(), "because", err)
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("content %s: %w", d, errors.Join(errs...))
}

func (r *contentRepair) fetchFrom(ctx context.Context, src Source, d archive.Digest, size int64) error {
	body, got, err := src.Content(ctx, d, 0)
	if err != nil {
		return err
	}
	defer body.Close()
	if got != size {
		return fmt.Errorf("replica %d: %w: size %d, want %d", src.ID(), archive.ErrIntegrity, got, size)
	}
	return r.store.PutContent(ctx, d, size, body)
}
