// Package archivetest makes archives for tests: replicas with keys, devices and
// directories, epochs certified without an update phase, and real processes of
// the program under test, also in a network of their own.
//
// Its own tests have such processes killed, stopped, lied to and impersonated, take
// their disks, writes and devices away (TestKills, TestStopped, TestFullDisk,
// TestEveryWrite, TestSwtpmFaults and others), and break the network between them:
// TestNetworkFaults cuts it in parts, one way or both, loses packets and slows
// links. Those that need more than Go skip where it is missing, with the reason,
// or fail where one of BONAFIDE_REQUIRE_SWTPM, _STRACE, _MOUNT and _NETNS is set.
package archivetest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/content"
	"github.com/bonafide-archive/bonafide/archive/disk"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/soft"
)

// Archive is an archive of software replicas in a test's directories.
type Archive struct {
	Roster   *archive.Roster
	Replicas []*Replica         // by ascending ID, from 1
	Writer   ed25519.PrivateKey // may write all names
	Time     time.Time          // of the next epoch that Certify makes; zero: now

	Record      archive.EpochRecord // the newest
	Certificate archive.Certificate // its
	history     []wire.SignedRecord // of all epochs, from 1
	pairs       map[string][]byte   // the tree's
	contents    map[archive.Digest][]byte
}

// Replica is a member of an Archive, with all its keys.
type Replica struct {
	archive.Replica
	Dir          string
	MAS          *soft.MAS
	ServiceKey   ed25519.PrivateKey
	AgreementKey ed25519.PrivateKey
}

// NewRoster makes an archive of n replicas with software devices, each in a
// directory of its own with mas/ and store/, on free loopback ports. edit may
// change the roster before it is checked and its ID is taken.
func NewRoster(t testing.TB, n int, edit ...func(*archive.Roster)) *Archive {
	t.Helper()
	a := &Archive{Writer: newKey(t), pairs: map[string][]byte{}, contents: map[archive.Digest][]byte{}}
	var members []archive.Replica
	for i := range n {
		r := newReplica(t, uint32(i+1))
		a.Replicas = append(a.Replicas, r)
		members = append(members, r.Replica)
	}
	w := archive.Writer{Key: archive.PublicKey(a.Writer.Public().(ed25519.PublicKey)), Names: 1 << 20, Bytes: 1 << 40}
	r, err := archive.NewRoster("test", time.Now(), "@every 1h", archive.TrialLimits(time.Minute), members, []archive.Writer{w}, nil)
	if err != nil {
		t.Fatalf("make roster: %v", err)
	}
	for _, f := range edit {
		f(r)
	}
	if err := r.Check(); err != nil {
		t.Fatalf("edited roster: %v", err)
	}
	a.Roster, a.Record = r, archive.Genesis(r)
	return a
}

func newReplica(t testing.TB, id uint32) *Replica {
	t.Helper()
	r := &Replica{Dir: t.TempDir(), ServiceKey: newKey(t)}
	mas := filepath.Join(r.Dir, "mas")
	identity, agreement, err := soft.Provision(mas, rand.Reader)
	if err == nil {
		r.MAS, err = soft.Open(mas)
	}
	if err == nil {
		r.AgreementKey, err = r.MAS.AgreementKey(t.Context())
	}
	if err != nil {
		t.Fatalf("provision replica %d: %v", id, err)
	}
	r.Replica = archive.Replica{
		ID: id, Address: FreeAddress(t), Agreement: FreeAddress(t),
		TLS: wire.KeyPin(r.ServiceKey.Public().(ed25519.PublicKey)),
		Key: archive.PublicKey(agreement), MAS: identity,
	}
	return r
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// FreeAddress returns a loopback address that nobody listens on: see Ports.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", Ports(t, 1))
}

// Submission returns the writer's signed submission that binds each name to
// the given bytes.
func (a *Archive) Submission(created time.Time, files map[archive.Name][]byte) archive.Submission {
	s := archive.Submission{Archive: a.Roster.ID(), Created: created.UTC().Truncate(time.Second)}
	for n, b := range files {
		s.Bindings = append(s.Bindings, archive.Binding{Name: n, Content: ContentOf(b)})
	}
	slices.SortFunc(s.Bindings, func(x, y archive.Binding) int { return cmp.Compare(x.Name, y.Name) })
	s.Sign(a.Writer)
	return s
}

