package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

// device makes sure that our device is in update mode and the one that the
// roster names, and reads the agreement key.
func (p *phase) device(ctx context.Context) error {
	st, err := p.look(ctx)
	if err != nil {
		return err
	}
	if st.Mode != trust.ModeUpdate {
		return ErrLocked
	}
	p.statement = st
	key, err := p.MAS.AgreementKey(ctx)
	if err != nil {
		return err
	}
	m, _ := p.Roster.Replica(p.ID)
	if !ed25519Public(m.Key).Equal(key.Public()) {
		return fmt.Errorf("%w: the device holds another agreement key", archive.ErrRoster)
	}
	_ = unix.Mlock(key) // where that is allowed: the heap is not moved, but may be swapped
	p.key = key
	return nil
}

// look asks our own device how it stands.
func (p *phase) look(ctx context.Context) (st trust.Statement, err error) {
	n, err := p.nonce()
	if err != nil {
		return st, err
	}
	att, err := p.MAS.Lookup(ctx, n)
	if err != nil {
		return st, err
	}
	if st, err = p.Roster.VerifyAttested(archive.Attested{Replica: p.ID, Attestation: att}, n); err != nil {
		return st, fmt.Errorf("own device: %w", err)
	}
	return st, nil
}

// deviceTime bounds a device operation that must not be left half done.
const deviceTime = 30 * time.Second

// storeSlots writes the slots and reads back what they have become. It is not
// cut off by ctx: nobody could say then what was stored.
func (p *phase) storeSlots(ctx context.Context, s trust.Slots) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deviceTime)
	defer cancel()
	if err := p.MAS.Store(ctx, s); err != nil {
		return err
	}
	return p.lookAgain(ctx)
}

func (p *phase) lookAgain(ctx context.Context) error {
	st, err := p.look(ctx)
	if err == nil {
		p.know.update(func() { p.statement = st })
	}
	return err
}

// open finds the record that head names and makes sure that the tree on disk
// gives its root: all of it, from the rows. A head that names no certified
// record leaves open what we build on until peers have been heard.
func (p *phase) open(ctx context.Context) error {
	began := time.Now()
	p.newest = p.newestHeld()
	p.base = p.newest
	if held, ok := p.named(); ok {
		p.base = held
		if err := p.catchUp(ctx); err != nil {
			return err
		}
	} else {
		p.log.Warn("the head names no certified record; asking the peers", "epoch", p.statement.Slots.Epoch)
	}
	p.know.update(func() { p.inDoubt = p.doubt(); p.opened = true })
	p.step(StepOpened, began, "epoch", p.base.Epoch, "root", archive.Digest(p.base.Root))
	return nil
}

// named returns the certified record that our head names. A fresh device stands
// at epoch 0.
func (p *phase) named() (archive.EpochRecord, bool) {
	slots := p.statement.Slots
	if (slots == trust.Slots{}) {
		return archive.Genesis(p.Roster), true
	}
	if archive.Digest(slots.Archive) != p.id {
		p.log.Warn("the device holds slots of another archive; they will be overwritten", "archive", archive.Digest(slots.Archive))
		return archive.EpochRecord{}, false
	}
	rec, _, err := p.store.Record(archive.Epoch(slots.Epoch))
	return rec, err == nil && holdsHead(slots, rec)
}

// newestHeld returns the newest record on our disk that is certified, looking
// upwards from where the device is.
func (p *phase) newestHeld() archive.EpochRecord {
	newest := archive.Genesis(p.Roster)
	for _, e := range []archive.Epoch{archive.Epoch(p.statement.Slots.Epoch), archive.Epoch(p.statement.Counter), p.store.Newest()} {
		rec, _, err := p.store.Record(e)
		for ; err == nil && rec.Epoch > newest.Epoch; rec, _, err = p.store.Record(newest.Epoch + 1) {
			newest = rec
		}
	}
	return newest
}

// doubt says whether our device cannot vote on top of base.
func (p *phase) doubt() bool { return !buildsOn(p.statement, p.base) }

// publishBase tells the peers what we build on.
func (p *phase) publishBase() {
	head := p.base.Head()
	b := binary.BigEndian.AppendUint64(nil, uint64(p.base.Epoch))
	p.board.publish(itemBase, append(b, head[:]...))
}

// history serves peers what they need to catch up.
func (p *phase) history() http.Handler { return PeerHandler(p.store, p.trees, p.log) }

// lender lends the tree of our head to peers, except while it is being written.
type lender struct {
	store *Store
	mu    sync.RWMutex // held for writing while the tree is written
	rec   archive.EpochRecord
	cert  archive.Certificate
	good  bool // the tree on disk is that of rec
}

var errNotNow = wire.Errorf(wire.CodeUnavailable, "the tree is being updated")

// Lend implements Trees.
func (l *lender) Lend() (*Lent, func(), error) {
	if !l.mu.TryRLock() {
		return nil, nil, errNotNow
	}
	if !l.good {
		l.mu.RUnlock()
		return nil, nil, errNotNow
	}
	t, err := l.store.OpenTree(true)
	if err != nil {
		l.mu.RUnlock()
		return nil, nil, errNotNow
	}
	lent := &Lent{Tree: t, Record: l.rec, Certificate: l.cert, Head: l.rec.Head()}
	return lent, func() { t.Close(); l.mu.RUnlock() }, nil
}

// exclusive runs f, which may write the tree, while nobody has it. What is there
// afterwards is lent no more until offer.
func (l *lender) exclusive(f func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.good = false
	return f()
}

// withdraw says that the tree on disk is about to change.
func (l *lender) withdraw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.good = false
}

// offers reports whether the tree on disk is that of rec.
func (l *lender) offers(rec archive.EpochRecord) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.good && l.rec.Head() == rec.Head()
}

// offer says that the tree on disk is that of rec.
func (l *lender) offer(rec archive.EpochRecord) {
	_, cert, err := l.store.Record(rec.Epoch)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec, l.cert, l.good = rec, cert, err == nil
}

var errBurnt = errors.New("the device is ahead of every epoch whose certificate is here")
