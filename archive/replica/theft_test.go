package replica

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/trust"
)

// A thief has all files and the agreement keys of all replicas, holds the
// addresses of all but one, and owns the device of one more, of another replica in
// each of several phases. He greets, and shows a forged record on top of what he
// has stolen. Its certificate has the true vote of the device that he owns, the
// true ones that he was given by those he owned before, and votes of devices of
// his own. The last replica adopts none; between his phases the archive goes on.
func TestThiefOnTheNetwork(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	_, own, err := ed25519.GenerateKey(nil)
	must(t, err)
	th := &thief{cluster: c, own: own, votes: make(map[uint32]trust.Attestation)}
	for e := range archive.Epoch(3) {
		th.device = uint32(2 + e)
		c.reset(1, th.device)
		th.steal(t, e)
		th.play(t, e)
		c.add(c.files(2, fmt.Sprint("after theft ", e)), c.all()...)
		c.phase(t.Context(), c.all()...)
		rec := c.agreed(e+1, c.all()...)
		if rec.Previous != th.before.Head() || rec.Head() == th.forged.Head() {
			t.Fatalf("epoch %d is the thief's: %s", e+1, rec.Bytes())
		}
	}
}

// A thief is who has stolen all that a replica keeps outside its device.
type thief struct {
	*cluster
	own            ed25519.PrivateKey
	device         uint32                       // whose device he owns
	before, forged archive.EpochRecord          // the newest record that he has stolen, and his own
	votes          map[uint32]trust.Attestation // that true devices gave him: in this phase, or before
	certificate    []byte                       // of his record, as he shows it
}

// steal copies the files of all replicas and forges an epoch on top of e.
func (th *thief) steal(t *testing.T, e archive.Epoch) {
	t.Helper()
	for _, m := range th.Replicas {
		store, loot := filepath.Join(m.Dir, storeDir), t.TempDir()
		must(t, os.MkdirAll(store, 0o700)) // before the first phase there is none
		must(t, os.CopyFS(loot, os.DirFS(store)))
		s, err := OpenStore(loot, th.Roster)
		must(t, err)
		th.before, _, err = s.Record(e)
		must(t, errors.Join(err, s.Close()))
	}
	rec := th.before
	rec.Previous, rec.Epoch, rec.Tick = th.before.Head(), e+1, 1
	rec.Time, rec.Joined = time.Now().UTC().Truncate(time.Second), []uint32{2, 3, 4}
	rec.Block = archive.DigestOf([]byte("forged"))
	th.forged = rec
	th.forge(t)
}

// forge makes the certificate of his record. The device that he owns votes as it
// would for a true one.
func (th *thief) forge(t *testing.T) {
	t.Helper()
	rec, mas := th.forged, th.Replicas[th.device-1].MAS
	nonce := archive.CommitNonce(rec.InstanceAt(1), rec.Head())
	st := th.Replicas[th.device-1].Statement(t)
	st.Slots.Archive, st.Slots.Tick, st.Slots.Boot = th.Roster.ID(), 1, st.Counts
	st.Slots.Head, st.Slots.Epoch = rec.Previous, uint64(rec.Epoch)-1
	st.Slots.Committed = trust.Vote{Epoch: uint64(rec.Epoch), Tick: 1, Record: rec.Head()}
	must(t, mas.Store(t.Context(), st.Slots))
	att, err := mas.Lookup(t.Context(), nonce)
	must(t, err)
	th.votes[th.device] = att
	must(t, archive.CheckCommit(th.Roster, rec, 1, archive.Attested{Replica: th.device, Attestation: att}))
	cert := archive.Certificate{Tick: 1}
	for id := uint32(2); id <= 4; id++ {
		att, ok := th.votes[id]
		if !ok {
			att = trust.EncodeSoftware(th.own, st, nonce)
		}
		cert.Votes = append(cert.Votes, archive.Attested{Replica: id, Attestation: att})
	}
	b := rec.Bytes()
	th.certificate = append(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...), cert.Bytes()...)
}

// play is one update phase of replica 1, among replicas that the thief plays.
func (th *thief) play(t *testing.T, e archive.Epoch) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for id := uint32(2); id <= 4; id++ {
		defer liar(t, th.Replicas[id-1], th.Roster, th.as(id))()
	}
	said, ended := new(logBuffer), make(chan error, 1)
	go func() {
		_, err := Update(ctx, loggingTo(th.config(1), said))
		ended <- err
	}()
	for _, refusal := range th.refusals() {
		archivetest.Eventually(t, 30*time.Second, refusal, func() bool { return strings.Contains(said.String(), refusal) })
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("the phase ended well")
	}
	st := th.Replicas[0].Statement(t)
	if st.Mode != trust.ModeService || st.Counter != uint64(e) || st.Slots.Epoch != uint64(e) || st.Slots.Committed != (trust.Vote{}) {
		t.Errorf("the device holds %+v", st)
	}
	th.withStore(1, func(s *Store) error {
		if rec, _, err := s.Record(e + 1); err == nil {
			t.Errorf("the forged record is kept: %s", rec.Bytes())
		}
		return nil
	})
}

// refusals are what replica 1 says of the first vote that is not good, and of the
// replicas whose devices the thief does not own.
func (th *thief) refusals() (all []string) {
	for id := uint32(2); id <= 4; id++ {
		if id != th.device {
			all = append(all, fmt.Sprintf("hello of replica %d: does not verify", id))
		}
	}
	first := uint32(2)
	if th.device == first {
		first = 3
	}
	return append(all, fmt.Sprintf("certificate: commit vote of replica %d: does not verify", first))
}

// as plays one replica.
func (th *thief) as(id uint32) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(headerRun, strings.Repeat("a", runLength))
		switch r.URL.Path {
		case pathHello:
			var challenge [32]byte
			io.ReadFull(r.Body, challenge[:])
			w.Write(th.attest(id, archive.HelloNonce(th.Roster.ID(), id, 1, challenge)))
		case pathBoard:
			w.Write(encodeBatch([]item{{itemCertificate, th.certificate}}))
		default:
			http.NotFound(w, r)
		}
	})
}

// attest has the device that he owns attest, and else one of his making.
func (th *thief) attest(id uint32, n trust.Nonce) []byte {
	if id == th.device {
		att, _ := th.Replicas[id-1].MAS.Lookup(context.Background(), n)
		return att
	}
	return trust.EncodeSoftware(th.own, trust.Statement{Mode: trust.ModeUpdate, Counts: trust.Counts{Reset: 2}, Safe: true}, n)
}
