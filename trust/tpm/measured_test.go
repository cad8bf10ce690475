package tpm_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

// An index whose writers need an approved boot, made with the digests of
// package trust and not with the TPM library's, so that a real TPM confirms
// them: PolicyAuthorize, then the command.
const measuredIndex = 0x0181B0FF

func branchOf(by trust.Approver) tpm2.TPM2BDigest {
	name := sha256.Sum256(by.Public())
	b := append(make([]byte, 32), 0, 0, 0x01, 0x6A, 0, 0x0B)
	h := sha256.Sum256(append(b, name[:]...))
	h = sha256.Sum256(append(h[:], "bonafide/approval/v1\n"...))
	h = sha256.Sum256(append(h[:], 0, 0, 0x01, 0x6C, 0, 0, 0x01, 0x37))
	return tpm2.TPM2BDigest{Buffer: h[:]}
}

func defineMeasured(c transport.TPM, by trust.Approver) error {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: auth(tpm2.TPMRHOwner),
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: measuredIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 1,
			Attributes: tpm2.TPMANV{PolicyWrite: true, AuthRead: true, NoDA: true},
			AuthPolicy: branchOf(by),
		}),
	}.Execute(c)
	return err
}

// writeMeasured writes the index by an approval.
func writeMeasured(by trust.Approver, a trust.Approval) func(transport.TPM) error {
	return func(c transport.TPM) error {
		s := tpm2.Policy(tpm2.TPMAlgSHA256, 16,
			func(c transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error { return authorize(c, h, by, a) })
		_, err := tpm2.NVWrite{
			AuthHandle: byIndex(c, measuredIndex, s), NVIndex: named(c, measuredIndex),
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte{1}},
		}.Execute(c)
		return err
	}
}

func authorize(c transport.TPM, h tpm2.TPMISHPolicy, by trust.Approver, a trust.Approval) error {
	key, err := tpm2.LoadExternal{
		InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](by.Public()), Hierarchy: tpm2.TPMRHOwner,
	}.Execute(c)
	if err != nil {
		return err
	}
	defer tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(c)
	policy := a.Boot.Policy()
	signed := sha256.Sum256(append(policy[:], "bonafide/approval/v1\n"...))
	ticket, err := tpm2.VerifySignature{
		KeyHandle: tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name},
		Digest:    tpm2.TPM2BDigest{Buffer: signed[:]},
		Signature: tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA,
			&tpm2.TPMSSignatureECC{
				Hash:       tpm2.TPMAlgSHA256,
				SignatureR: tpm2.TPM2BECCParameter{Buffer: a.R[:]}, SignatureS: tpm2.TPM2BECCParameter{Buffer: a.S[:]},
			})},
	}.Execute(c)
	if err != nil {
		return err
	}
	return authorized(c, h, key.Name, a.Boot, ticket.Validation)
}

func authorized(c transport.TPM, h tpm2.TPMISHPolicy, name tpm2.TPM2BName, b trust.Boot, ticket tpm2.TPMTTKVerified) error {
	pcrs := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA256, PCRSelect: b.Registers[:]},
	}}
	if _, err := (tpm2.PolicyPCR{PolicySession: h, Pcrs: pcrs}).Execute(c); err != nil {
		return err
	}
	policy := b.Policy()
	_, err := tpm2.PolicyAuthorize{
		PolicySession: h, ApprovedPolicy: tpm2.TPM2BDigest{Buffer: policy[:]},
		PolicyRef: tpm2.TPM2BDigest{Buffer: []byte("bonafide/approval/v1\n")}, KeySign: name, CheckTicket: ticket,
	}.Execute(c)
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyCommandCode{PolicySession: h, Code: tpm2.TPMCCNVWrite}.Execute(c)
	return err
}

// measureInto extends register 11, as a boot does with its image.
func measureInto(image string) func(transport.TPM) error {
	sum := sha256.Sum256([]byte(image))
	return func(c transport.TPM) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: auth(tpm2.TPMHandle(11)),
			Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{
				HashAlg: tpm2.TPMAlgSHA256, Digest: sum[:],
			}}},
		}.Execute(c)
		return err
	}
}

// bootOf is the boot that measureInto(image) leaves after a reset.
func bootOf(t *testing.T, image string) trust.Boot {
	t.Helper()
	sum := sha256.Sum256([]byte(image))
	b, err := trust.NewBoot(map[int][32]byte{7: {}, 11: sha256.Sum256(append(make([]byte, 32), sum[:]...))})
	must(t, err)
	return b
}

