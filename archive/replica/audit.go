package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
	"github.com/bonafide-archive/bonafide/trust"
)

// AuditOptions say what an audit does.
type AuditOptions struct {
	// Repair fetches what is damaged from peers.
	Repair bool
	// Subset is the part of the contents to check. History and tree are
	// checked whole.
	Subset Subset
}

// Audit checks everything that the replica holds, from the disk: each record of
// history against its chain and certificate, the tree against the head that the
// replica's own MAS attests, each content against its digest. It tells emit of
// everything it finds, and with Repair fetches good copies from peers, which
// need not be trusted. It works on a replica that is not served; AuditServed
// asks one that is.
func Audit(ctx context.Context, c Config, o AuditOptions, emit func(Event)) (Report, error) {
	c, err := c.filled()
	if err != nil {
		return Report{}, err
	}
	store, err := OpenStore(c.StoreDir(), c.Roster)
	if err != nil {
		return Report{}, err
	}
	defer store.Close()
	peers := c.peers(nil)
	defer closeAll(peers)
	a := newAuditor(c, store, peers, o, emit)
	return a.run(ctx)
}

func closeAll(peers []*wire.Client) {
	for _, p := range peers {
		p.Close()
	}
}

// attest returns what the replica's MAS says now, verified like a peer's.
func (c Config) attest(ctx context.Context) (trust.Statement, error) {
	nonce, err := c.nonce()
	if err != nil {
		return trust.Statement{}, err
	}
	att, err := c.MAS.Lookup(ctx, nonce)
	if err != nil {
		return trust.Statement{}, fmt.Errorf("trusted device: %w", err)
	}
	st, err := c.Roster.VerifyAttested(archive.Attested{Replica: c.ID, Attestation: att}, nonce)
	if err != nil {
		return st, fmt.Errorf("trusted device: not the one in the roster: %w", err)
	}
	return st, nil
}

// heldEpoch returns the epoch and head that a statement vouches for. Epoch 0: the
// archive r has none yet as far as this device knows.
func heldEpoch(r *archive.Roster, st trust.Statement) (archive.Epoch, archive.Digest) {
	if archive.Digest(st.Slots.Archive) != r.ID() || st.Slots.Epoch == 0 {
		return 0, archive.Digest{}
	}
	return archive.Epoch(st.Slots.Epoch), archive.Digest(st.Slots.Head)
}

// auditor is one audit under way.
type auditor struct {
	Config
	store    *Store
	sources  []Source
	options  AuditOptions
	emit     func(Event)
	pace     *pace
	report   Report
	contents *contentRepair
	listed   listed
	pending  *Pending     // nil: not at hand
	renew    func() error // told when that is damaged
	shallow  bool         // contents: look for missing ones only
	resume   bool         // contents: begin where the audit before ended
	reopened func() error // told when the tree file was replaced
}

func newAuditor(c Config, store *Store, peers []*wire.Client, o AuditOptions, emit func(Event)) *auditor {
	a := &auditor{Config: c, store: store, options: o, emit: emit, pace: &pace{c.Share}}
	for _, p := range peers {
		a.sources = append(a.sources, p)
	}
	a.contents = newContentRepair(store, a.sources, c.Log)
	a.report.Replica, a.report.Subset = c.ID, o.Subset.String()
	return a
}

// run is the audit.
func (a *auditor) run(ctx context.Context) (Report, error) {
	st, err := a.attest(ctx)
	if err != nil {
		return a.report, fmt.Errorf("audit: %w", err)
	}
	a.report.Epoch, a.report.Head = heldEpoch(a.Roster, st)
	a.behind(ctx)
	if !a.shallow {
		a.store.contents.Reload()
	}
	if a.report.Epoch > 0 {
		err = a.all(ctx)
	}
	if err == nil && a.pending != nil {
		err = a.pendingContents(ctx)
	}
	if err == nil {
		err = a.checkListed(ctx)
	}
	if err == nil {
		err = a.tellLost(ctx)
	}
	if err != nil {
		return a.report, fmt.Errorf("audit: %w", err)
	}
	report := a.report
	a.tell(Event{Kind: EventReport, Report: &report})
	return report, ctx.Err()
}

// all looks at everything that the head vouches for.
func (a *auditor) all(ctx context.Context) error {
	rec, ok, err := a.history(ctx)
	if err != nil {
		return err
	}
	if !ok {
		return a.damage(ctx, Event{Part: PartTree, Detail: "cannot be checked without the record of the epoch"}, nil)
	}
	a.report.Root = archive.Digest(rec.Root)
	bad, err := a.tree(ctx, rec)
	if err != nil {
		return err
	}
	return a.boundContents(ctx, rec, bad)
}

func (a *auditor) tell(e Event) {
	e.Replica = a.ID
	if a.emit != nil {
		a.emit(e)
	}
}

// damage tells of something damaged, and tries to mend it by repair, unless that
// is nil or not wanted.
func (a *auditor) damage(ctx context.Context, e Event, repair func() error) error {
	e.Kind = EventDamage
	a.report.Damaged++
	a.tell(e)
	if repair == nil || !a.options.Repair {
		return ctx.Err()
	}
	return a.mended(ctx, e, repair())
}

