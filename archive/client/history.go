package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
)

// Step is one epoch of a history that has been verified so far.
type Step struct {
	Record      archive.EpochRecord
	Certificate archive.Certificate
	Added       uint64 // names bound in it
}

// HistoryOptions say what to check of a history.
type HistoryOptions struct {
	// Replica is the one to ask. Zero: the first that answers.
	Replica uint32
	// Names has all names fetched as well, and each epoch's tree made of them.
	Names bool
	// Step is told of each epoch, in order, once it is verified. May be nil. Its
	// error ends the walk.
	Step func(Step) error
	// Checked is told how many names of how many have come. May be nil.
	Checked func(done, total uint64)
}

// History is what a verified walk has come to.
type History struct {
	Replica uint32              // whose device attested to the newest record
	Record  archive.EpochRecord // the newest, all since genesis verified
	Names   uint64              // that were checked
}

// History walks through the history of the archive from its genesis, as one
// replica shows it. The replica is not trusted: each record must stand on the one
// before, certified by 2f+1 devices of the roster; the newest must be the one
// that the replica's own device attests under a fresh nonce, and no older than
// what this client has ever accepted. With names, which are proven complete, each
// epoch's root must be that of the names bound by then. What a replica cannot
// have by accident is ErrIntegrity, and ends the walk; a replica that does not
// answer is passed over for the next.
func (c *Client) History(ctx context.Context, o HistoryOptions) (History, error) {
	before, err := c.seen.load()
	if err != nil {
		return History{}, err
	}
	w := &walk{c: c, o: o, before: before, chain: archive.NewChain(c.Roster)}
	left := slices.DeleteFunc(c.preferred(), func(r *replica) bool { return o.Replica != 0 && r.ID != o.Replica })
	failed := &NoQuorumError{Need: 1, Replicas: make(map[uint32]error)}
	var stale error
	for len(left) > 0 {
		a, r, err := w.begin(ctx, left)
		if err != nil {
			var none *NoQuorumError
			if errors.As(err, &none) {
				maps.Copy(failed.Replicas, none.Replicas)
			}
			break
		}
		err = w.with(ctx, r, a)
		if err == nil || w.final(err) {
			return History{r.ID, w.upTo, w.names}, err
		}
		if failed.Replicas[r.ID] = inTime(err, c.Timeout); errors.Is(err, ErrStale) {
			stale = err
		}
		left = slices.DeleteFunc(left, func(x *replica) bool { return x == r })
	}
	if stale != nil {
		return History{}, stale
	}
	return History{}, failed
}

// walk is one History under way.
type walk struct {
	c       *Client
	o       HistoryOptions
	before  mark
	chain   *archive.Chain
	records []archive.EpochRecord // of the chain, from epoch 1 on
	told    error                 // what the caller's own functions returned

	upTo  archive.EpochRecord // what the device attested
	names uint64
}

// final says whether another replica could not make err good.
func (w *walk) final(err error) bool { return w.told != nil || noAccident(err) }

// noAccident says whether err is of what no replica has by accident.
func noAccident(err error) bool {
	return errors.Is(err, ErrIntegrity) || errors.Is(err, archive.ErrFormat)
}

// with walks on with one replica, from where the chain is.
func (w *walk) with(ctx context.Context, r *replica, a attested) error {
	err := a.err
	if err == nil {
		err = w.follow(ctx, r, a.rec)
	}
	if err == nil && w.o.Names {
		err = w.rewind(ctx, r)
	}
	subject := fmt.Sprintf("replica %d: ", r.ID)
	if err == nil || w.told != nil || strings.HasPrefix(err.Error(), subject) {
		return err
	}
	return fmt.Errorf("%s%w", subject, err)
}

// attested returns the record that the replica's device attests now.
func (w *walk) attested(ctx context.Context, r *replica) (rec archive.EpochRecord, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.c.Timeout)
	defer cancel()
	err = retry(ctx, func(ctx context.Context) error {
		v, err := w.c.attested(ctx, r)
		if err == nil {
			rec = v.Record
		}
		return err
	})
	return rec, err
}

// attested is the record that a replica's device attests, or the final error that
// comes instead.
type attested struct {
	rec archive.EpochRecord
	err error
}

// begin returns what the first replica that answers attests. Others that were asked
// may still be at it when the walk goes on, of which they touch nothing.
func (w *walk) begin(ctx context.Context, rs []*replica) (attested, *replica, error) {
	return first(ctx, rs, func(ctx context.Context, r *replica) (attested, error) {
		rec, err := w.attested(ctx, r)
		if err != nil && !noAccident(err) {
			return attested{}, inTime(err, w.c.Timeout)
		}
		return attested{rec, err}, nil
	}, func(attested) {})
}

