package cmd

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust/tpm"
)

var enrolNow = time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)

// certify lets a new CA certify a key, and returns the file of the CA.
func certify(t *testing.T, key crypto.PublicKey) (cert []byte, file string) {
	t.Helper()
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker"}, NotBefore: enrolNow.AddDate(-1, 0, 0),
		NotAfter: enrolNow.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true,
	}
	root, err := x509.CreateCertificate(rand.Reader, c, c, ca.Public(), ca)
	if err != nil {
		t.Fatal(err)
	}
	leaf := *c
	leaf.Subject, leaf.IsCA = pkix.Name{CommonName: "chip"}, false
	if cert, err = x509.CreateCertificate(rand.Reader, &leaf, c, key, ca); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "ca.pem")
	both := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("passed over")})
	both = append(both, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root})...)
	if err := os.WriteFile(file, both, 0o600); err != nil {
		t.Fatal(err)
	}
	return cert, file
}

func vectorEnrolment(t *testing.T) archive.Enrolment {
	t.Helper()
	e, err := readEnrolment("../archive/testdata/enrolment.json")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// pointOf is the key in a TPMT_PUBLIC of the P-256 template.
func pointOf(t *testing.T, public []byte) crypto.PublicKey {
	t.Helper()
	end := public[len(public)-66:]
	point := append(append([]byte{4}, end[:32]...), end[34:]...)
	k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestMakersAreTrusted(t *testing.T) {
	e := vectorEnrolment(t)
	ek := tpm.Endorsement{Public: e.EK}
	cert, ca := certify(t, pointOf(t, e.EK))
	_, other := certify(t, pointOf(t, e.EK))
	ek.Certificate = cert
	for _, c := range []struct {
		makers []string
		now    time.Time
		ok     bool
	}{
		{[]string{ca}, enrolNow, true},
		{[]string{other, ca}, enrolNow, true},
		{[]string{other}, enrolNow, false},
		{nil, enrolNow, false},
		{[]string{ca}, enrolNow.AddDate(2, 0, 0), false},
	} {
		j, err := proofs{makers: c.makers}.judge(c.now)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.certified(ek); (err == nil) != c.ok || !c.ok && !errors.Is(err, tpm.ErrEndorsement) {
			t.Errorf("%v at %v: %v", c.makers, c.now, err)
		}
	}
}

// rsaEndorsement is a key of the RSA template, which ends in the modulus.
func rsaEndorsement(t *testing.T) (e tpm.Endorsement, key crypto.PublicKey) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	head := []byte{0x00, 0x01, 0x00, 0x0B, 0x00, 0x03, 0x00, 0xB2, 0x00, 0x20,
		0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24,
		0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52, 0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA,
		0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x08, 0x00, 0, 0, 0, 0, 0x01, 0x00}
	return tpm.Endorsement{Public: append(head, k.N.Bytes()...)}, k.Public()
}

// One TPM may have a certified key of each kind: where both kinds stand in one
// archive, the RSA ones have to be listed.
func TestOneTPMOfTwoKinds(t *testing.T) {
	ek, key := rsaEndorsement(t)
	cert, ca := certify(t, key)
	ek.Certificate = cert
	j, err := proofs{makers: []string{ca}}.judge(enrolNow)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.certified(ek); err != nil {
		t.Errorf("alone: %v", err)
	}
	ecc, rsa := vectorEnrolment(t), vectorEnrolment(t)
	rsa.EK = ek.Public
	if mixed([]archive.Enrolment{ecc, ecc}) || mixed([]archive.Enrolment{rsa, rsa}) || !mixed([]archive.Enrolment{ecc, rsa}) {
		t.Error("kinds are told apart wrongly")
	}
	j.mixed = true
	if err := j.certified(ek); !errors.Is(err, tpm.ErrEndorsement) {
		t.Errorf("among others: got %v", err)
	}
}

// The digest that goes into the roster is the shown key's.
func TestEntryShowsItsKey(t *testing.T) {
	e := vectorEnrolment(t)
	e.Replica.EK[0] ^= 1
	file := filepath.Join(t.TempDir(), "entry")
	if err := os.WriteFile(file, e.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readEnrolment(file); exitStatus(err) != exitUsage || !strings.Contains(err.Error(), "another endorsement key") {
		t.Errorf("got %v", err)
	}
}