// A TPM agrees with the format of approvals: the approved boot writes, no other
// does after one more reset, nor does the approval of another operator; and the
// next image writes as soon as it is approved.
func TestApprovals(t *testing.T) {
	s, _ := startSwtpm(t)
	raw := func(f func(transport.TPM) error) error { return tpm.Raw(t.Context(), s.Target(), f) }
	key, stranger := newOperator(t), newOperator(t)
	by, err := trust.ApproverOf(key)
	must(t, err)
	must(t, raw(func(c transport.TPM) error { return defineMeasured(c, by) }))
	approve := func(key *ecdsa.PrivateKey, image string) trust.Approval {
		a, err := trust.Approve(key, bootOf(t, image))
		must(t, err)
		return a
	}
	first, next := approve(key, "first"), approve(key, "next")

	must(t, raw(measureInto("first")))
	must(t, raw(writeMeasured(by, first)))
	cycle(t, s) // one more reboot, into a program of the attacker's
	must(t, raw(measureInto("evil")))
	for name, a := range map[string]trust.Approval{
		"approval of another image": first, "approval by another": approve(stranger, "evil"),
	} {
		if raw(writeMeasured(by, a)) == nil {
			t.Errorf("%s: the attacker's boot wrote", name)
		}
	}
	other, err := trust.ApproverOf(stranger)
	must(t, err)
	if raw(writeMeasured(other, approve(stranger, "evil"))) == nil {
		t.Error("a boot wrote that another approver approved")
	}
	must(t, raw(measureInto("first")))
	if raw(writeMeasured(by, first)) == nil {
		t.Error("the attacker's boot wrote after it had measured the approved image too")
	}
	cycle(t, s)
	must(t, raw(measureInto("next")))
	must(t, raw(writeMeasured(by, next)))
}

