package client

import (
	"context"
	"math"
	"sync"
	"time"

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
	// Before is the highest that its device was seen to attest before.
	Before Sighting
}

// RolledBack reports whether the device attests an epoch or a counter below what
// it was seen to attest before: it is not the device that it was.
func (s ReplicaStatus) RolledBack() bool {
	return s.Verified != nil && (s.Verified.Record.Epoch < s.Before.Epoch || s.Verified.Statement.Counter < s.Before.Counter)
}

// ClockBack returns by how much the device's clock stands below what it was seen
// at before. A device loses a little of it when its power fails.
func (s ReplicaStatus) ClockBack() time.Duration {
	if s.Verified == nil || s.Verified.Statement.Clock >= s.Before.Clock {
		return 0
	}
	return time.Duration(min(s.Before.Clock-s.Verified.Statement.Clock, math.MaxInt64/uint64(time.Millisecond))) * time.Millisecond
}

// OutOfTurn returns the counts of the record whose phase the device joined, if
// it has been reset since.
func (s ReplicaStatus) OutOfTurn() (was trust.Counts, yes bool) {
	if s.Verified == nil || !s.Verified.Record.HasJoined(s.ID) {
		return was, false
	}
	was, _ = s.Verified.Record.CountsOf(s.ID)
	return was, was != s.Verified.Statement.Counts
}

// Unreset reports whether the device has not been reset since it joined the epoch
// that it attests: if that one is overdue, its watchdog did not do its work.
func (s ReplicaStatus) Unreset() bool {
	return s.Verified != nil && s.Verified.Undisturbed()
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
	c.remember(out)
	return out
}

// remember notes what the devices attest, and what they did before. A state that
// cannot be read or written is no reason to show nothing.
func (c *Client) remember(all []ReplicaStatus) {
	now := make([]Sighting, len(all))
	for i, s := range all {
		if v := s.Verified; v != nil {
			now[i] = Sighting{v.Record.Epoch, v.Statement.Counter, v.Statement.Clock}
		}
	}
	before, err := c.seen.sight(now)
	if err != nil {
		c.Log.Warn("cannot compare with what devices attested before", "err", err)
		return
	}
	for i := range all {
		all[i].Before = before[i]
	}
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
