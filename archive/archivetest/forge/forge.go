// Package forge makes whole archives in memory for tests: with every key in
// hand it writes any record, certificate or answer that a test wants, true or
// false, and the same bytes each time.
package forge

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

// Start is when the archives that New makes were created.
var Start = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

// Options say what an archive is like. The zero Options are a good trial.
type Options struct {
	Seed     string           // of all keys
	F        int              // 1 if zero
	Schedule archive.Schedule // "0 */6 * * *" if empty
	// Addresses of the services, by replica; made up if nil.
	Addresses []string
	Prefixes  []string // of the writer
}

// World is an archive and all its secrets. mu guards what changes, Epochs and
// Counts, for replicas that answer while it advances.
type World struct {
	mu sync.Mutex

	Roster   *archive.Roster
	Writer   ed25519.PrivateKey
	Stranger ed25519.PrivateKey // not in the roster
	Epochs   []Epoch            // by number; the first is genesis
	Counts   map[uint32]trust.Counts

	seed string
}

// Epoch is one state of the archive.
type Epoch struct {
	Record      archive.EpochRecord
	Certificate archive.Certificate
	Tree        *tree.Memory
}

// New makes an archive of 3f+1 replicas with software devices, at epoch 0.
func New(o Options) *World {
	w := &World{seed: o.Seed, Counts: make(map[uint32]trust.Counts)}
	if o.F == 0 {
		o.F = 1
	}
	if o.Schedule == "" {
		o.Schedule = "0 */6 * * *"
	}
	w.Writer, w.Stranger = w.Key("writer", 0), w.Key("stranger", 0)
	var replicas []archive.Replica
	for i := range 3*o.F + 1 {
		replicas = append(replicas, w.replica(uint32(i+1), o.Addresses))
		w.Counts[uint32(i+1)] = trust.Counts{Reset: 1}
	}
	writers := []archive.Writer{{Key: public(w.Writer), Prefixes: append([]string{}, o.Prefixes...), Names: 1000, Bytes: 1 << 30}}
	r, err := archive.NewRoster("test", Start, o.Schedule, archive.DefaultLimits(), replicas, writers, nil)
	must(err)
	w.Roster = r
	w.Epochs = []Epoch{{Record: archive.Genesis(r), Tree: new(tree.Memory)}}
	return w
}

func (w *World) replica(id uint32, addresses []string) archive.Replica {
	address := fmt.Sprintf("127.0.0.1:%d", 20000+id)
	if addresses != nil {
		address = addresses[id-1]
	}
	spki, err := x509.MarshalPKIXPublicKey(w.Key("tls", id).Public())
	must(err)
	return archive.Replica{
		ID: id, Address: address, Agreement: fmt.Sprintf("127.0.0.1:%d", 21000+id),
		TLS: archive.DigestOf(spki), Key: public(w.Key("agreement", id)),
		MAS: trust.Identity{Profile: trust.ProfileSoftware, Key: public(w.Key("mas", id))},
	}
}

func public(k ed25519.PrivateKey) archive.PublicKey {
	return archive.PublicKey(k.Public().(ed25519.PublicKey))
}

// Key returns a secret of the archive: "tls", "agreement" or "mas" of a replica.
func (w *World) Key(what string, id uint32) ed25519.PrivateKey {
	seed := sha256.Sum256(fmt.Appendf(nil, "bonafide test key %s %s %d", w.seed, what, id))
	return ed25519.NewKeyFromSeed(seed[:])
}

// Newest returns the newest epoch.
func (w *World) Newest() Epoch { return w.Ago(0) }

// Ago returns the epoch that was the newest n epochs ago.
func (w *World) Ago(n int) Epoch {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Epochs[len(w.Epochs)-1-n]
}

// CountsOf returns the counts of a replica's device.
func (w *World) CountsOf(id uint32) trust.Counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Counts[id]
}

// SetCounts changes the counts of a replica's device.
func (w *World) SetCounts(id uint32, c trust.Counts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Counts[id] = c
}

// IDs returns the replicas, ascending.
func (w *World) IDs() []uint32 {
	var ids []uint32
	for _, m := range w.Roster.Replicas {
		ids = append(ids, m.ID)
	}
	return ids
}

// Bind returns the binding of a name to some bytes.
func Bind(n archive.Name, content string) archive.Binding {
	h := archive.NewContentHasher()
	h.Write([]byte(content))
	return archive.Binding{Name: n, Content: h.Content()}
}

