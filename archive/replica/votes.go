package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/trust"
)

// ballot is a replica's vote on a record, or its word that it has the prepare
// certificate on disk.
type ballot struct {
	inst        [32]byte
	head        archive.Digest
	attestation trust.Attestation
	checked     bool // the attestation is good
}

// Bytes returns instance || head || attestation.
func (b ballot) Bytes() []byte {
	return append(append(slices.Clone(b.inst[:]), b.head[:]...), b.attestation...)
}

func parseBallot(b []byte) (v ballot, err error) {
	if len(b) < 64 || len(b) > 64+trust.MaxAttestation {
		return v, fmt.Errorf("ballot: %w: %d bytes", archive.ErrFormat, len(b))
	}
	return ballot{inst: [32]byte(b), head: archive.Digest(b[32:]), attestation: slices.Clone(b[64:])}, nil
}

// takeBallot keeps the first ballot of its kind from a peer. What it is worth
// shows when our own record is built.
func (a *attempt) takeBallot(x *peer, it item) error {
	b, err := parseBallot(it.payload)
	if err != nil || b.inst != a.inst {
		return err
	}
	a.know.update(func() {
		if all := a.ballots(it.kind); !contains(all, x.ID) {
			all[x.ID] = b
		}
	})
	return nil
}

func contains[V any](m map[uint32]V, id uint32) bool { _, ok := m[id]; return ok }

func (a *attempt) ballots(kind byte) map[uint32]ballot {
	switch kind {
	case itemPrepare:
		return a.prepares
	case itemReady:
		return a.readies
	}
	return a.commits
}

// tally returns the replicas whose ballots of a kind are for head, once check
// has found each attestation good, by ascending ID. It wants know.
func (a *attempt) tally(kind byte, head archive.Digest, check func(archive.Attested) error) (votes []archive.Attested) {
	all := a.ballots(kind)
	for _, id := range slices.Sorted(maps.Keys(all)) {
		b, v := all[id], archive.Attested{Replica: id, Attestation: all[id].attestation}
		if b.head != head {
			continue
		}
		if !b.checked {
			if err := check(v); err != nil {
				a.log.Warn("vote does not count", "peer", id, "err", err)
				delete(all, id)
				continue
			}
			b.checked = true
			all[id] = b
		}
		votes = append(votes, v)
	}
	return votes
}

// cast publishes our own ballot and counts it.
func (a *attempt) cast(kind byte, b ballot) {
	a.know.update(func() { a.ballots(kind)[a.ID] = b })
	a.board.publish(kind, b.Bytes())
}

// quorum waits for Q ballots of a kind.
func (a *attempt) quorum(ctx context.Context, kind byte, head archive.Digest, check func(archive.Attested) error) (votes []archive.Attested, err error) {
	q := a.Roster.Quorum()
	err = a.wait(ctx, func() (bool, error) {
		votes = a.tally(kind, head, check)
		return len(votes) >= q, nil
	})
	if err != nil {
		return nil, err
	}
	return votes[:q], nil
}

// certify prepares and commits rec with the others: 2f+1 attestations of either
// kind. The second make the epoch's certificate.
func (a *attempt) certify(ctx context.Context, rec archive.EpochRecord) (archive.Certificate, error) {
	cert, err := a.vote(ctx, rec)
	if errors.Is(err, errCertified) {
		if r, c, err := a.store.Record(rec.Epoch); err == nil && r.Head() == rec.Head() {
			return c, nil // the others were quicker
		}
	}
	return cert, err
}

func (a *attempt) vote(ctx context.Context, rec archive.EpochRecord) (cert archive.Certificate, err error) {
	began := time.Now()
	if err := a.prepare(ctx, rec); err != nil {
		return cert, fmt.Errorf("prepare: %w", err)
	}
	prepared, err := a.quorum(ctx, itemPrepare, rec.Head(), func(v archive.Attested) error {
		return archive.CheckPrepare(a.Roster, rec, a.tick, v)
	})
	if err != nil {
		return cert, fmt.Errorf("prepare: %w", err)
	}
	if err := a.ready(rec, prepared); err != nil {
		return cert, fmt.Errorf("keep prepare certificate: %w", err)
	}
	if _, err := a.quorum(ctx, itemReady, rec.Head(), func(archive.Attested) error { return nil }); err != nil {
		return cert, fmt.Errorf("prepare: %w", err)
	}
	a.step(StepPrepared, began, "head", rec.Head())
	began = time.Now()
	if err := a.commit(ctx, rec); err != nil {
		return cert, fmt.Errorf("commit: %w", err)
	}
	votes, err := a.quorum(ctx, itemCommit, rec.Head(), func(v archive.Attested) error {
		return archive.CheckCommit(a.Roster, rec, a.tick, v)
	})
	if err != nil {
		return cert, fmt.Errorf("commit: %w", err)
	}
	a.step(StepCommitted, began, "head", rec.Head())
	cert = archive.Certificate{Tick: a.tick, Votes: votes}
	return cert, cert.Verify(a.Roster, rec)
}

