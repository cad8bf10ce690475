// Package tpm is the MAS in a TPM 2.0: slots and epoch counter in two NV indexes
// whose write lock only a reset of the TPM undoes, attested to by a key that
// never leaves it.
package tpm

import (
	"context"
	"crypto/ed25519"
	"io"

	"github.com/bonafide-archive/bonafide/trust"
)

// A Target says where a TPM is: exactly one of the two is set.
type Target struct {
	Device string // a kernel device, best the resource manager /dev/tpmrm0
	Socket string // the Unix socket of an swtpm
}

// A MAS is one process's hold on the device.
type MAS struct{}

func Provision(ctx context.Context, t Target, rand io.Reader) (trust.Identity, ed25519.PublicKey, error) {
	panic("tpm: not yet")
}
func Open(ctx context.Context, t Target) (*MAS, error)        { panic("tpm: not yet") }
func (m *MAS) Profile() trust.Profile                         { return trust.ProfileLock }
func (m *MAS) Store(ctx context.Context, s trust.Slots) error { panic("tpm: not yet") }
func (m *MAS) Advance(ctx context.Context) error              { panic("tpm: not yet") }
func (m *MAS) Lookup(ctx context.Context, n trust.Nonce) (trust.Attestation, error) {
	panic("tpm: not yet")
}
func (m *MAS) Lock(ctx context.Context) error                               { panic("tpm: not yet") }
func (m *MAS) AgreementKey(ctx context.Context) (ed25519.PrivateKey, error) { panic("tpm: not yet") }
func (m *MAS) Close() error                                                 { return nil }

var _ trust.MAS = (*MAS)(nil)

type Swtpm struct{}

func StartSwtpm(ctx context.Context, stateDir, runDir string) (*Swtpm, error) { panic("tpm: not yet") }
func (s *Swtpm) Target() Target                                               { panic("tpm: not yet") }
func (s *Swtpm) PowerCycle(ctx context.Context) error                         { panic("tpm: not yet") }
func (s *Swtpm) Stop() error                                                  { panic("tpm: not yet") }
