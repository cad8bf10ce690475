package tpm_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
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
