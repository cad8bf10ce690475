package tpm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
)

// ErrBoot says that the operator has not approved what the machine booted.
var ErrBoot = errors.New("this boot is not approved")

// Names in the directory of a measured device's approvals. Each file holds one
// approver or approval as text.
const (
	ApproverFile   = "approver"
	ApprovalSuffix = ".approval"
)

const maxApproval = 4096 // bytes of a file, well above what one takes

// A condition is what writers of a measured device have to meet: an approval,
// among those in dir, of the present boot. A nil condition is profile lock's.
type condition struct {
	by  trust.Approver
	dir string
}

// newCondition reads the approver from dir; no dir, no condition.
func newCondition(dir string) (*condition, error) {
	if dir == "" {
		return nil, nil
	}
	w := &condition{dir: dir}
	b, err := readSmall(filepath.Join(dir, ApproverFile))
	if err == nil {
		err = w.by.UnmarshalText(b)
	}
	if err != nil {
		return nil, fmt.Errorf("approver: %w", err)
	}
	return w, nil
}

func readSmall(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxApproval {
		return nil, fmt.Errorf("%q: over %d bytes", name, maxApproval)
	}
	return os.ReadFile(name)
}

func (w *condition) profile() trust.Profile {
	if w == nil {
		return trust.ProfileLock
	}
	return trust.ProfileMeasured
}

// branch adds to p what a writer has to show before its command.
func (w *condition) branch(p *tpm2.PolicyCalculator) error {
	if w == nil {
		return nil
	}
	name, err := tpm2.ObjectName(w.public())
	if err != nil {
		return err
	}
	return tpm2.PolicyAuthorize{PolicyRef: approvalRef(), KeySign: *name}.Update(p)
}

func (w *condition) public() *tpm2.TPMTPublic {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](w.by.Public())
	if err != nil {
		panic("tpm: public area of an approver: " + err.Error())
	}
	return p
}

func approvalRef() tpm2.TPM2BDigest { return tpm2.TPM2BDigest{Buffer: []byte(trust.ApprovalRef)} }

// authorize has the policy session h meet the condition.
func (w *condition) authorize(c transport.TPM, h tpm2.TPMISHPolicy) error {
	if w == nil {
		return nil
	}
	a, err := w.fitting(c)
	if err != nil {
		return err
	}
	return w.show(c, h, a)
}

// show loads the approver's key for as long as the TPM needs it to judge a.
func (w *condition) show(c transport.TPM, h tpm2.TPMISHPolicy, a trust.Approval) error {
	key, err := tpm2.LoadExternal{InPublic: tpm2.New2B(*w.public()), Hierarchy: tpm2.TPMRHOwner}.Execute(c)
	if err != nil {
		return fmt.Errorf("load approver: %w", err)
	}
	err = present(c, h, tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name}, a)
	_, flushErr := tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(c)
	return errors.Join(err, flushErr)
}

// present has the TPM check the approver's signature and compare the registers
// with those of the approved boot.
func present(c transport.TPM, h tpm2.TPMISHPolicy, key tpm2.NamedHandle, a trust.Approval) error {
	signed, policy := a.Signed(), a.Boot.Policy()
	ticket, err := tpm2.VerifySignature{
		KeyHandle: key, Digest: tpm2.TPM2BDigest{Buffer: signed[:]}, Signature: signatureOf(a),
	}.Execute(c)
	if err != nil {
		return fmt.Errorf("approver's signature: %w", err)
	}
	_, err = tpm2.PolicyPCR{PolicySession: h, Pcrs: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA256, PCRSelect: a.Boot.Registers[:]},
	}}}.Execute(c)
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession: h, ApprovedPolicy: tpm2.TPM2BDigest{Buffer: policy[:]},
		PolicyRef: approvalRef(), KeySign: key.Name, CheckTicket: ticket.Validation,
	}.Execute(c)
	return err
}

func signatureOf(a trust.Approval) tpm2.TPMTSignature {
	return tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA,
		&tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: a.R[:]}, SignatureS: tpm2.TPM2BECCParameter{Buffer: a.S[:]},
		})}
}

// fitting returns an approval of the present boot. A file that holds none by the
// approver is passed over: the others may do. Where none fits, the error unwraps
// to ErrBoot and says what each file approves and what was booted.
func (w *condition) fitting(c transport.TPM) (trust.Approval, error) {
	files, err := os.ReadDir(w.dir)
	if err != nil {
		return trust.Approval{}, err
	}
	why := []error{ErrBoot}
	for _, f := range files {
		if filepath.Ext(f.Name()) != ApprovalSuffix {
			continue
		}
		a, err := w.read(f.Name())
		if err == nil {
			err = fits(c, a)
		}
		if err == nil {
			return a, nil
		}
		why = append(why, fmt.Errorf("%s: %w", f.Name(), err))
	}
	return trust.Approval{}, errors.Join(append(why,
		errors.New("the operator approves it with bonafide init boot, approve and approval"))...)
}

// read returns an approval by the condition's approver.
func (w *condition) read(name string) (a trust.Approval, err error) {
	b, err := readSmall(filepath.Join(w.dir, name))
	if err == nil {
		err = a.UnmarshalText(b)
	}
	if err == nil {
		err = a.Verify(w.by)
	}
	return a, err
}

// fits says whether a is of the present boot.
func fits(c transport.TPM, a trust.Approval) error {
	var numbers []int
	for i := range 8 * len(a.Boot.Registers) {
		if a.Boot.Registers[i/8]>>(i%8)&1 == 1 {
			numbers = append(numbers, i)
		}
	}
	values, err := readRegisters(c, numbers)
	if err != nil {
		return err
	}
	if b, err := trust.NewBoot(values); err != nil || b != a.Boot {
		return errors.Join(err, fmt.Errorf("approves %s; booted was %s (%s)", a.Boot, b, list(numbers, values)))
	}
	return nil
}

func list(numbers []int, values map[int][32]byte) (s string) {
	for _, i := range numbers {
		s += fmt.Sprintf(", %d=%x", i, values[i])
	}
	return s[len(", "):]
}

// ReadRegisters returns the values of some of the TPM's SHA-256 registers (PCRs)
// by number.
func ReadRegisters(ctx context.Context, t Target, numbers []int) (values map[int][32]byte, err error) {
	l, err := newLine(t)
	if err == nil {
		defer l.close()
		err = l.do(ctx, func(c transport.TPM) error {
			values, err = readRegisters(c, numbers)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read registers: %w", err)
	}
	return values, nil
}

func readRegisters(c transport.TPM, numbers []int) (map[int][32]byte, error) {
	values := make(map[int][32]byte)
	for _, i := range numbers {
		selected := make([]byte, 3)
		if i < 0 || i >= 8*len(selected) {
			return nil, fmt.Errorf("no such register: %d", i)
		}
		selected[i/8] = 1 << (i % 8)
		rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
			{Hash: tpm2.TPMAlgSHA256, PCRSelect: selected},
		}}}.Execute(c)
		if err != nil {
			return nil, err
		}
		if d := rsp.PCRValues.Digests; len(d) != 1 || len(d[0].Buffer) != 32 {
			return nil, fmt.Errorf("register %d: the TPM keeps no SHA-256 value of it", i)
		}
		values[i] = [32]byte(rsp.PCRValues.Digests[0].Buffer)
	}
	return values, nil
}