// mended tells what a repair came to. It fails if the others need not be tried.
func (a *auditor) mended(ctx context.Context, e Event, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, ErrFull) {
		return err
	}
	e.Kind, e.Detail = EventRepaired, ""
	if err != nil {
		e.Kind, e.Detail = EventUnrepaired, err.Error()
	} else {
		a.report.Repaired++
	}
	a.tell(e)
	return nil
}

// behind tells whether peers prove a newer epoch than the own MAS attests. What
// is behind catches up in the next update phase; no repair can do that.
func (a *auditor) behind(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	var wg sync.WaitGroup
	newest := make([]archive.Epoch, len(a.sources))
	for i, src := range a.sources {
		wg.Go(func() { newest[i] = newestOf(ctx, a.Roster, src, a.report.Epoch) })
	}
	wg.Wait()
	for _, e := range newest {
		if e > a.report.Epoch {
			a.report.Behind = max(a.report.Behind, e-a.report.Epoch)
		}
	}
	if a.report.Behind > 0 {
		a.tell(Event{Kind: EventBehind, Epoch: a.report.Epoch + a.report.Behind,
			Detail: fmt.Sprintf("the trusted device attests epoch %d", a.report.Epoch)})
	}
}

// newestOf returns the newest epoch after e that a source proves.
func newestOf(ctx context.Context, r *archive.Roster, src Source, e archive.Epoch) archive.Epoch {
	all, err := src.History(ctx, e+1, wire.MaxHistory)
	if err != nil || len(all) == 0 {
		return 0
	}
	last := all[len(all)-1]
	rec, _, err := archive.VerifyRecord(r, []byte(last.Record), last.Certificate)
	if err != nil {
		return 0
	}
	return rec.Epoch
}

// history checks all records from the head down: each must have the digest that
// the one after it names. It returns the head's record, and whether there is
// one.
func (a *auditor) history(ctx context.Context) (head archive.EpochRecord, ok bool, err error) {
	want := a.report.Head
	for e := a.report.Epoch; e > 0; e-- {
		rec, err := a.record(ctx, e, want)
		if err != nil {
			return head, ok, err
		}
		a.report.Records++
		if rec == nil { // its digest is known, but not what it names before it
			return head, ok, a.lostHistory(ctx, e-1)
		}
		if e == a.report.Epoch {
			head, ok = *rec, true
		}
		want = rec.Previous
		a.progress(PartHistory, a.report.Records, uint64(a.report.Epoch), 256)
	}
	if ok && want != archive.Genesis(a.Roster).Head() {
		err = a.damage(ctx, Event{Part: PartHistory, Detail: "does not begin with this archive's roster"}, nil)
	}
	return head, ok, err
}

// record returns the record of an epoch, nil if there is none to be had.
func (a *auditor) record(ctx context.Context, e archive.Epoch, want archive.Digest) (*archive.EpochRecord, error) {
	start := time.Now()
	rec, err := heldRecord(a.store, e, want)
	if err == nil {
		return &rec, a.pace.took(ctx, time.Since(start))
	}
	var found *archive.EpochRecord
	err = a.damage(ctx, Event{Part: PartHistory, Epoch: e, Detail: err.Error()}, func() error {
		rec, _, err := repairRecord(ctx, a.store, e, want, a.sources, a.Timeout)
		if err == nil {
			found = &rec
		}
		return err
	})
	return found, err
}

// heldRecord returns the record of an epoch, provided that it is the one with
// the given head.
func heldRecord(store *Store, e archive.Epoch, head archive.Digest) (archive.EpochRecord, error) {
	rec, _, err := store.Record(e)
	if err == nil && rec.Head() != head {
		err = fmt.Errorf("epoch %d: %w: not the record that the one after it, or the trusted device, names", e, ErrDamaged)
	}
	return rec, err
}

// lostHistory tells that the records up to e cannot be checked, since one after
// them is lost.
func (a *auditor) lostHistory(ctx context.Context, e archive.Epoch) error {
	if e == 0 {
		return nil
	}
	return a.damage(ctx, Event{Part: PartHistory, Epoch: e, Detail: "this record and those before it cannot be checked"}, nil)
}

// tree checks the tree and returns the ranges that are wrong in the end.
func (a *auditor) tree(ctx context.Context, rec archive.EpochRecord) ([]span, error) {
	damages, err := auditTree(ctx, a.store, rec)
	if err != nil {
		return nil, err
	}
	a.report.Names = rec.Names
	a.progress(PartTree, rec.Names, rec.Names, 1)
	mended, err := a.mendTree(ctx, rec, damages)
	if err != nil || mended {
		return nil, err
	}
	return rowSpans(damages), nil
}

func auditTree(ctx context.Context, store *Store, rec archive.EpochRecord) ([]boltstore.Damage, error) {
	t, err := store.OpenTree(true)
	if errors.Is(err, ErrMissing) || errors.Is(err, boltstore.ErrDamaged) {
		return []boltstore.Damage{{Reason: err.Error()}}, nil
	}
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return t.Audit(ctx, rec.Root)
}

