package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

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
// right, several at a time.
type contentRepair struct {
	store   *Store
	sources []Source
	log     *slog.Logger

	mu   sync.Mutex // guards what follows
	lies map[uint32]int
	turn int
}

// lied notes that a source gave something wrong.
func (r *contentRepair) lied(src Source) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lies[src.ID()]++
}

// dropped reports whether a source has lied too often to be asked.
func (r *contentRepair) dropped(src Source) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lies[src.ID()] >= maxLies
}

// next returns which source is to begin.
func (r *contentRepair) next() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn++
	return r.turn
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
	first := r.next()
	errs := []error{errNoSource}
	for i := range r.sources {
		src := r.sources[(first+i)%len(r.sources)]
		if r.dropped(src) {
			continue
		}
		err := r.fetchFrom(ctx, src, d, int64(size))
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrFull) {
			return err
		}
		if errors.Is(err, archive.ErrIntegrity) || errors.Is(err, wire.ErrSlow) {
			r.lied(src)
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