// follow extends the chain to the record v, which the replica's device attests.
func (w *walk) follow(ctx context.Context, r *replica, v archive.EpochRecord) error {
	if v.Epoch < w.before.epoch {
		return fmt.Errorf("%w: its device is at epoch %d, epoch %d was accepted before", ErrStale, v.Epoch, w.before.epoch)
	}
	for w.chain.Last().Epoch < v.Epoch {
		if err := w.page(ctx, r, v.Epoch); err != nil {
			return err
		}
	}
	if w.records[v.Epoch-1].Head() != v.Head() {
		return fmt.Errorf("epoch %d %w: its device attests another record than the history has", v.Epoch, ErrIntegrity)
	}
	w.upTo = v
	return nil
}

// page takes the next page of history.
func (w *walk) page(ctx context.Context, r *replica, until archive.Epoch) error {
	ctx, cancel := context.WithTimeout(ctx, w.c.Timeout)
	defer cancel()
	from := w.chain.Last().Epoch + 1
	var page []wire.SignedRecord
	err := retry(ctx, func(ctx context.Context) (err error) {
		page, err = r.peer.History(ctx, from, wire.MaxHistory)
		return err
	})
	if err == nil && len(page) == 0 {
		err = fmt.Errorf("epoch %d %w: missing, its history ends before epoch %d, which its device attests", from, ErrIntegrity, until)
	}
	for _, s := range page {
		if err == nil {
			err = w.step(s)
		}
	}
	return err
}

// step takes the next epoch.
func (w *walk) step(s wire.SignedRecord) error {
	last := w.chain.Last()
	rec, cert, err := w.chain.Append([]byte(s.Record), s.Certificate)
	if err != nil {
		return err
	}
	w.records = append(w.records, rec)
	if rec.Epoch == w.before.epoch && rec.Head() != w.before.head {
		return fmt.Errorf("epoch %d %w: head %s, was %s when it was first accepted", rec.Epoch, ErrIntegrity, rec.Head(), w.before.head)
	}
	if w.o.Step != nil {
		w.told = w.o.Step(Step{rec, cert, rec.Names - last.Names})
	}
	return w.told
}

// rewind fetches all names as of the newest record and makes each epoch's tree
// of them. If the replica goes on to another epoch meanwhile, so does the
// listing: names are never removed, and later ones are left out.
func (w *walk) rewind(ctx context.Context, r *replica) error {
	back := archive.NewRewind(w.records[:w.upTo.Epoch])
	w.names = 0
	for now, at := w.upTo, []byte{}; at != nil; {
		pairs, next, err := w.list(ctx, r, now, at)
		if errors.Is(err, &wire.Error{Code: wire.CodeStaleHead}) {
			now, err = w.goOn(ctx, r, now)
			if err != nil {
				return err
			}
			continue
		}
		if err == nil {
			err = back.Add(pairs)
		}
		if err != nil {
			return err
		}
		at = next
		w.names = min(w.names+uint64(len(pairs)), w.upTo.Names)
		if w.o.Checked != nil {
			w.o.Checked(w.names, w.upTo.Names)
		}
	}
	return back.Check()
}

// goOn extends the chain to the epoch that the replica is at by now.
func (w *walk) goOn(ctx context.Context, r *replica, was archive.EpochRecord) (archive.EpochRecord, error) {
	v, err := w.attested(ctx, r)
	if err != nil {
		return v, err
	}
	if v.Epoch <= was.Epoch {
		return v, fmt.Errorf("its device is at epoch %d, whose names it does not list", v.Epoch)
	}
	upTo := w.upTo
	err = w.follow(ctx, r, v)
	w.upTo = upTo
	return v, err
}

// list returns the names from `from` on, proven complete under rec.
func (w *walk) list(ctx context.Context, r *replica, rec archive.EpochRecord, from []byte) (pairs []tree.Pair, next []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.c.Timeout)
	defer cancel()
	err = retry(ctx, func(ctx context.Context) error {
		proof, err := r.peer.ProofRange(ctx, rec.Head(), from, nil, morePages)
		if err != nil {
			return err
		}
		view, err := archive.VerifyProof(rec, proof)
		if err == nil {
			pairs, next, err = page(view, from, nil)
		}
		if err == nil && next != nil && len(pairs) < leastPage {
			err = fmt.Errorf("%w: page of %d names", wire.ErrSlow, len(pairs))
		}
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("names from %q on: %w", from, err)
	}
	return pairs, next, nil
}
