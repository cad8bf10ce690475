package client

import (
	"context"
	"sync"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

// ReplicaStatus is the state of one replica.
type ReplicaStatus struct {
	ID      uint32
	Address string
	Profile trust.Profile
	// Status is what it says of itself, if Err is nil.
	Status wire.Status
	Err    error
	// Verified is what its device attests, nil if AttestErr says why not.
	Verified  *archive.Verified
	AttestErr error
}

// Status asks all replicas at once, and returns what came within the client's
// timeout, by ascending replica.
func (c *Client) Status(ctx context.Context) []ReplicaStatus {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	out := make([]ReplicaStatus, len(c.replicas))
	var wg sync.WaitGroup
	for i, r := range c.replicas {
		out[i] = ReplicaStatus{ID: r.ID, Address: r.Address, Profile: r.MAS.Profile}
		wg.Go(func() {
			st, err := r.peer.Status(ctx)
			out[i].Status, out[i].Err = st, c.late(err)
		})
		wg.Go(func() {
			v, err := c.attested(ctx, r)
			out[i].Verified, out[i].AttestErr = v, c.late(err)
		})
	}
	wg.Wait()
	return out
}

func (c *Client) late(err error) error {
	if err != nil {
		return inTime(err, c.Timeout)
	}
	return nil
}

// attested returns what one replica proves of itself under a fresh nonce.
func (c *Client) attested(ctx context.Context, r *replica) (*archive.Verified, error) {
	n, err := c.nonce()
	if err != nil {
		return nil, err
	}
	q := wire.AnswerRequest{Nonce: n, Range: &wire.Range{From: []byte{}, Limit: 1}}
	a, err := r.peer.Answer(ctx, q)
	if err != nil {
		return nil, err
	}
	return checkAnswer(c.Roster, r.ID, q, a)
}