// prepare votes for rec: one record at a tick, whatever happens.
func (a *attempt) prepare(ctx context.Context, rec archive.EpochRecord) error {
	if err := a.durable("prepared record", func() error { return a.dir.once(fileRecord, rec.Bytes()) }); err != nil {
		return err
	}
	att, err := a.MAS.Lookup(ctx, archive.PrepareNonce(rec.InstanceAt(a.tick), rec.Head()))
	if err != nil {
		return err
	}
	if err := archive.CheckPrepare(a.Roster, rec, a.tick, archive.Attested{Replica: a.ID, Attestation: att}); err != nil {
		return err
	}
	a.cast(itemPrepare, ballot{inst: a.inst, head: rec.Head(), attestation: att})
	return nil
}

// ready puts the prepare certificate on the disk, with the block that first
// built the record, and says so.
func (a *attempt) ready(rec archive.EpochRecord, votes []archive.Attested) error {
	block, err := a.dir.read(fileBlock)
	if err != nil {
		return err
	}
	b, err := consensus.ParseBlock(block)
	if err != nil {
		return err
	}
	if b.Carried != nil {
		block = b.Carried.Block
	}
	c := consensus.Carried{Tick: a.tick, Record: rec.Bytes(), Block: block}
	for _, v := range votes {
		c.Prepare = append(c.Prepare, consensus.Attested{Replica: v.Replica, Attestation: v.Attestation})
	}
	if _, err := checkCarried(a.Roster, a.base, c); err != nil {
		return err
	}
	if err := a.durable("prepare certificate", func() error { return a.dir.write(filePrepare, c.Bytes()) }); err != nil {
		return err
	}
	a.cast(itemReady, ballot{inst: a.inst, head: rec.Head()})
	return nil
}

// commit stores rec as committed, never over another record at the same tick or
// a later one, and attests to it.
func (a *attempt) commit(ctx context.Context, rec archive.EpochRecord) error {
	st, err := a.look(ctx)
	if err != nil {
		return err
	}
	vote := trust.Vote{Epoch: uint64(rec.Epoch), Tick: a.tick, Record: rec.Head()}
	if v, ok := committedAfter(a.base, st); ok && v.Tick >= a.tick && v != vote {
		return fmt.Errorf("another record is committed at tick %d", v.Tick)
	}
	slots := st.Slots
	slots.Committed = vote
	if !holdsHead(slots, a.base) || slots.Tick != a.tick {
		return errors.New("slots have moved on")
	}
	if err := a.durable("commit", func() error { return a.storeSlots(ctx, slots) }); err != nil {
		return err
	}
	att, err := a.MAS.Lookup(ctx, archive.CommitNonce(rec.InstanceAt(a.tick), rec.Head()))
	if err != nil {
		return err
	}
	if err := archive.CheckCommit(a.Roster, rec, a.tick, archive.Attested{Replica: a.ID, Attestation: att}); err != nil {
		return err
	}
	a.cast(itemCommit, ballot{inst: a.inst, head: rec.Head(), attestation: att})
	return nil
}

// advance is the point of commitment: certificate on disk, head stored, counter
// advanced, device locked.
func (p *phase) advance(ctx context.Context, rec archive.EpochRecord, cert archive.Certificate) error {
	began := time.Now()
	if err := p.putRecord(rec, cert); err != nil {
		return err
	}
	p.publishCertificate(rec, cert)
	p.last = true
	if err := p.storeHead(ctx, rec); err != nil {
		return err
	}
	p.step(StepStored, began, "epoch", rec.Epoch, "head", rec.Head())
	return p.lock(ctx)
}

// publishCertificate says that we hold the certificate, and shows it.
func (p *phase) publishCertificate(rec archive.EpochRecord, cert archive.Certificate) {
	record := rec.Bytes()
	b := binary.BigEndian.AppendUint32(nil, uint32(len(record)))
	b = append(append(b, record...), cert.Bytes()...)
	p.board.publish(itemCertificate, b)
}

// linger serves peers until each of the given replicas holds the certificate,
// or the linger limit.
func (a *attempt) linger(ctx context.Context, rec archive.EpochRecord, joined []uint32) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, a.Roster.Limits.Linger.Std())
	defer cancel()
	a.know.update(func() { a.lingering = true })
	err := a.each(ctx, joined, func(id uint32) bool { return a.holds[id] >= rec.Epoch })
	a.farewell(ctx, joined)
	a.step(StepLingered, began, "all", err == nil)
	a.dropPhaseData(rec.Epoch)
}

// dropPhaseData removes what attempts have left that were made to have an epoch up to
// e, which is our head now.
func (p *phase) dropPhaseData(e archive.Epoch) {
	if err := p.durable("phase data dropped", func() error { return p.dir.drop(e) }); err != nil {
		p.log.Warn("remove phase data", "err", err)
	}
}

// farewellTime bounds how long a replica that has seen that all others hold the
// certificate stays for them to see the same of it.
const farewellTime = time.Second

// farewell gives others the time to read all of our board: who has missed the end
// of it would linger for us in vain.
func (a *attempt) farewell(ctx context.Context, joined []uint32) {
	ctx, cancel := context.WithTimeout(ctx, farewellTime)
	defer cancel()
	n := a.board.size()
	a.each(ctx, joined, func(id uint32) bool { return a.read[id] >= n })
}

// each waits until ok, called under know, says so of each of the given replicas but
// this one.
func (a *attempt) each(ctx context.Context, ids []uint32, ok func(id uint32) bool) error {
	return a.know.wait(ctx, func() (bool, error) {
		for _, id := range ids {
			if id != a.ID && !ok(id) {
				return false, nil
			}
		}
		return true, nil
	})
}