func newOperator(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

// measured is a device of profile measured, its approvals' directory, and its
// operator, who approved the image "first", which is booted.
type measured struct {
	trusttest.Device
	s        *tpm.Swtpm
	target   tpm.Target
	operator *ecdsa.PrivateKey
}

// unprovisioned is such a machine before it boots that image, without the device.
func unprovisioned(t *testing.T) measured {
	t.Helper()
	s, _ := startSwtpm(t)
	m := measured{s: s, target: s.Target(), operator: newOperator(t)}
	m.target.Approvals = t.TempDir()
	by, err := trust.ApproverOf(m.operator)
	must(t, err)
	keep(t, filepath.Join(m.target.Approvals, tpm.ApproverFile), by)
	m.approve(t, m.operator, "first")
	return m
}

func newMeasured(t *testing.T) measured {
	t.Helper()
	m := unprovisioned(t)
	m.boot(t, "first")
	var err error
	m.Identity, m.Agreement, err = tpm.Provision(t.Context(), m.target, tpm.Setup{}, rand.Reader)
	must(t, err)
	m.Open = func(t *testing.T) trust.MAS { return open(t, m.target) }
	m.Reset = func(t *testing.T) { m.boot(t, "first") }
	return m
}

func keep(t *testing.T, file string, v encoding.TextMarshaler) {
	t.Helper()
	b, err := v.MarshalText()
	must(t, err)
	must(t, os.WriteFile(file, b, 0o600))
}

// boot power-cycles the machine and boots an image, which is measured.
func (m measured) boot(t *testing.T, image string) {
	t.Helper()
	cycle(t, m.s)
	must(t, tpm.Raw(t.Context(), m.s.Target(), measureInto(image)))
}

// approve puts key's approval of the image into the device's directory.
func (m measured) approve(t *testing.T, key *ecdsa.PrivateKey, image string) {
	t.Helper()
	a, err := trust.Approve(key, bootOf(t, image))
	must(t, err)
	keep(t, filepath.Join(m.target.Approvals, image+tpm.ApprovalSuffix), a)
}

func TestConformanceMeasured(t *testing.T) {
	trusttest.Run(t, func(t *testing.T) trusttest.Device { return newMeasured(t).Device })
}

// One reboot too many, into a program of root's that writes a head of its own
// and locks again. On lock it goes through and shows only in the reset count; on
// measured the TPM refuses, whatever root puts among the approvals.
func TestExtraReboot(t *testing.T) {
	lock, d := provision(t)
	forge := func(target tpm.Target) error {
		return tpm.Raw(t.Context(), target, func(c transport.TPM) error {
			return write(c, byIndex(c, tpm.SlotsIndex, tpm.PolicyBy(tpm.SlotsIndex, target)))
		})
	}
	m := d.Open(t)
	must(t, m.Store(t.Context(), trusttest.Slots(1)))
	must(t, m.Lock(t.Context()))
	before := state(t, d, m)
	cycle(t, lock)
	must(t, tpm.Raw(t.Context(), lock.Target(), measureInto("evil")))
	must(t, forge(lock.Target()))
	must(t, m.Lock(t.Context()))
	want := before
	want.Slots, want.Counts.Reset = trusttest.Slots(66), before.Counts.Reset+1
	if got := state(t, d, m); got != want {
		t.Errorf("lock: got %+v, want %+v", got, want)
	}

	x := newMeasured(t)
	m = x.Device.Open(t)
	must(t, m.Store(t.Context(), trusttest.Slots(1)))
	must(t, m.Lock(t.Context()))
	before = state(t, x.Device, m)
	x.boot(t, "evil")
	x.approve(t, newOperator(t), "evil")
	if err := forge(x.target); !errors.Is(err, tpm.ErrBoot) {
		t.Errorf("measured: got %v, want ErrBoot", err)
	}
	// The TPM itself refuses, not only the program that looks for an approval.
	for name, by := range map[string]*ecdsa.PrivateKey{"approved image": x.operator, "root's own approver": newOperator(t)} {
		image := map[bool]string{true: "first", false: "evil"}[by == x.operator]
		a, err := trust.Approve(by, bootOf(t, image))
		must(t, err)
		approver, err := trust.ApproverOf(by)
		must(t, err)
		var rc tpm2.TPMRC
		err = tpm.Raw(t.Context(), x.target, func(c transport.TPM) error {
			return write(c, byIndex(c, tpm.SlotsIndex, tpm2.Policy(tpm2.TPMAlgSHA256, 16,
				func(c transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
					return tpm.Present(c, h, approver, a, x.target)
				})))
		})
		if !errors.As(err, &rc) {
			t.Errorf("%s: got %v, want the TPM's refusal", name, err)
		}
	}
	must(t, m.Lock(t.Context()))
	want = before
	want.Counts.Reset++
	if got := state(t, x.Device, m); got != want {
		t.Errorf("measured: got %+v, want %+v", got, want)
	}
	// An old approval stays one: its image writes again, and the next as soon as
	// the operator has approved it.
	x.boot(t, "next")
	err := m.Store(t.Context(), trusttest.Slots(2))
	if !errors.Is(err, tpm.ErrBoot) || !strings.Contains(err.Error(), bootOf(t, "next").String()) {
		t.Errorf("got %v, want ErrBoot and the boot's registers", err)
	}
	x.approve(t, x.operator, "next")
	must(t, m.Store(t.Context(), trusttest.Slots(2)))
	must(t, m.Advance(t.Context()))
	x.boot(t, "first")
	must(t, m.Store(t.Context(), trusttest.Slots(3)))
}

// A device opens only with the approver that it was made for.
func TestOpenMeasured(t *testing.T) {
	m := newMeasured(t)
	if _, err := tpm.Open(t.Context(), m.s.Target()); err == nil || !strings.Contains(err.Error(), "not of profile lock") {
		t.Errorf("as of profile lock: got %v", err)
	}
	other, err := trust.ApproverOf(newOperator(t))
	must(t, err)
	keep(t, filepath.Join(m.target.Approvals, tpm.ApproverFile), other)
	if _, err := tpm.Open(t.Context(), m.target); err == nil {
		t.Error("opened with another approver")
	}
}

// Without an approval of the present boot nothing is made.
func TestProvisionUnapproved(t *testing.T) {
	m := unprovisioned(t)
	if _, _, err := tpm.Provision(t.Context(), m.target, tpm.Setup{}, rand.Reader); !errors.Is(err, tpm.ErrBoot) {
		t.Errorf("got %v, want ErrBoot", err)
	}
	m.boot(t, "first")
	_, _, err := tpm.Provision(t.Context(), m.target, tpm.Setup{}, rand.Reader)
	must(t, err)
}

// What was cut off late is finished in another approved boot, as what it is.
func TestProvisionMeasuredCutOff(t *testing.T) {
	for _, at := range []tpm2.TPMHandle{tpm2.TPMRHOwner, tpm2.TPMRHLockout} {
		m := unprovisioned(t)
		m.approve(t, m.operator, "next")
		m.boot(t, "first")
		setup := newSetup(t)
		if err := cutOff(t, m.target, setup, shutting(at), false); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		m.boot(t, "evil")
		if _, _, err := tpm.Provision(t.Context(), m.target, setup, rand.Reader); !errors.Is(err, tpm.ErrBoot) {
			t.Errorf("in a boot that is not approved: got %v, want ErrBoot", err)
		}
		m.boot(t, "next")
		if d := finished(t, m.s, m.target, setup); d.Identity.Profile != trust.ProfileMeasured {
			t.Errorf("got profile %v", d.Identity.Profile)
		}
	}
	m := unprovisioned(t)
	m.boot(t, "first")
	setup := newSetup(t)
	if err := cutOff(t, m.target, setup, shutting(tpm2.TPMRHLockout), false); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	if _, _, err := tpm.Provision(t.Context(), m.s.Target(), setup, rand.Reader); err == nil {
		t.Error("begun as measured, finished as lock")
	}
}
