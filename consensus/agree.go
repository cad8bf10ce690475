package consensus

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// ErrSpent is returned for a directory whose votes cannot be continued: the
// replica sits the attempt out and takes the decision from its peers.
var ErrSpent = errors.New("engine directory cannot be resumed")

// ErrHalted is returned when the engine stopped by itself without a decision.
var ErrHalted = errors.New("engine halted")

// Timeouts are the engine's: how long a round waits for its leader's block
// (Propose) and for the votes (Vote), and what each further round adds. Linger
// bounds how long a member that has decided stays for connected ones that have
// not. A zero field takes its default: 5 s + 1 s, 1 s + 0.5 s, 1 s.
type Timeouts struct {
	Propose, ProposeDelta, Vote, VoteDelta time.Duration
	Linger                                 time.Duration
}

func (t Timeouts) complete() Timeouts {
	for _, f := range []struct {
		field     *time.Duration
		otherwise time.Duration
	}{
		{&t.Propose, 5 * time.Second}, {&t.ProposeDelta, time.Second},
		{&t.Vote, time.Second}, {&t.VoteDelta, time.Second / 2}, {&t.Linger, time.Second},
	} {
		if *f.field <= 0 {
			*f.field = f.otherwise
		}
	}
	return t
}

// Config says who agrees with whom, about what, and where.
type Config struct {
	// Dir is the engine's own, one for each instance. It holds what a restarted
	// process needs so as not to contradict itself; never a key.
	Dir      string
	Instance [32]byte           // binds every message of the attempt
	Self     uint32             // the member this is
	Key      ed25519.PrivateKey // Self's agreement key
	Members  []Member           // all, ascending by ID

	// Propose returns the candidate block whenever this replica leads; it may
	// block until there is one, within ctx. On an error, a block that Check
	// refuses, or none within Timeouts.Propose, this leader's round passes.
	Propose func(ctx context.Context) ([]byte, error)

	// Check says whether a block is valid. It must be pure: what one correct
	// replica accepts, all accept. Members vote for no other block.
	Check func(block []byte) error

	Timeouts Timeouts
	Log      *slog.Logger // the engine's own chatter comes at debug level; nil: none
}

// Agree takes part in one agreement and returns the block that the members
// decided. It works while more than two thirds of them are correct and connected;
// otherwise it ends with ctx. On return the engine has stopped, so a member that
// starts later must get the block elsewhere; members still connected are given
// up to Timeouts.Linger to learn the decision.
//
// A process killed within Agree may call it again with the same Config: it
// resumes from Dir, and returns at once if the block was decided there. ErrSpent
// says that Dir does not allow it. A directory must not be wiped to start over
// within one instance: a replica that forgot its votes could contradict them.
func Agree(ctx context.Context, c Config) ([]byte, error) {
	c = c.complete()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("agree: %w", err)
	}
	j, err := openJournal(c.Dir, c.Instance)
	if err != nil {
		return nil, fmt.Errorf("agree: %w", err)
	}
	if block := j.decided(); block != nil {
		return c.kept(block)
	}
	block, err := run(ctx, c, j)
	if err != nil {
		return nil, fmt.Errorf("agree: %w", err)
	}
	return block, nil
}

// kept is the decision of an earlier process, unless the disk has changed it.
func (c Config) kept(block []byte) ([]byte, error) {
	if err := c.accepts(block); err != nil {
		return nil, fmt.Errorf("agree: %w: decided block: %v", ErrSpent, err)
	}
	return block, nil
}

func run(ctx context.Context, c Config, j *journal) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	e, err := newEngine(ctx, c, j)
	if err != nil {
		cancel()
		return nil, err
	}
	defer e.stop()
	defer cancel() // first, so that a Propose under way ends
	if err := e.start(ctx); err != nil {
		return nil, err
	}
	return e.wait(ctx)
}

func (c Config) complete() Config {
	c.Timeouts = c.Timeouts.complete()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	if len(c.Members) == 0 || len(c.Members) > MaxMembers {
		return fmt.Errorf("%d members", len(c.Members))
	}
	if err := ascending(c.Members, func(m Member) uint32 { return m.ID }); err != nil {
		return err
	}
	for _, m := range c.Members {
		if len(m.Key) != ed25519.PublicKeySize {
			return fmt.Errorf("replica %d: key of %d bytes", m.ID, len(m.Key))
		}
	}
	self, ok := member(c.Members, c.Self)
	if !ok || len(c.Key) != ed25519.PrivateKeySize || !self.Key.Equal(c.Key.Public()) {
		return fmt.Errorf("replica %d is no member under this key", c.Self)
	}
	if c.Dir == "" || c.Propose == nil || c.Check == nil {
		return errors.New("incomplete configuration")
	}
	return nil
}

// accepts is Check behind a guard: a block on which it panics is refused.
func (c Config) accepts(block []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("check panicked: %v", r)
		}
	}()
	if len(block) == 0 || len(block) > MaxBlock {
		return malformed("block of %d bytes", len(block))
	}
	return c.Check(bytes.Clone(block))
}
