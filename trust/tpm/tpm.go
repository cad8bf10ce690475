// Package tpm is the MAS in a TPM 2.0: slots and epoch counter in two NV indexes
// whose write lock only a reset of the TPM undoes, attested to by a key that
// never leaves it.
//
// The handles are fixed, so that the TPM's own tools can show what is there:
//
//	0x0181B0F1  slots, 192 bytes, the layout of trust.Slots
//	0x0181B0F2  epoch counter, 8 bytes
//	0x0181B0F3  seed of the agreement key, readable in update mode only
//	0x8101B0F1  attestation key
//
//	tpm2_nvreadpublic 0x0181B0F1   # "writelocked" is service mode
//	tpm2_nvread 0x0181B0F1 | xxd
//
// For an swtpm set TPM2TOOLS_TCTI=swtpm:path=tpm.sock in the directory of its
// sockets.
package tpm

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
)

// Handles of the device's parts.
const (
	SlotsIndex     = 0x0181B0F1
	CounterIndex   = 0x0181B0F2
	AgreementIndex = 0x0181B0F3
	KeyHandle      = 0x8101B0F1
)

// A MAS is one process's hold on the device. Between operations it holds no
// connection, so that several processes can take turns at one swtpm, and none
// has to know when another power-cycled it.
type MAS struct {
	line  *line
	boot  *condition       // of writes
	key   tpm2.NamedHandle // attestation key
	batch *trust.Batch
}

var _ trust.MAS = (*MAS)(nil)

// Open returns the device that Provision made. An error that unwraps to
// fs.ErrNotExist says that there is none in this TPM.
func Open(ctx context.Context, t Target) (*MAS, error) {
	boot, err := newCondition(t.Approvals)
	if err != nil {
		return nil, fmt.Errorf("open tpm: %w", err)
	}
	l, err := newLine(t)
	if err != nil {
		return nil, fmt.Errorf("open tpm: %w", err)
	}
	m := &MAS{line: l, boot: boot}
	m.batch = trust.NewBatch(m.attest)
	if err := l.do(ctx, m.check); err != nil {
		return nil, fmt.Errorf("open tpm: %w", errors.Join(err, l.close()))
	}
	return m, nil
}

func (m *MAS) check(c transport.TPM) error {
	if err := m.find(c); err != nil {
		return err
	}
	return m.made(c)
}

// find looks for all parts of the device and notes the key's name.
func (m *MAS) find(c transport.TPM) error {
	for _, h := range []tpm2.TPMHandle{SlotsIndex, CounterIndex, AgreementIndex} {
		if _, err := lookIndex(c, h); err != nil {
			return missing(err)
		}
	}
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(KeyHandle)}.Execute(c)
	if err != nil {
		return missing(err)
	}
	m.key = tpm2.NamedHandle{Handle: KeyHandle, Name: rsp.Name}
	return nil
}

// made says whether the device was made for the condition that m sets writers.
func (m *MAS) made(c transport.TPM) error {
	x, err := lookIndex(c, SlotsIndex)
	if err != nil {
		return err
	}
	p, err := newPolicy(writer(SlotsIndex), m.boot)
	if err != nil {
		return err
	}
	d, err := p.digest()
	if err == nil && !bytes.Equal(d.Buffer, x.public.AuthPolicy.Buffer) {
		err = fmt.Errorf("the device in the TPM is not of profile %s, or of another approver", m.Profile())
	}
	return err
}

func missing(err error) error {
	if errors.Is(err, tpm2.TPMRCHandle) {
		return fmt.Errorf("not provisioned: %w", fs.ErrNotExist)
	}
	return err
}

// Profile returns trust.ProfileLock or trust.ProfileMeasured.
func (m *MAS) Profile() trust.Profile { return m.boot.profile() }

// Close gives up the device. It changes nothing in it.
func (m *MAS) Close() error { return m.line.close() }

