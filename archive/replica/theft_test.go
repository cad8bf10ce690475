package replica

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/trust"
)

// A thief has the agreement keys of all replicas, holds the addresses of all but
// one, and owns one device. He greets, and shows a record whose certificate has
// the votes of devices of his own. The last replica does not adopt it.
func TestThiefOnTheNetwork(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.reset(1, 2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, own, err := ed25519.GenerateKey(nil)
	must(t, err)
	th := &thief{cluster: c, own: own}
	for id := uint32(2); id <= 4; id++ {
		defer liar(t, c.Replicas[id-1], c.Roster, th.as(id))()
	}
	said, ended := new(logBuffer), make(chan error, 1)
	go func() {
		_, err := Update(ctx, loggingTo(c.config(1), said))
		ended <- err
	}()
	for _, refusal := range []string{
		"certificate: commit vote of replica 2: does not verify",
		"hello of replica 3: does not verify",
		"hello of replica 4: does not verify",
	} {
		archivetest.Eventually(t, 30*time.Second, refusal, func() bool { return strings.Contains(said.String(), refusal) })
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("the phase ended well")
	}
	st := c.Replicas[0].Statement(t)
	if st.Mode != trust.ModeService || st.Counter != 0 || st.Slots.Epoch != 0 || st.Slots.Committed != (trust.Vote{}) {
		t.Errorf("the device holds %+v", st)
	}
	c.withStore(1, func(s *Store) error {
		if rec, _, err := s.Record(1); err == nil {
			t.Errorf("the forged record is kept: %s", rec.Bytes())
		}
		return nil
	})
}

type thief struct {
	*cluster
	own ed25519.PrivateKey
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
			w.Write(encodeBatch([]item{{itemCertificate, th.certificate()}}))
		default:
			http.NotFound(w, r)
		}
	})
}

// attest has the one device that he owns attest, and else one of his making.
func (th *thief) attest(id uint32, n trust.Nonce) []byte {
	if id == 2 {
		att, _ := th.Replicas[1].MAS.Lookup(context.Background(), n)
		return att
	}
	return trust.EncodeSoftware(th.own, trust.Statement{Mode: trust.ModeUpdate, Counts: trust.Counts{Reset: 2}, Safe: true}, n)
}

// certificate is that of a forged first epoch, with votes as they should be but
// for the keys that signed them.
func (th *thief) certificate() []byte {
	before := archive.Genesis(th.Roster)
	rec := before
	rec.Previous, rec.Epoch, rec.Tick = before.Head(), 1, 1
	rec.Time, rec.Joined = time.Now().UTC().Truncate(time.Second), []uint32{2, 3, 4}
	rec.Block = archive.DigestOf([]byte("forged"))
	cert := archive.Certificate{Tick: 1}
	st := trust.Statement{Mode: trust.ModeUpdate, Counts: trust.Counts{Reset: 2}, Safe: true, Slots: trust.Slots{
		Head: before.Head(), Tick: 1, Archive: th.Roster.ID(), Committed: trust.Vote{Epoch: 1, Tick: 1, Record: rec.Head()}}}
	for id := uint32(2); id <= 4; id++ {
		att := trust.EncodeSoftware(th.own, st, archive.CommitNonce(rec.InstanceAt(1), rec.Head()))
		cert.Votes = append(cert.Votes, archive.Attested{Replica: id, Attestation: att})
	}
	b := rec.Bytes()
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...), cert.Bytes()...)
}
