package consensus

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"time"
)

// Timeouts are the engine's: how long to wait for a leader's block and for the
// votes, and what each further round adds.
type Timeouts struct{ Propose, ProposeDelta, Vote, VoteDelta time.Duration }

// Config says who agrees with whom, about what, and where.
type Config struct {
	Dir      string   // the engine's own directory, one for each instance
	Instance [32]byte // binds every message of the attempt
	Self     uint32
	Key      ed25519.PrivateKey // Self's agreement key
	Members  []Member           // all, ascending by ID

	// Propose returns the candidate block when this replica leads; it may block
	// until there is one. On an error this leader's round passes.
	Propose func(ctx context.Context) ([]byte, error)
	// Check says whether a block is valid; it must be pure.
	Check func(block []byte) error

	Timeouts Timeouts
	Log      *slog.Logger
}

// Agree returns the block that the members decided.
func Agree(ctx context.Context, c Config) ([]byte, error) { panic("consensus: to come") }

// MayResume says whether dir may be used by Agree.
func MayResume(dir string) bool { panic("consensus: to come") }