// mendTree tells of every damaged range, and then repairs them all at once.
func (a *auditor) mendTree(ctx context.Context, rec archive.EpochRecord, damages []boltstore.Damage) (ok bool, err error) {
	var mended error
	for i, d := range damages {
		e := Event{Part: PartTree, From: string(d.From), To: string(d.To), Detail: d.Reason}
		err := a.damage(ctx, e, func() error {
			if i == 0 {
				mended = a.repairTree(ctx, rec)
			}
			return mended
		})
		if err != nil {
			return false, err
		}
	}
	return a.options.Repair && mended == nil, nil
}

func (a *auditor) repairTree(ctx context.Context, rec archive.EpochRecord) error {
	if err := RepairTree(ctx, a.store, rec, treeSources(a.sources), a.Log); err != nil {
		return err
	}
	if a.reopened != nil {
		return a.reopened()
	}
	return nil
}

func treeSources(all []Source) []TreeSource {
	var out []TreeSource
	for _, s := range all {
		out = append(out, s)
	}
	return out
}

// boundContents lists the content of every entry of the tree, which has been
// checked, except in the ranges that are wrong. The rows are hashed again each
// time they are read: damage may appear while the audit runs.
func (a *auditor) boundContents(ctx context.Context, rec archive.EpochRecord, bad []span) error {
	return a.list(ctx, func(fn func(archive.Name, archive.Content) error) error {
		h := tree.NewHasher()
		err := a.entries(ctx, gaps(bad), h, fn)
		if err == nil && len(bad) == 0 && h.Root() != rec.Root {
			err = fmt.Errorf("%w: rows", ErrDamaged)
		}
		known := errors.Is(err, ErrDamaged) || errors.Is(err, ErrMissing) || errors.Is(err, boltstore.ErrDamaged)
		switch {
		case known && len(bad) > 0: // told of already
			return nil
		case known:
			e := Event{Part: PartTree, Detail: "damaged while the audit ran: " + err.Error()}
			return a.damage(ctx, e, func() error { return a.repairTree(ctx, rec) })
		}
		return err
	})
}

// entries calls fn for every entry in the spans, and h for its row.
func (a *auditor) entries(ctx context.Context, spans []span, h *tree.Hasher, fn func(archive.Name, archive.Content) error) error {
	t, err := a.store.OpenTree(true)
	if err != nil {
		return err
	}
	defer t.Close()
	for _, s := range spans {
		err := eachEntry(ctx, t, s, func(n archive.Name, e archive.Entry) error {
			if err := h.Add([]byte(n), e.Bytes()); err != nil {
				return fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			return fn(n, e.Content)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// gaps returns what lies between the spans, which are in order and do not touch.
func gaps(spans []span) []span {
	var out []span
	var from []byte
	for _, s := range spans {
		if len(s.from) > 0 {
			out = append(out, span{from, s.from})
		}
		if from = s.to; from == nil {
			return out
		}
	}
	return append(out, span{from, nil})
}

// progress tells of every step-th thing, and of the last.
func (a *auditor) progress(part string, done, total, step uint64) {
	if done%step == 0 || done == total {
		a.tell(Event{Kind: EventProgress, Part: part, Done: done, Total: total})
	}
}

// entryPage is how many entries are read off the tree at a time, so that what
// is done with them does not hold a transaction open.
const entryPage = 1024

// eachEntry calls fn with every entry of the tree in a range, in order.
func eachEntry(ctx context.Context, t *boltstore.Store, within span, fn func(archive.Name, archive.Entry) error) error {
	type row struct {
		name  archive.Name
		entry archive.Entry
	}
	for from := within.from; ; {
		var rows []row
		more := false
		err := t.Walk(ctx, from, func(name, val []byte) error {
			if within.to != nil && bytes.Compare(name, within.to) >= 0 {
				return errEnough
			}
			e, err := archive.ParseEntry(val)
			if err != nil {
				return fmt.Errorf("%q: %w: %w", name, ErrDamaged, err)
			}
			rows = append(rows, row{archive.Name(name), e})
			if more = len(rows) == entryPage; more {
				return errEnough
			}
			return nil
		})
		if err != nil && err != errEnough {
			return err
		}
		for _, x := range rows {
			if err := fn(x.name, x.entry); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		from = append([]byte(rows[len(rows)-1].name), 0)
	}
}

// logLimit is how many single damages an audit writes to the log. The report
// counts the rest.
const logLimit = 20

// logEvents returns an emit that logs what an operator should know.
func logEvents(log *slog.Logger) func(Event) {
	left := logLimit
	return func(e Event) {
		switch e.Kind {
		case EventDamage, EventUnrepaired:
			if left--; left >= 0 {
				log.Warn(e.Kind, "what", e.Subject(), "detail", e.Detail)
			}
		case EventBehind:
			log.Warn("behind the other replicas", "epoch", e.Epoch, "detail", e.Detail)
		case EventReport:
			if e.Report.Damaged > 0 {
				log.Warn("damage found", "items", e.Report.Damaged, "repaired", e.Report.Repaired)
			}
		}
	}
}
