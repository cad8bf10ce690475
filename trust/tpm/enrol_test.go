package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
)

var enrolSecret = sha256.Sum256([]byte("a secret for the tests"))

func endorsement(t *testing.T, s *tpm.Swtpm) tpm.Endorsement {
	t.Helper()
	e, err := tpm.ReadEndorsement(t.Context(), s.Target())
	must(t, err)
	must(t, e.Check())
	return e
}

// endorsementRSA is the RSA key that a TPM makes of the makers' template.
func endorsementRSA(t *testing.T, s *tpm.Swtpm) (e tpm.Endorsement) {
	t.Helper()
	must(t, tpm.Raw(t.Context(), s.Target(), func(c transport.TPM) error {
		rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.RSAEKTemplate)}.Execute(c)
		if err != nil {
			return err
		}
		e.Public = bytes.Clone(rsp.OutPublic.Bytes())
		_, err = tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(c)
		return err
	}))
	return e
}

// Only the TPM with the endorsement key, and only while it has the attestation
// key, gives up the secret: in update mode and in service mode.
func TestCredential(t *testing.T) {
	s, d := provision(t)
	other, od := provision(t)
	for name, e := range map[string]tpm.Endorsement{"P-256": endorsement(t, s), "RSA": endorsementRSA(t, s)} {
		t.Run(name, func(t *testing.T) {
			cred, err := e.Seal(rand.Reader, d.Identity, enrolSecret)
			must(t, err)
			got, err := cred.Open(t.Context(), s.Target(), e)
			if err != nil || got != enrolSecret {
				t.Fatalf("got %x, %v", got, err)
			}
			if _, err := cred.Open(t.Context(), other.Target(), e); err == nil {
				t.Error("another TPM opened it")
			}
			foreign, err := e.Seal(rand.Reader, od.Identity, enrolSecret)
			must(t, err)
			if _, err := foreign.Open(t.Context(), s.Target(), e); err == nil {
				t.Error("opened for an attestation key that is not in this TPM")
			}
			for _, bad := range tampered(cred) {
				if _, err := bad.Open(t.Context(), s.Target(), e); err == nil {
					t.Errorf("opened a changed credential: %x", bad)
				}
			}
		})
	}
	must(t, d.Open(t).Lock(t.Context()))
	e := endorsement(t, s)
	cred, err := e.Seal(rand.Reader, d.Identity, enrolSecret)
	must(t, err)
	if got, err := cred.Open(t.Context(), s.Target(), e); err != nil || got != enrolSecret {
		t.Errorf("in service mode: got %x, %v", got, err)
	}
}

func tampered(c tpm.Credential) []tpm.Credential {
	all := []tpm.Credential{{}, {Blob: c.Blob}, {Secret: c.Secret}, {Blob: c.Blob[:len(c.Blob)-1], Secret: c.Secret},
		{Blob: make([]byte, 1<<16), Secret: c.Secret}, {Blob: c.Blob, Secret: make([]byte, 1<<16)}}
	for _, at := range []int{0, 1, 2, 20, len(c.Blob) - 1} {
		bad := bytes.Clone(c.Blob)
		bad[at] ^= 1
		all = append(all, tpm.Credential{Blob: bad, Secret: c.Secret})
	}
	for _, at := range []int{0, 5, len(c.Secret) - 1} {
		bad := bytes.Clone(c.Secret)
		bad[at] ^= 1
		all = append(all, tpm.Credential{Blob: c.Blob, Secret: bad})
	}
	return all
}