// ContentOf describes b.
func ContentOf(b []byte) archive.Content {
	h := archive.NewContentHasher()
	h.Write(b)
	return h.Content()
}

// Certify makes the next epoch bind each name to the given bytes, with the
// devices themselves, as an update phase would: all replicas but the absent
// ones join, vote, store the head, the tree, the record and the contents, and
// lock. The absent ones stay as they are.
func (a *Archive) Certify(t testing.TB, files map[archive.Name][]byte, absent ...uint32) archive.EpochRecord {
	t.Helper()
	rec := a.CertifyBare(t, files, absent...)
	for _, r := range a.present(absent) {
		a.Fill(t, r)
	}
	return rec
}

// CertifyBare is Certify by the devices alone: the stores stay as they are, for
// Fill to bring to the newest of many epochs.
func (a *Archive) CertifyBare(t testing.TB, files map[archive.Name][]byte, absent ...uint32) archive.EpochRecord {
	t.Helper()
	rec := a.next(t, files, absent)
	cert := archive.Certificate{Tick: rec.Tick}
	for _, r := range a.present(absent) {
		vote := r.commit(t, rec)
		if len(cert.Votes) < a.Roster.Quorum() {
			cert.Votes = append(cert.Votes, vote)
		}
	}
	if err := cert.Verify(a.Roster, rec); err != nil {
		t.Fatalf("fabricated certificate: %v", err)
	}
	a.Record, a.Certificate = rec, cert
	a.history = append(a.history, wire.SignedRecord{Record: string(rec.Bytes()), Certificate: cert.Bytes()})
	for _, r := range a.present(absent) {
		r.storeHead(t, rec)
	}
	return rec
}

func (a *Archive) present(absent []uint32) []*Replica {
	return slices.DeleteFunc(slices.Clone(a.Replicas), func(r *Replica) bool { return slices.Contains(absent, r.ID) })
}

// next resets the devices and returns the record to certify.
func (a *Archive) next(t testing.TB, files map[archive.Name][]byte, absent []uint32) archive.EpochRecord {
	t.Helper()
	rec := a.Record
	rec.Previous, rec.Epoch, rec.Tick = a.Record.Head(), rec.Epoch+1, 1
	rec.Time = cmp.Or(a.Time, time.Now()).UTC().Truncate(time.Second)
	rec.Block = archive.DigestOf([]byte(fmt.Sprint("block ", rec.Epoch)))
	for n, b := range files {
		c := ContentOf(b)
		e := archive.Entry{Content: c, Writer: archive.KeyIDOf(a.Writer.Public().(ed25519.PublicKey)), Epoch: rec.Epoch}
		a.pairs[string(n)], a.contents[c.Digest] = e.Bytes(), b
	}
	h := tree.NewHasher()
	for _, p := range a.Pairs() {
		if err := h.Add(p.Name, p.Val); err != nil {
			t.Fatal(err)
		}
	}
	rec.Root, rec.Names, rec.Joined = h.Root(), h.Count(), nil
	rec.Counts = slices.Clone(rec.Counts)
	for _, r := range a.present(absent) {
		rec.Joined = append(rec.Joined, r.ID)
		rec.Counts[r.ID-1].Counts = r.reset(t)
	}
	return rec
}

// History returns all records and certificates, from epoch 1.
func (a *Archive) History() []wire.SignedRecord { return a.history }

// Pairs returns the rows of the newest tree, in order.
func (a *Archive) Pairs() []tree.Pair {
	var all []tree.Pair
	for _, n := range slices.Sorted(maps.Keys(a.pairs)) {
		all = append(all, tree.Pair{Name: []byte(n), Val: a.pairs[n]})
	}
	return all
}

// reset resets the device and returns its new counts.
func (r *Replica) reset(t testing.TB) trust.Counts {
	t.Helper()
	if err := soft.Reset(filepath.Join(r.Dir, "mas")); err != nil {
		t.Fatal(err)
	}
	return r.Statement(t).Counts
}

