package tpm_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
)

// Attestations that TPMs have really signed, and that are not what is asked for.
// Each is refused for a reason of its own. What the slots say is judged where
// their meaning is known: see TestHeadRefusals of package archive.
func TestRefusals(t *testing.T) {
	var n trust.Nonce
	rand.Read(n[:])
	lookup := func(t *testing.T, m *machine, n trust.Nonce) trust.Attestation {
		a, err := m.mas.Lookup(t.Context(), n)
		must(t, err)
		return a
	}
	for _, c := range []struct {
		name string
		make func(t *testing.T) (trust.Identity, trust.Attestation)
		why  string
	}{
		{"replayed", func(t *testing.T) (trust.Identity, trust.Attestation) {
			m := shut(t)
			return m.Identity, lookup(t, m, trust.Nonce{1})
		}, "slots: answers another nonce"},
		{"of another TPM", func(t *testing.T) (trust.Identity, trust.Attestation) {
			return shut(t).Identity, lookup(t, shut(t), n)
		}, "slots: wrong signature"},
		{"of two boots", func(t *testing.T) (trust.Identity, trust.Attestation) {
			m := shut(t)
			m.Reset(t)
			before := lookup(t, m, n)
			m.Reset(t)
			return m.Identity, spliced(before, lookup(t, m, n))
		}, "slots and counter were certified in different boots"},
		{"of two modes", func(t *testing.T) (trust.Identity, trust.Attestation) {
			m := shut(t)
			m.Reset(t)
			before := lookup(t, m, n)
			must(t, m.mas.Lock(t.Context()))
			return m.Identity, spliced(before, lookup(t, m, n))
		}, "slots are in update mode, counter in service mode"},
		{"re-marshalled, the other form of the signature", func(t *testing.T) (trust.Identity, trust.Attestation) {
			m := shut(t)
			a := lookup(t, m, n)
			s := new(big.Int).SetBytes(a[len(a)-32:])
			s.Sub(elliptic.P256().Params().N, s).FillBytes(a[len(a)-32:])
			return m.Identity, a
		}, "counter: signature is not the canonical one of its two forms"},
		{"re-marshalled, a byte that a lenient parser drops", func(t *testing.T) (trust.Identity, trust.Attestation) {
			m := shut(t)
			slots, counter := parts(lookup(t, m, n))
			slots.Attest = append(slots.Attest, 0)
			return m.Identity, together(t, slots, counter)
		}, "slots: wrong signature"},
		{"re-marshalled, a byte more at the end", func(t *testing.T) (trust.Identity, trust.Attestation) {
			m := shut(t)
			return m.Identity, append(lookup(t, m, n), 0)
		}, "trailing bytes"},
		{"by a key of the endorsement hierarchy", func(t *testing.T) (trust.Identity, trust.Attestation) {
			m := endorsementKey(t)
			return m.Identity, lookup(t, m, n)
		}, "slots: key is not in the owner hierarchy"},
		{"made up, by an unrestricted key of the same TPM", func(t *testing.T) (trust.Identity, trust.Attestation) {
			m := shut(t)
			_, a := unrestricted(t, m, lookup(t, m, trust.Nonce{1}), n)
			return m.Identity, a
		}, "slots: wrong signature"},
		{"made up, by an unrestricted key that is pinned", func(t *testing.T) (trust.Identity, trust.Attestation) {
			m := shut(t)
			id := m.Identity
			area, a := unrestricted(t, m, lookup(t, m, trust.Nonce{1}), n)
			id.Key = area
			return id, a
		}, "device identity: key: not a restricted signing key fixed to its TPM"},
		{"a quote of the registers", func(t *testing.T) (trust.Identity, trust.Attestation) {
			m := shut(t)
			q := quoted(t, m, n)
			return m.Identity, together(t, q, q)
		}, "slots: not a TPM's certification of an index"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			id, a := c.make(t)
			s, err := id.Verify(a, n)
			if !errors.Is(err, trust.ErrAttestation) {
				t.Fatalf("got %+v, %v, want ErrAttestation", s, err)
			}
			if why := strings.TrimPrefix(err.Error(), trust.ErrAttestation.Error()+": "); why != c.why {
				t.Errorf("refused for %q, want %q", why, c.why)
			}
		})
	}
}