// A key of other attributes could give the secret to anyone.
func TestEndorsementAttributes(t *testing.T) {
	s, d := provision(t)
	e := endorsement(t, s)
	if again := endorsement(t, s); !bytes.Equal(again.Public, e.Public) {
		t.Error("the endorsement key is another one each time")
	}
	for i := range e.Public[:len(e.Public)-64] {
		bad := tpm.Endorsement{Public: bytes.Clone(e.Public)}
		bad.Public[i] ^= 1
		if err := bad.Check(); !errors.Is(err, tpm.ErrEndorsement) {
			t.Errorf("byte %d changed: got %v", i, err)
		}
		if _, err := bad.Seal(rand.Reader, d.Identity, enrolSecret); !errors.Is(err, tpm.ErrEndorsement) {
			t.Errorf("byte %d changed: sealed, %v", i, err)
		}
	}
	off := tpm.Endorsement{Public: bytes.Clone(e.Public)}
	off.Public[len(off.Public)-1] ^= 1 // not on the curve
	for _, bad := range []tpm.Endorsement{{}, off, {Public: append(bytes.Clone(e.Public), 0)}, {Public: d.Identity.Key}} {
		if err := bad.Check(); !errors.Is(err, tpm.ErrEndorsement) {
			t.Errorf("%x: got %v", bad.Public, err)
		}
	}
}

// A maker is a CA of the tests.
type maker struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

var makerFrom = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newMaker(t *testing.T, name string, by *maker) maker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: makerFrom, NotAfter: makerFrom.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	m := maker{key, c}
	if by == nil {
		by = &m
	}
	b, err := x509.CreateCertificate(rand.Reader, c, by.cert, key.Public(), by.key)
	must(t, err)
	m.cert, err = x509.ParseCertificate(b)
	must(t, err)
	return m
}

// certify makes a certificate as makers do: no subject, the TPM's name as a
// critical directory name.
func (m maker) certify(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	directoryName := []byte{0x30, 0x12, 0xA4, 0x10, 0x30, 0x0E, 0x31, 0x0C, 0x30, 0x0A, 0x06, 0x05, 0x67, 0x81, 0x05, 0x02, 0x01, 0x0C, 0x01, 'X'}
	b, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: makerFrom, NotAfter: makerFrom.AddDate(5, 0, 0),
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 17}, Critical: true, Value: directoryName}},
	}, m.cert, key, m.key)
	must(t, err)
	return b
}

func publicKey(t *testing.T, e tpm.Endorsement) crypto.PublicKey {
	t.Helper()
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.Public)
	must(t, err)
	key, err := tpm2.Pub(*area)
	must(t, err)
	return key
}

// burn writes a certificate where makers do, padded as some do.
func burn(t *testing.T, s *tpm.Swtpm, h tpm2.TPMHandle, cert []byte) {
	t.Helper()
	cert = append(bytes.Clone(cert), bytes.Repeat([]byte{0xFF}, 700)...)
	must(t, tpm.Raw(t.Context(), s.Target(), func(c transport.TPM) error {
		public := tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: h, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(cert)),
			Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
		})
		if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: public}).Execute(c); err != nil {
			return err
		}
		for at := 0; at < len(cert); at += 512 {
			name, err := tpm.Name(c, h)
			if err != nil {
				return err
			}
			_, err = tpm2.NVWrite{
				AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: h, Name: name},
				Data: tpm2.TPM2BMaxNVBuffer{Buffer: cert[at:min(at+512, len(cert))]}, Offset: uint16(at),
			}.Execute(c)
			if err != nil {
				return err
			}
		}
		return nil
	}))
}