// Statement returns what the replica's device attests now.
func (r *Replica) Statement(t testing.TB) trust.Statement {
	t.Helper()
	nonce := trust.Nonce{1}
	att, err := r.MAS.Lookup(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	st, err := r.Replica.MAS.Verify(att, nonce)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// commit stores the vote for rec and returns it.
func (r *Replica) commit(t testing.TB, rec archive.EpochRecord) archive.Attested {
	t.Helper()
	st := r.Statement(t)
	slots := st.Slots
	slots.Archive, slots.Tick, slots.Boot = rec.Archive, rec.Tick, st.Counts
	slots.Head, slots.Epoch = rec.Previous, uint64(rec.Epoch)-1
	slots.Committed = trust.Vote{Epoch: uint64(rec.Epoch), Tick: rec.Tick, Record: rec.Head()}
	for n := st.Counter; n < slots.Epoch; n++ { // it was absent before: it catches up
		must(t, r.MAS.Advance(t.Context()))
	}
	must(t, r.MAS.Store(t.Context(), slots))
	att, err := r.MAS.Lookup(t.Context(), archive.CommitNonce(rec.InstanceAt(rec.Tick), rec.Head()))
	must(t, err)
	return archive.Attested{Replica: r.ID, Attestation: att}
}

// storeHead makes rec the head, and locks.
func (r *Replica) storeHead(t testing.TB, rec archive.EpochRecord) {
	t.Helper()
	slots := trust.Slots{Archive: rec.Archive, Head: rec.Head(), Epoch: uint64(rec.Epoch), Boot: r.Statement(t).Counts}
	must(t, r.MAS.Store(t.Context(), slots))
	must(t, r.MAS.Advance(t.Context()))
	must(t, r.MAS.Lock(t.Context()))
}

// Fill writes the history, the newest tree and all contents into the replica's
// store, in place of what is there.
func (a *Archive) Fill(t testing.TB, r *Replica) {
	t.Helper()
	store := filepath.Join(r.Dir, "store")
	for i, h := range a.history {
		path := filepath.Join(store, "history", fmt.Sprintf("%020d", i+1))
		writeFile(t, path+".record", []byte(h.Record))
		writeFile(t, path+".certificate", h.Certificate)
	}
	for d, b := range a.contents {
		writeFile(t, ContentPath(r.Dir, d), b)
	}
	rows := func(yield func(tree.Pair, error) bool) {
		for _, p := range a.Pairs() {
			if !yield(p, nil) {
				return
			}
		}
	}
	_, _, err := boltstore.Build(context.Background(), filepath.Join(store, "tree.db"), rows, &a.Record.Root)
	must(t, err)
}

// Pack packs the small contents of a replica that is not served, as they are
// when they come by upload. Fill writes them as files.
func (a *Archive) Pack(t testing.TB, r *Replica) {
	t.Helper()
	s := content.Open(disk.Root(filepath.Join(r.Dir, "store")))
	defer s.Close()
	var all []content.Bytes
	for d, b := range a.contents {
		if len(b) <= content.Small {
			all = append(all, content.Bytes{Digest: d, Bytes: b})
		}
	}
	slices.SortFunc(all, func(x, y content.Bytes) int { return bytes.Compare(x.Digest[:], y.Digest[:]) })
	_, err := s.PutAll(all)
	must(t, err)
}

// ReadContent returns what a replica keeps as a content in its directory.
func ReadContent(dir string, d archive.Digest) ([]byte, error) {
	s := content.Open(disk.Root(filepath.Join(dir, "store")))
	r, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// PackPath returns where the first pack of small contents lies in a replica's
// directory.
func PackPath(dir string) string { return filepath.Join(dir, "store", "packs", "00000000.tar") }

// ContentPath returns where a content that is a file of its own lies in a
// replica's directory. Small ones are such files only as Fill writes them.
func ContentPath(dir string, d archive.Digest) string {
	h := d.String()
	return filepath.Join(dir, "store", "content", h[:2], h)
}

func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(t, os.WriteFile(path, b, 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
