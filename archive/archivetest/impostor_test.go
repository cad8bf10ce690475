package archivetest_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

// A fallen replica that answers for another counts neither as the other nor as
// itself, whoever's attestation it shows; one that shows a wrong key is not
// spoken to. With one honest replica beside it there is no quorum; with two
// there is, and it changes nothing.
func TestImpostor(t *testing.T) {
	t.Parallel()
	c := newSiege(t)
	c.bind("good/a", "here to stay")
	key := readKey(t, filepath.Join(c.replicaDir(2), "service.key"))
	_, stray, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	q := wire.AnswerRequest{Nonce: trust.Nonce{1}, Name: "good/a"}
	earlier, err := c.raw[2].Answer(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	for id := uint32(2); id <= 4; id++ {
		c.serve[id].Stop(syscall.SIGTERM)
	}
	as := func(id uint32) func(archive.Answer) archive.Answer {
		return func(a archive.Answer) archive.Answer { a.Replica = id; return a }
	}
	for _, x := range []struct {
		name string
		key  ed25519.PrivateKey
		lie  func(archive.Answer) archive.Answer
		want string
	}{
		{"as the other", key, as(1), "replica 2: "},
		{"as itself", key, as(2), "replica 2: "},
		{"as one that is down", key, as(3), "replica 2: "},
		{"as one that does not exist", key, as(5), "replica 2: "},
		{"with its own attestation of another nonce", key, func(archive.Answer) archive.Answer { return earlier }, "nonce"},
		{"with its own attestation and the other's answer", key, func(a archive.Answer) archive.Answer {
			a.Replica, a.Attestation = 2, earlier.Attestation
			return a
		}, "nonce"},
		{"with a wrong key", stray, as(2), "another key"},
		{"with the other's agreement name", stray, as(1), "another key"},
	} {
		stop := c.impostor(t, x.key, x.lie)
		c.refusesOne(t, x.name, x.want)
		stop()
	}
	c.fails(6, "1 of 2 needed", "get", "good/a", "-o", "-", "--timeout", "1s")
	stop := c.impostor(t, key, as(1))
	defer stop()
	c.start(3)
	c.awaitService(3)
	for range 3 {
		if got := c.get("good/a"); got != "here to stay" {
			t.Errorf("got %q", got)
		}
	}
}

// refusesOne wants a client to count one answer only, given the time to get it.
func (c *siege) refusesOne(t *testing.T, name, want string) {
	t.Helper()
	limit := 500 * time.Millisecond
	archivetest.Eventually(t, 60*time.Second, name+": one answer of two", func() bool {
		limit *= 2
		cl, err := client.New(client.Config{Roster: c.roster, Timeout: limit})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		_, err = cl.Get(t.Context(), "good/a")
		var none *client.NoQuorumError
		if !errors.As(err, &none) || none.Got > 1 || none.Need != 2 {
			t.Fatalf("%s: %v, want 1 of 2", name, err)
		}
		return none.Got == 1 && none.Replicas[2] != nil && strings.Contains(err.Error(), want)
	})
}

// impostor takes the address of replica 2 with the given key, and sends what
// replica 1 answers, with a lie.
func (c *siege) impostor(t *testing.T, key ed25519.PrivateKey, lie func(archive.Answer) archive.Answer) (stop func()) {
	t.Helper()
	config, err := wire.ServiceTLS(key)
	if err != nil {
		t.Fatal(err)
	}
	m, _ := c.roster.Replica(2)
	var l net.Listener
	archivetest.Eventually(t, 20*time.Second, "the port is free", func() bool {
		l, err = net.Listen("tcp", m.Address)
		return err == nil
	})
	s := &http.Server{TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, wire.MaxRequest))
		q, err2 := wire.ParseAnswerRequest(b)
		if err := errors.Join(err, err2); err != nil {
			wire.WriteError(w, err)
			return
		}
		a, err := c.raw[1].Answer(r.Context(), q)
		if err != nil {
			wire.WriteError(w, err)
			return
		}
		wire.WriteJSON(w, lie(a))
	})}
	go s.ServeTLS(l, "", "")
	return func() { s.Close() }
}

// A roster in which one device stands for two replicas is none: its one answer
// would count twice.
func TestOneDeviceTwice(t *testing.T) {
	a := archivetest.NewRoster(t, 4)
	r := *a.Roster
	r.Replicas = slices.Clone(r.Replicas)
	r.Replicas[1].MAS = r.Replicas[0].MAS
	if _, err := archive.ParseRoster(r.Bytes()); !errors.Is(err, archive.ErrRoster) || !strings.Contains(err.Error(), "MAS key") {
		t.Errorf("%v, want a MAS key that stands twice", err)
	}
}