// Store implements trust.MAS. The TPM answers once the slots are in its
// non-volatile memory.
func (m *MAS) Store(ctx context.Context, s trust.Slots) error {
	err := m.line.do(ctx, func(c transport.TPM) error { return writeSlots(c, s, m.boot) })
	if err != nil {
		return fmt.Errorf("store slots: %w", modeError(err))
	}
	return nil
}

// Advance implements trust.MAS.
func (m *MAS) Advance(ctx context.Context) error {
	err := m.line.do(ctx, func(c transport.TPM) error { return increment(c, m.boot) })
	if err != nil {
		return fmt.Errorf("advance counter: %w", modeError(err))
	}
	return nil
}

// modeError turns the TPM's word for a locked index into ours.
func modeError(err error) error {
	if errors.Is(err, tpm2.TPMRCNVLocked) {
		return trust.ErrMode
	}
	return err
}

// Lookup implements trust.MAS.
func (m *MAS) Lookup(ctx context.Context, n trust.Nonce) (trust.Attestation, error) {
	a, err := m.batch.Lookup(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("look up: %w", err)
	}
	return a, nil
}

// attest is a trust.Certifier: it has the TPM certify slots, then counter, over
// one root.
func (m *MAS) attest(ctx context.Context, root [32]byte) (trust.Signed, error) {
	var slots, counter trust.Certified
	err := m.line.do(ctx, func(c transport.TPM) (err error) {
		if slots, err = m.certify(c, SlotsIndex, trust.SlotsSize, root); err != nil {
			return err
		}
		counter, err = m.certify(c, CounterIndex, counterSize, root)
		return err
	})
	if err != nil {
		return nil, err
	}
	return trust.SignTPM(slots, counter)
}

func (m *MAS) certify(c transport.TPM, h tpm2.TPMHandle, size uint16, root [32]byte) (trust.Certified, error) {
	x, err := lookIndex(c, h)
	if err != nil {
		return trust.Certified{}, err
	}
	rsp, err := tpm2.NVCertify{
		SignHandle:     tpm2.AuthHandle{Handle: m.key.Handle, Name: m.key.Name, Auth: tpm2.PasswordAuth(nil)},
		AuthHandle:     x.withPassword(),
		NVIndex:        x.named(),
		QualifyingData: tpm2.TPM2BData{Buffer: root[:]},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Size:           size,
	}.Execute(c)
	if err != nil {
		return trust.Certified{}, err
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return trust.Certified{}, err
	}
	return trust.Certified{
		Attest: rsp.CertifyInfo.Bytes(),
		R:      sig.SignatureR.Buffer, S: sig.SignatureS.Buffer,
	}, nil
}

// Lock implements trust.MAS. It needs no authorisation: whoever can reach the
// TPM can lock it. Each part is locked even if another could not be.
func (m *MAS) Lock(ctx context.Context) error {
	err := m.line.do(ctx, func(c transport.TPM) error {
		return errors.Join(lockWrites(c, SlotsIndex, m.boot), lockWrites(c, CounterIndex, m.boot),
			lockReads(c, AgreementIndex), m.locked(c))
	})
	if err != nil {
		return fmt.Errorf("lock tpm: %w", err)
	}
	return nil
}

// locked asks the TPM whether all that Lock promises is so.
func (m *MAS) locked(c transport.TPM) error {
	for _, h := range []tpm2.TPMHandle{SlotsIndex, CounterIndex, AgreementIndex} {
		x, err := lookIndex(c, h)
		if err != nil {
			return err
		}
		if a := x.public.Attributes; !a.WriteLocked || h == AgreementIndex && !a.ReadLocked {
			return fmt.Errorf("index %#x is still open", uint32(h))
		}
	}
	return nil
}

// AgreementKey implements trust.MAS.
func (m *MAS) AgreementKey(ctx context.Context) (key ed25519.PrivateKey, err error) {
	err = m.line.do(ctx, func(c transport.TPM) error {
		seed, err := readIndex(c, AgreementIndex, ed25519.SeedSize)
		if err == nil {
			key = ed25519.NewKeyFromSeed(seed)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read agreement key: %w", modeError(err))
	}
	return key, nil
}