func TestEndorsementChain(t *testing.T) {
	for name, c := range map[string]struct {
		index tpm2.TPMHandle
		key   func(*testing.T, *tpm.Swtpm) tpm.Endorsement
	}{"P-256": {0x01C0000A, endorsement}, "RSA": {0x01C00002, endorsementRSA}} {
		t.Run(name, func(t *testing.T) {
			s, _ := startSwtpm(t)
			root, stranger := newMaker(t, "root", nil), newMaker(t, "root", nil)
			ca := newMaker(t, "ca", &root)
			want := c.key(t, s)
			burn(t, s, c.index, ca.certify(t, publicKey(t, want)))
			_, _, err := tpm.Provision(t.Context(), s.Target(), tpm.Setup{}, rand.Reader)
			must(t, err)
			e := endorsement(t, s)
			if !bytes.Equal(e.Public, want.Public) || len(e.Certificate) == 0 {
				t.Fatalf("read %x, certificate of %d bytes", e.Public, len(e.Certificate))
			}
			now := makerFrom.AddDate(1, 0, 0)
			must(t, e.CheckChain([]*x509.Certificate{root.cert, ca.cert}, now))
			must(t, e.CheckChain([]*x509.Certificate{ca.cert}, now))
			none := tpm.Endorsement{Public: e.Public}
			foreign := tpm.Endorsement{Public: e.Public, Certificate: ca.certify(t, stranger.key.Public())}
			garbage := tpm.Endorsement{Public: e.Public, Certificate: []byte("no certificate")}
			for name, bad := range map[string]error{
				"no CA":                e.CheckChain(nil, now),
				"another CA":           e.CheckChain([]*x509.Certificate{stranger.cert}, now),
				"the one between lost": e.CheckChain([]*x509.Certificate{root.cert}, now),
				"too early":            e.CheckChain([]*x509.Certificate{ca.cert}, makerFrom.AddDate(-1, 0, 0)),
				"too late":             e.CheckChain([]*x509.Certificate{ca.cert}, makerFrom.AddDate(6, 0, 0)),
				"no certificate":       none.CheckChain([]*x509.Certificate{ca.cert}, now),
				"another key's":        foreign.CheckChain([]*x509.Certificate{ca.cert}, now),
				"another key's, Check": foreign.Check(),
				"garbage":              garbage.Check(),
			} {
				if !errors.Is(bad, tpm.ErrEndorsement) {
					t.Errorf("%s: got %v", name, bad)
				}
			}
		})
	}
}

// A certificate of another key in the TPM is a fault, not an excuse.
func TestEndorsementOfAnotherTPM(t *testing.T) {
	s, _ := startSwtpm(t)
	ca := newMaker(t, "ca", nil)
	burn(t, s, 0x01C0000A, ca.certify(t, ca.key.Public()))
	if _, err := tpm.ReadEndorsement(t.Context(), s.Target()); !errors.Is(err, tpm.ErrEndorsement) {
		t.Errorf("got %v", err)
	}
}

// A TPM whose endorsement hierarchy somebody has shut says so.
func TestEndorsementShut(t *testing.T) {
	s, _ := startSwtpm(t)
	must(t, tpm.Raw(t.Context(), s.Target(), func(c transport.TPM) error {
		_, err := tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.TPMRHEndorsement, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("shut")},
		}.Execute(c)
		return err
	}))
	if _, err := tpm.ReadEndorsement(t.Context(), s.Target()); err == nil || !strings.Contains(err.Error(), "endorsement authorisation is set") {
		t.Errorf("got %v", err)
	}
}

func TestEndorsementDigest(t *testing.T) {
	s, _ := startSwtpm(t)
	e := endorsement(t, s)
	got, err := e.Digest()
	must(t, err)
	b, err := x509.MarshalPKIXPublicKey(publicKey(t, e))
	must(t, err)
	if got != sha256.Sum256(b) {
		t.Errorf("got %x", got)
	}
}

func FuzzEndorsement(f *testing.F) {
	for _, template := range []tpm2.TPMTPublic{tpm2.ECCEKTemplate, tpm2.RSAEKTemplate} {
		f.Add(tpm2.Marshal(template), []byte{0x30, 0})
	}
	id := trust.Identity{Key: []byte("the public area of a key")}
	f.Fuzz(func(t *testing.T, public, cert []byte) {
		e := tpm.Endorsement{Public: public, Certificate: cert}
		_ = e.CheckChain(nil, makerFrom)
		_, digestErr := e.Digest()
		c, err := e.Seal(rand.Reader, id, enrolSecret)
		if (err == nil) != (digestErr == nil) {
			t.Errorf("sealed: %v, digest: %v", err, digestErr)
		}
		if err == nil && bytes.Contains(append(c.Blob, c.Secret...), enrolSecret[:]) {
			t.Error("the credential shows its secret")
		}
	})
}