// parts takes an attestation of form TPM and depth 0 apart.
func parts(a trust.Attestation) (slots, counter trust.Certified) {
	b := a[len("bonafide/attestation/v1\n")+4:]
	take := func() (c trust.Certified) {
		n := int(binary.BigEndian.Uint16(b))
		c = trust.Certified{Attest: bytes.Clone(b[2 : 2+n]), R: b[2+n : 34+n], S: b[34+n : 66+n]}
		b = b[66+n:]
		return c
	}
	return take(), take()
}

func together(t *testing.T, slots, counter trust.Certified) trust.Attestation {
	t.Helper()
	signed, err := trust.SignTPM(slots, counter)
	must(t, err)
	a, err := signed(trust.Path{})
	must(t, err)
	return a
}

// spliced is the slots of a with the counter of b.
func spliced(a, b trust.Attestation) trust.Attestation {
	slots, _ := parts(a)
	_, counter := parts(b)
	signed, _ := trust.SignTPM(slots, counter) // both had room
	out, _ := signed(trust.Path{})
	return out
}

// unrestricted has a key that signs whatever it is given sign what the TPM said
// before, as if it answered n. It returns the key's public area too.
func unrestricted(t *testing.T, m *machine, before trust.Attestation, n trust.Nonce) (area []byte, a trust.Attestation) {
	t.Helper()
	slots, counter := parts(before)
	must(t, m.raw(t, func(c transport.TPM) error {
		template := tpm.KeyTemplate()
		template.ObjectAttributes.Restricted = false
		rsp, err := primary(c, tpm2.TPMRHEndorsement, template)
		if err != nil {
			return err
		}
		area = bytes.Clone(rsp.OutPublic.Bytes())
		for _, x := range []*trust.Certified{&slots, &counter} {
			answer(x.Attest, area, n)
			if err := signAny(c, rsp, x); err != nil {
				return err
			}
		}
		return nil
	}))
	return area, together(t, slots, counter)
}

// answer makes a TPMS_ATTEST answer n, by the key with that public area in the
// owner hierarchy: magic (4), type (2), signer (2+34), extra data (2+32).
func answer(attest, area []byte, n trust.Nonce) {
	name := func(b []byte) []byte {
		h := sha256.Sum256(b)
		return append([]byte{0, 0x0B}, h[:]...)
	}
	copy(attest[8:], name(append([]byte{0x40, 0, 0, 1}, name(area)...)))
	root := trust.Path{}.Root(n)
	copy(attest[44:], root[:])
}

func signAny(c transport.TPM, key *tpm2.CreatePrimaryResponse, x *trust.Certified) error {
	sum := sha256.Sum256(x.Attest)
	rsp, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
		Digest:     tpm2.TPM2BDigest{Buffer: sum[:]},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(c)
	if err != nil {
		return err
	}
	return signedBy(x, rsp.Signature)
}

func signedBy(x *trust.Certified, s tpm2.TPMTSignature) error {
	sig, err := s.Signature.ECDSA()
	if err == nil {
		x.R, x.S = sig.SignatureR.Buffer, sig.SignatureS.Buffer
	}
	return err
}

// quoted is the attestation key's quote of register 0, which answers n.
func quoted(t *testing.T, m *machine, n trust.Nonce) (x trust.Certified) {
	t.Helper()
	root := trust.Path{}.Root(n)
	must(t, m.raw(t, func(c transport.TPM) error {
		k := key(c)
		rsp, err := tpm2.Quote{
			SignHandle:     tpm2.AuthHandle{Handle: k.Handle, Name: k.Name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: root[:]},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
				{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{1, 0, 0}},
			}},
		}.Execute(c)
		if err != nil {
			return err
		}
		x.Attest = bytes.Clone(rsp.Quoted.Bytes())
		return signedBy(&x, rsp.Signature)
	}))
	return x
}
