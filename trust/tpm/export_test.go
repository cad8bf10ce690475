package tpm

import (
	"context"
	"io"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
)

// Raw runs f on a connection of an attacker's own: it can send any command.
func Raw(ctx context.Context, t Target, f func(transport.TPM) error) error {
	l, err := newLine(t)
	if err != nil {
		return err
	}
	defer l.close()
	return l.do(ctx, f)
}

// Name returns an index's name as the TPM shows it.
func Name(c transport.TPM, h tpm2.TPMHandle) (tpm2.TPM2BName, error) {
	x, err := lookIndex(c, h)
	return x.name, err
}

// PolicyFor is the session that writes index h in update mode.
func PolicyFor(h tpm2.TPMHandle) tpm2.Session { return PolicyBy(h, Target{}) }

// PolicyBy is the same with what lies in the target's directory of approvals.
func PolicyBy(h tpm2.TPMHandle, t Target) tpm2.Session {
	boot, err := newCondition(t.Approvals)
	if err != nil {
		panic(err)
	}
	p, err := newPolicy(writer(h), boot)
	if err != nil {
		panic(err)
	}
	return p.session(writer(h))
}

// ProvisionThrough makes a device through a transport of the test's own.
func ProvisionThrough(ctx context.Context, t Target, s Setup, rand io.Reader, wrap func(transport.TPM) transport.TPM) error {
	m, err := newMaker(t, s, rand)
	if err != nil {
		return err
	}
	return operate(ctx, t, func(c transport.TPM) error {
		_, _, err := m.make(wrap(c))
		return err
	})
}

// Permanent is TPMA_PERMANENT.
func Permanent(c transport.TPM) (uint32, error) {
	p, err := readPermanent(c)
	return uint32(p), err
}

// LockerOf is the session that locks index h, at any time.
func LockerOf(h tpm2.TPMHandle) tpm2.Session {
	p, err := newPolicy(writer(h), nil)
	if err != nil {
		panic(err)
	}
	return p.session(tpm2.TPMCCNVWriteLock)
}

// KeyTemplate is the template of the attestation key.
func KeyTemplate() tpm2.TPMTPublic { return keyTemplate() }

// Suspend takes the power away after Shutdown(STATE) and starts up again with
// startup.
func (s *Swtpm) Suspend(ctx context.Context, startup tpm2.TPMSU) error {
	err := s.direct(ctx, func(c transport.TPM) error {
		_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUState}.Execute(c)
		return err
	})
	if err != nil {
		return err
	}
	if err := s.control(ctx, commandInit, 0); err != nil {
		return err
	}
	return s.direct(ctx, func(c transport.TPM) error {
		_, err := tpm2.Startup{StartupType: startup}.Execute(c)
		return err
	})
}

// Attest certifies slots and counter over a root of many nonces.
func (m *MAS) Attest(ctx context.Context, root [32]byte) (trust.Signed, error) {
	return m.attest(ctx, root)
}

// Present leads the policy session h to where the slots may be written, by an
// approval of anyone's, or says what the TPM did not let pass.
func Present(c transport.TPM, h tpm2.TPMISHPolicy, by trust.Approver, a trust.Approval, t Target) error {
	boot, err := newCondition(t.Approvals)
	if err != nil {
		return err
	}
	p, err := newPolicy(tpm2.TPMCCNVWrite, boot)
	if err != nil {
		return err
	}
	if err := (&condition{by: by}).show(c, h, a); err != nil {
		return err
	}
	return p.finish(c, h, tpm2.TPMCCNVWrite)
}
