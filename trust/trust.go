// Package trust is the vocabulary of the trusted device of a replica, the MAS
// (modal attested storage): its modes, slots, statements and attestations, and
// the pure verifier of those attestations.
//
// A MAS has two modes. In update mode its slots can be written; Lock puts it
// into service mode, where they can only be read and attested to, until the
// next reset of the device. A reset cannot be hidden: it shows in the counts of
// each later statement.
//
// Backends live in the packages below (soft, tpm); nothing here does I/O.
package trust

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
)

// ErrMode is returned where an operation needs update mode and the device is
// in service mode.
var ErrMode = errors.New("trusted device is in service mode")

// ErrAttestation is what every refusal of Identity.Verify unwraps to.
var ErrAttestation = errors.New("attestation refused")

// A Mode is what the device enforces at the moment.
type Mode uint8

// The two modes. The zero Mode is none.
const (
	ModeUpdate  Mode = 1 // slots can be written
	ModeService Mode = 2 // slots can only be read, until the next reset
)

// String returns the word that status and receipts show.
func (m Mode) String() string {
	switch m {
	case ModeUpdate:
		return "update"
	case ModeService:
		return "service"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// A Profile names how strong the protection of a device is. It is shown with
// everything that rests on the device.
type Profile string

// The profiles, weakest first.
const (
	// ProfileSoftware is a file: no protection from anyone who can write it.
	ProfileSoftware Profile = "software"
	// ProfileLock is a TPM write lock: sound as long as each boot runs the
	// operator's own update image first.
	ProfileLock Profile = "lock"
	// ProfileMeasured is a TPM that refuses writes unless the measured image booted.
	ProfileMeasured Profile = "measured"
)

func (p Profile) rank() int {
	switch p {
	case ProfileLock:
		return 1
	case ProfileMeasured:
		return 2
	}
	return 0
}

// Weakest returns the profile that something resting on all of ps rests on. A
// profile that is not known, or none at all, counts as software: protection
// that is not there is never claimed.
func Weakest(ps ...Profile) Profile {
	ranks := []Profile{ProfileSoftware, ProfileLock, ProfileMeasured}
	least := len(ranks)
	for _, p := range ps {
		least = min(least, p.rank())
	}
	if least == len(ranks) {
		least = 0
	}
	return ranks[least]
}

// A Nonce makes an attestation fresh: 32 bytes drawn or derived by the one who
// asks.
type Nonce [32]byte

// Counts are the device's counts of resets and of resumes or restarts. A TPM
// adds a constant of its own to both, and they wrap: compare them for equality
// only.
type Counts struct{ Reset, Restart uint32 }

// String returns "reset.restart", as epoch records write it.
func (c Counts) String() string { return fmt.Sprintf("%d.%d", c.Reset, c.Restart) }

// A Statement is what one attestation says of the device, at one moment between
// the drawing of the nonce and the answer.
type Statement struct {
	Mode    Mode
	Slots   Slots
	Counter uint64 // epoch counter, relative to the pinned base
	Clock   uint64 // milliseconds, by the device's own clock
	Counts  Counts
	Safe    bool // false: the clock may have stepped back at the last reset
}

// A MAS is the trusted device of one replica. All methods may be called
// concurrently, and by several processes one after another. A context ends the
// waiting, not always the operation: after an error, Lookup tells what holds.
type MAS interface {
	// Profile returns how strong the device's protection is.
	Profile() Profile
	// Store writes all slots and returns when they are durable. ErrMode in
	// service mode.
	Store(ctx context.Context, s Slots) error
	// Advance adds one to the epoch counter, which nothing can take back.
	// ErrMode in service mode.
	Advance(ctx context.Context) error
	// Lookup returns an attestation of the device's present state that answers n.
	Lookup(ctx context.Context, n Nonce) (Attestation, error)
	// Lock puts the device into service mode, and takes the agreement key out of
	// reach, until the next device reset. It is idempotent.
	Lock(ctx context.Context) error
	// AgreementKey returns the key of the update phase's engine and connections.
	// ErrMode once locked, until the next device reset.
	AgreementKey(ctx context.Context) (ed25519.PrivateKey, error)
	// Close gives the device back. It changes nothing in it.
	Close() error
}
