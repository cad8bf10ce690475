package client

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/bonafide-archive/bonafide/archive"
)

// Three replicas pass on what the device of the fourth says to this very nonce,
// each as its own: that device counts once, so nothing is believed.
func TestRelayedAttestation(t *testing.T) {
	for _, name := range []archive.Name{"a", "nobody"} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t, "", "a", "b")
			lent := make(chan archive.Answer, 3)
			b.fakes[0].lie = func(a archive.Answer) archive.Answer {
				for range 3 {
					lent <- a
				}
				return a
			}
			for _, f := range b.fakes[1:] {
				f.lie = func(own archive.Answer) archive.Answer {
					a := <-lent
					a.Replica = own.Replica
					return a
				}
			}
			_, err := b.Client.Get(t.Context(), name)
			var nq *NoQuorumError
			if !errors.As(err, &nq) {
				t.Fatalf("%s: got %v, want no quorum", name, err)
			}
			for id := uint32(2); id <= 4; id++ {
				if !errors.Is(nq.Replicas[id], archive.ErrIntegrity) {
					t.Errorf("%s: replica %d: %v", name, id, nq.Replicas[id])
				}
			}
			if errors.Is(nq.Replicas[1], archive.ErrIntegrity) {
				t.Errorf("%s: the device's own replica: %v", name, nq.Replicas[1])
			}
		})
	}
}