// Advance makes the next epoch at the given time: the joined replicas (nil: all)
// are reset, and the bindings bound by the writer.
func (w *World) Advance(at time.Time, joined []uint32, bindings ...archive.Binding) Epoch {
	if joined == nil {
		joined = w.IDs()
	}
	for _, id := range joined {
		w.Disturb(id)
	}
	e := w.Fork(at, joined, bindings...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Epochs = append(w.Epochs, e)
	return e
}

// Disturb resets a replica's device.
func (w *World) Disturb(id uint32) {
	c := w.CountsOf(id)
	c.Reset++
	w.SetCounts(id, c)
}

// Fork makes an epoch after the newest, as Advance does, but does not keep it.
func (w *World) Fork(at time.Time, joined []uint32, bindings ...archive.Binding) Epoch {
	last := w.Newest()
	number := last.Record.Epoch + 1
	t := new(tree.Memory)
	for _, p := range last.Tree.Pairs() {
		must(t.Put(p.Name, p.Val))
	}
	for _, b := range bindings {
		e := archive.Entry{Content: b.Content, Writer: archive.KeyIDOf(w.Writer.Public().(ed25519.PublicKey)), Epoch: number}
		must(t.Put([]byte(b.Name), e.Bytes()))
	}
	rec := archive.EpochRecord{
		Archive: w.Roster.ID(), Epoch: number, Tick: 1, Time: at, Roster: w.Roster.ID(),
		Previous: last.Record.Head(), Root: t.Root(), Names: t.Count(),
		Block: archive.DigestOf(fmt.Appendf(nil, "block %d", number)), Joined: joined,
	}
	for _, c := range last.Record.Counts {
		if slices.Contains(joined, c.Replica) {
			c.Counts = w.CountsOf(c.Replica)
		}
		rec.Counts = append(rec.Counts, c)
	}
	return Epoch{rec, w.Certify(rec, 1, w.IDs()[:w.Roster.Quorum()]...), t}
}

// Slots returns what a device holds that has rec as its head.
func (w *World) Slots(rec archive.EpochRecord) trust.Slots {
	return trust.Slots{
		Head: rec.Head(), Epoch: uint64(rec.Epoch), Archive: w.Roster.ID(),
		Committed: trust.Vote{Epoch: uint64(rec.Epoch), Tick: rec.Tick, Record: rec.Head()},
	}
}

// Certify makes the certificate of rec at tick by the given voters.
func (w *World) Certify(rec archive.EpochRecord, tick uint64, voters ...uint32) archive.Certificate {
	c := archive.Certificate{Tick: tick}
	for _, id := range voters {
		c.Votes = append(c.Votes, archive.Attested{Replica: id, Attestation: w.Commit(rec, tick, id)})
	}
	return c
}

// Commit makes a replica's vote to commit rec at tick.
func (w *World) Commit(rec archive.EpochRecord, tick uint64, id uint32) trust.Attestation {
	return w.Attest(id, archive.CommitNonce(rec.InstanceAt(tick), rec.Head()), w.CommitStatement(rec, tick, id))
}

// CommitStatement is what such a vote says of the device.
func (w *World) CommitStatement(rec archive.EpochRecord, tick uint64, id uint32) trust.Statement {
	return trust.Statement{
		Mode: trust.ModeUpdate, Counter: uint64(rec.Epoch) - 1, Clock: uint64(rec.Epoch) * 1000,
		Counts: w.CountsOf(id), Safe: true,
		Slots: trust.Slots{
			Head: rec.Previous, Epoch: uint64(rec.Epoch) - 1, Tick: tick, Boot: w.CountsOf(id), Archive: w.Roster.ID(),
			Committed: trust.Vote{Epoch: uint64(rec.Epoch), Tick: tick, Record: rec.Head()},
		},
	}
}

// ServiceStatement is what a device says in the service phase after rec.
func (w *World) ServiceStatement(rec archive.EpochRecord, id uint32) trust.Statement {
	return trust.Statement{
		Mode: trust.ModeService, Slots: w.Slots(rec), Counter: uint64(rec.Epoch),
		Clock: uint64(rec.Epoch)*1000 + 500, Counts: w.CountsOf(id), Safe: true,
	}
}

// Attest makes the replica's device say st in answer to n.
func (w *World) Attest(id uint32, n trust.Nonce, st trust.Statement) trust.Attestation {
	return trust.EncodeSoftware(w.Key("mas", id), st, n)
}

// Answer makes a replica's answer at epoch e with the given proof.
func (w *World) Answer(id uint32, e Epoch, n trust.Nonce, p tree.Proof) archive.Answer {
	return archive.NewAnswer(id, e.Record, e.Certificate, w.Attest(id, n, w.ServiceStatement(e.Record, id)), p)
}

// Verified returns the answers of the given replicas on a name, verified.
func (w *World) Verified(e Epoch, n trust.Nonce, name archive.Name, ids ...uint32) []*archive.Verified {
	var vs []*archive.Verified
	for _, id := range ids {
		v, err := w.Answer(id, e, n, e.Tree.Prove([]byte(name))).Verify(w.Roster, id, n)
		must(err)
		vs = append(vs, v)
	}
	return vs
}

// Receipt returns the receipt of a name as of e, attested by the given replicas.
func (w *World) Receipt(e Epoch, n trust.Nonce, name archive.Name, ids ...uint32) archive.Receipt {
	return archive.NewReceipt(name, n, w.Verified(e, n, name, ids...))
}

// Submission returns a signed submission of the bindings.
func (w *World) Submission(at time.Time, bindings ...archive.Binding) archive.Submission {
	bindings = slices.Clone(bindings)
	slices.SortFunc(bindings, func(a, b archive.Binding) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	s := archive.Submission{Archive: w.Roster.ID(), Created: at, Bindings: bindings}
	s.Sign(w.Writer)
	return s
}

func must(err error) {
	if err != nil {
		panic("forge: " + err.Error())
	}
}
