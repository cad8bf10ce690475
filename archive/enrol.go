package archive

import (
	"fmt"

	"github.com/bonafide-archive/bonafide/trust"
)

const (
	enrolmentFormat  = "bonafide/enrolment/v1"
	challengeFormat  = "bonafide/challenge/v1"
	activationFormat = "bonafide/activation/v1"
	activationHeader = activationFormat + "\n"
)

// Bounds of what goes to and fro before a roster is made, in bytes.
const (
	MaxEnrolment  = 64 << 10
	maxEK         = 1 << 10
	maxEKCert     = 1 << 13
	maxCredential = 1 << 10
)

// Enrolment is what a replica says of itself to whoever makes the roster: its
// entry, and the endorsement key that its TPM was born with. All of it is the
// replica's word, until an Activation shows that the device is in that TPM.
type Enrolment struct {
	Format      string  `json:"format"`
	Replica     Replica `json:"replica"`
	EK          []byte  `json:"ek_public,omitempty"`      // TPMT_PUBLIC; none for a software device
	Certificate []byte  `json:"ek_certificate,omitempty"` // the maker's, X.509 in DER, if there is one
}

// NewEnrolment returns the enrolment of a replica, checked.
func NewEnrolment(m Replica, ek, certificate []byte) (Enrolment, error) {
	e := Enrolment{Format: enrolmentFormat, Replica: m, EK: ek, Certificate: certificate}
	return e, e.check()
}

// Bytes returns the enrolment's one encoding: JSON, indented.
func (e Enrolment) Bytes() []byte { return mustText(e) }

// ID returns the SHA-256 of Bytes.
func (e Enrolment) ID() Digest { return DigestOf(e.Bytes()) }

// ParseEnrolment parses and checks what Bytes returns.
func ParseEnrolment(b []byte) (e Enrolment, err error) {
	if err := parseText(b, &e); err != nil {
		return e, fmt.Errorf("enrolment: %w", err)
	}
	return e, e.check()
}

func (e Enrolment) check() error {
	switch {
	case e.Format != enrolmentFormat:
		return fmt.Errorf("enrolment: %w: format %q, want %q", ErrFormat, e.Format, enrolmentFormat)
	case len(e.EK) > maxEK || len(e.Certificate) > maxEKCert:
		return fmt.Errorf("enrolment: %w: endorsement of %d and %d bytes", ErrFormat, len(e.EK), len(e.Certificate))
	case len(e.EK) == 0 && (len(e.Certificate) > 0 || !e.Replica.EK.IsZero()),
		len(e.EK) > 0 && e.Replica.EK.IsZero():
		return fmt.Errorf("enrolment: %w: endorsement key in part", ErrFormat)
	}
	return e.Replica.Check()
}

// Challenge asks the TPM of an enrolment to give up a secret that is sealed for
// its endorsement key and its attestation key together.
type Challenge struct {
	Format     string `json:"format"`
	Enrolment  Digest `json:"enrolment"`  // ID of the enrolment it asks
	Credential []byte `json:"credential"` // TPMS_ID_OBJECT
	Secret     []byte `json:"secret"`     // TPM2B_ENCRYPTED_SECRET, without its length
}

// NewChallenge returns a challenge to e.
func NewChallenge(e Enrolment, credential, secret []byte) Challenge {
	return Challenge{challengeFormat, e.ID(), credential, secret}
}

// Bytes returns the challenge's one encoding: JSON, indented.
func (c Challenge) Bytes() []byte { return mustText(c) }

// ParseChallenge parses what Bytes returns.
func ParseChallenge(b []byte) (c Challenge, err error) {
	if err := parseText(b, &c); err != nil {
		return c, fmt.Errorf("challenge: %w", err)
	}
	if c.Format != challengeFormat || len(c.Credential) > maxCredential || len(c.Secret) > maxCredential {
		return c, fmt.Errorf("challenge: %w: format %q, want %q", ErrFormat, c.Format, challengeFormat)
	}
	return c, nil
}

// Activation answers a challenge. Its attestation is made over the secret, so
// only the TPM that was asked can have made it, and over the enrolment, so the
// TPM vouches for all of that.
type Activation struct {
	Format      string            `json:"format"`
	Enrolment   Digest            `json:"enrolment"`
	Attestation trust.Attestation `json:"attestation"`
}

// NewActivation returns the answer that consists of an attestation over
// ActivationNonce.
func NewActivation(enrolment Digest, a trust.Attestation) Activation {
	return Activation{activationFormat, enrolment, a}
}

// Bytes returns the activation's one encoding: JSON, indented.
func (a Activation) Bytes() []byte { return mustText(a) }

// ParseActivation parses what Bytes returns. It does not verify.
func ParseActivation(b []byte) (a Activation, err error) {
	if err := parseText(b, &a); err != nil {
		return a, fmt.Errorf("activation: %w", err)
	}
	if a.Format != activationFormat || len(a.Attestation) > trust.MaxAttestation {
		return a, fmt.Errorf("activation: %w: format %q, want %q", ErrFormat, a.Format, activationFormat)
	}
	return a, nil
}

// ActivationNonce is what a device attests to show that it has opened the
// challenge with the given secret:
//
//	SHA256("bonafide/activation/v1\n" || enrolment || secret)
func ActivationNonce(enrolment Digest, secret [32]byte) trust.Nonce {
	b := append([]byte(activationHeader), enrolment[:]...)
	return trust.Nonce(DigestOf(append(b, secret[:]...)))
}

// Verify checks that the device of e answered the challenge with the given
// secret, and has never served: no archive in its slots, the epoch counter at
// its base.
func (a Activation) Verify(e Enrolment, secret [32]byte) error {
	if a.Enrolment != e.ID() {
		return fmt.Errorf("activation %w: of another enrolment", ErrIntegrity)
	}
	st, err := e.Replica.MAS.Verify(a.Attestation, ActivationNonce(a.Enrolment, secret))
	switch {
	case err != nil:
		return fmt.Errorf("activation %w: %w", ErrIntegrity, err)
	case st.Slots != trust.Slots{} || st.Counter != 0:
		return fmt.Errorf("activation %w: the device serves an archive already", ErrIntegrity)
	}
	return nil
}

func mustText(v any) []byte {
	b, err := encodeText(v)
	if err != nil {
		panic("archive: encode: " + err.Error())
	}
	return b
}

func parseText(b []byte, v any) error {
	if len(b) > MaxEnrolment {
		return fmt.Errorf("%w: %d bytes", ErrFormat, len(b))
	}
	return decodeText(b, v)
}
