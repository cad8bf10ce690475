package trust

import (
	"crypto/ed25519"
	"errors"
	"fmt"
)

// maxPublic bounds each public area of an Identity, maxEvidence its evidence.
const (
	maxPublic   = 256
	maxEvidence = 1 << 14
)

// An Identity is what a roster pins of one replica's MAS: all that is needed to
// judge its attestations, for ever.
type Identity struct {
	Profile Profile `json:"profile"`
	// Key is the device's public key: 32 bytes of Ed25519 (software), or the
	// TPMT_PUBLIC of the attestation key.
	Key []byte `json:"key"`
	// SlotsPublic and CounterPublic are the TPMS_NV_PUBLIC of the two indexes,
	// written and unlocked, as in update mode. Empty for software.
	SlotsPublic   []byte `json:"slots_public,omitempty"`
	CounterPublic []byte `json:"counter_public,omitempty"`
	// CounterBase is the counter's value when the device was provisioned.
	CounterBase uint64 `json:"counter_base,omitempty"`
	// Evidence is, for measured, whose approvals let a boot write, and the first
	// of them; for lock, the endorsement certificate if there is one.
	Evidence []byte `json:"evidence,omitempty"`
}

// Check says whether id is well formed and its device made as its profile
// promises: key attributes, index attributes, write policies.
func (id Identity) Check() error {
	if err := id.check(); err != nil {
		return fmt.Errorf("device identity: %w", err)
	}
	return nil
}

func (id Identity) check() error {
	if len(id.Key) > maxPublic || len(id.SlotsPublic) > maxPublic ||
		len(id.CounterPublic) > maxPublic || len(id.Evidence) > maxEvidence {
		return errors.New("part too long")
	}
	switch id.Profile {
	case ProfileSoftware:
		return id.checkSoftware()
	case ProfileLock, ProfileMeasured:
		_, err := id.device()
		return err
	}
	return fmt.Errorf("no such profile: %q", id.Profile)
}

func (id Identity) checkSoftware() error {
	if len(id.Key) != ed25519.PublicKeySize {
		return fmt.Errorf("key has %d bytes, want %d", len(id.Key), ed25519.PublicKeySize)
	}
	if len(id.SlotsPublic)+len(id.CounterPublic)+len(id.Evidence) != 0 || id.CounterBase != 0 {
		return errors.New("a software device has a key and nothing else")
	}
	return nil
}

// Verify returns what a says, once it is certain that the device id made it in
// answer to n. It is pure. Every error unwraps to ErrAttestation.
func (id Identity) Verify(a Attestation, n Nonce) (Statement, error) {
	s, err := id.verify(a, n)
	if err != nil {
		return Statement{}, fmt.Errorf("%w: %w", ErrAttestation, err)
	}
	return s, nil
}

func (id Identity) verify(a Attestation, n Nonce) (Statement, error) {
	if err := id.Check(); err != nil {
		return Statement{}, err
	}
	e, err := a.parse()
	if err != nil {
		return Statement{}, err
	}
	root := e.path.Root(n)
	if id.Profile == ProfileSoftware {
		return id.verifySoftware(e, root)
	}
	return id.verifyTPM(e, root)
}

func (id Identity) verifySoftware(e envelope, root [32]byte) (Statement, error) {
	if e.form != formSoftware {
		return Statement{}, errors.New("not made by a software device")
	}
	if !ed25519.Verify(id.Key, softwareMessage(root, e.statement), e.signature) {
		return Statement{}, errors.New("wrong signature, or another nonce")
	}
	return parseStatement(e.statement)
}
