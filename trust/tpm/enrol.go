package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bonafide-archive/bonafide/trust"
)

// Where makers of TPMs leave the certificates of the endorsement keys (TCG EK
// Credential Profile 2.5, section 2.2.1.4).
const (
	certificateECC = 0x01C0000A
	certificateRSA = 0x01C00002
)

const (
	maxEndorsement = 1 << 10 // bytes of a TPMT_PUBLIC
	maxCertificate = 1 << 13
	certificateCut = 512  // bytes that every TPM reads at once
	maxCredential  = 1024 // bytes of a TPMS_ID_OBJECT, and of its secret

	// SecretSize is the length of the secret of a credential: what one digest of
	// the endorsement keys' name algorithm holds.
	SecretSize = sha256.Size
)

// ErrEndorsement is what every refusal of an endorsement key unwraps to.
var ErrEndorsement = errors.New("endorsement key refused")

// An Endorsement is the endorsement key that a TPM was born with, and its
// maker's certificate of that. The key can only decrypt, and only credentials
// (TPM 2.0 Part 1, section 24): it shows that another key lives in its TPM.
type Endorsement struct {
	Public      []byte // TPMT_PUBLIC, of one of the two templates that all makers share
	Certificate []byte // X.509, in DER; empty where the maker left none
}

// A Credential is a secret that only the TPM with a certain endorsement key,
// and with a certain key loaded beside it, gives up.
type Credential struct {
	Blob   []byte // TPMS_ID_OBJECT
	Secret []byte // TPM2B_ENCRYPTED_SECRET, without its length
}

// ReadEndorsement returns the endorsement key of a TPM: the one that its maker
// certified, preferably on P-256, or the P-256 one where there is no certificate.
func ReadEndorsement(ctx context.Context, t Target) (e Endorsement, err error) {
	err = operate(ctx, t, func(c transport.TPM) error {
		e, err = readEndorsement(c)
		return err
	})
	if err != nil {
		return Endorsement{}, fmt.Errorf("read endorsement key: %w", err)
	}
	return e, nil
}

// operate runs f as one operation on a TPM.
func operate(ctx context.Context, t Target, f func(transport.TPM) error) error {
	l, err := newLine(t)
	if err != nil {
		return err
	}
	return errors.Join(l.do(ctx, f), l.close())
}

func readEndorsement(c transport.TPM) (e Endorsement, err error) {
	template := tpm2.ECCEKTemplate
	if e.Certificate, err = readCertificate(c, certificateECC); err != nil {
		return e, err
	}
	if e.Certificate == nil {
		if e.Certificate, err = readCertificate(c, certificateRSA); err != nil {
			return e, err
		}
		if e.Certificate != nil {
			template = tpm2.RSAEKTemplate
		}
	}
	key, public, err := loadEndorsement(c, template)
	if err != nil {
		return e, err
	}
	e.Public = public
	return e, errors.Join(flush(c, key.Handle), e.Check())
}

// readCertificate returns the certificate in an index, or nil if there is none.
func readCertificate(c transport.TPM, h tpm2.TPMHandle) ([]byte, error) {
	x, err := lookIndex(c, h)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	size := x.public.DataSize
	if size > maxCertificate {
		return nil, fmt.Errorf("index %#x: a certificate of %d bytes", uint32(h), size)
	}
	var b []byte
	for at := uint16(0); at < size; at += certificateCut {
		rsp, err := tpm2.NVRead{
			AuthHandle: x.withPassword(), NVIndex: x.named(),
			Size: min(certificateCut, size-at), Offset: at,
		}.Execute(c)
		if err != nil {
			return nil, fmt.Errorf("index %#x: %w", uint32(h), err)
		}
		b = append(b, rsp.Data.Buffer...)
	}
	return trimDER(b)
}

// trimDER cuts off what pads a certificate to the size of its index.
func trimDER(b []byte) ([]byte, error) {
	var outer asn1.RawValue
	if _, err := asn1.Unmarshal(b, &outer); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return outer.FullBytes, nil
}

// loadEndorsement has the TPM make its endorsement key, which is the same each
// time. The caller flushes it.
func loadEndorsement(c transport.TPM, template tpm2.TPMTPublic) (tpm2.NamedHandle, []byte, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(c)
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		return tpm2.NamedHandle{}, nil, fmt.Errorf("endorsement authorisation is set: clear the TPM in the firmware first: %w", err)
	}
	if err != nil {
		return tpm2.NamedHandle{}, nil, fmt.Errorf("make endorsement key: %w", err)
	}
	return tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, bytes.Clone(rsp.OutPublic.Bytes()), nil
}

func flush(c transport.TPM, h tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: h}.Execute(c)
	return err
}

// Check says whether e is an endorsement key of a TPM 2.0, and its certificate,
// if there is one, about this key. Who signed the certificate is CheckChain's.
func (e Endorsement) Check() error {
	key, err := e.key()
	if err == nil && len(e.Certificate) > 0 {
		_, err = e.certificate(key)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrEndorsement, err)
	}
	return nil
}

// area returns the public area, which has to be a template in everything but
// the key: a key of other attributes could decrypt a credential and hand the
// secret to anyone.
func (e Endorsement) area() (*tpm2.TPMTPublic, error) {
	if len(e.Public) > maxEndorsement {
		return nil, fmt.Errorf("public area of %d bytes", len(e.Public))
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.Public)
	if err != nil {
		return nil, fmt.Errorf("public area: %w", err)
	}
	want, err := templateOf(area.Type)
	if err != nil {
		return nil, err
	}
	want.Unique = area.Unique
	if !bytes.Equal(tpm2.Marshal(want), e.Public) {
		return nil, errors.New("public area is not of the template that makers certify")
	}
	return area, nil
}

func templateOf(kind tpm2.TPMAlgID) (tpm2.TPMTPublic, error) {
	switch kind {
	case tpm2.TPMAlgECC:
		return tpm2.ECCEKTemplate, nil
	case tpm2.TPMAlgRSA:
		return tpm2.RSAEKTemplate, nil
	}
	return tpm2.TPMTPublic{}, fmt.Errorf("key of kind %#x", uint16(kind))
}

// rsaSize is the length of the modulus of an RSA endorsement key, in bytes.
const rsaSize = 256

func (e Endorsement) key() (crypto.PublicKey, error) {
	area, err := e.area()
	if err != nil {
		return nil, err
	}
	if area.Type == tpm2.TPMAlgRSA {
		n, err := area.Unique.RSA()
		if err != nil || len(n.Buffer) != rsaSize || n.Buffer[0]&0x80 == 0 || n.Buffer[rsaSize-1]&1 == 0 {
			return nil, errors.New("not an RSA modulus of 2048 bits")
		}
		return tpm2.Pub(*area)
	}
	key, err := tpm2.Pub(*area)
	if err != nil {
		return nil, err
	}
	// The point has to be on the curve.
	if ec, ok := key.(*ecdsa.PublicKey); !ok {
		return nil, errors.New("not a key on P-256")
	} else if _, err := ec.ECDH(); err != nil {
		return nil, err
	}
	return key, nil
}

// Digest returns what an operator lists and a roster holds of e: the SHA-256 of
// the key's SubjectPublicKeyInfo, as openssl writes it in DER.
func (e Endorsement) Digest() ([32]byte, error) {
	key, err := e.key()
	if err != nil {
		return [32]byte{}, fmt.Errorf("%w: %w", ErrEndorsement, err)
	}
	b, err := x509.MarshalPKIXPublicKey(key)
	return sha256.Sum256(b), err
}

// subjectAltName is critical in certificates that name the TPM there and have
// no subject: x509 knows no directory names in it, and would refuse them all.
var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

func (e Endorsement) certificate(key crypto.PublicKey) (*x509.Certificate, error) {
	if len(e.Certificate) > maxCertificate {
		return nil, fmt.Errorf("certificate of %d bytes", len(e.Certificate))
	}
	cert, err := x509.ParseCertificate(e.Certificate)
	if err != nil {
		return nil, err
	}
	own, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !own.Equal(key) {
		return nil, errors.New("the certificate is another key's")
	}
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions,
		func(id asn1.ObjectIdentifier) bool { return id.Equal(subjectAltName) })
	return cert, nil
}

// CheckChain says whether e's certificate was made by one of the makers' CAs,
// directly or by way of others of them, and is valid at the given time.
func (e Endorsement) CheckChain(makers []*x509.Certificate, at time.Time) error {
	if err := e.checkChain(makers, at); err != nil {
		return fmt.Errorf("%w: %w", ErrEndorsement, err)
	}
	return nil
}

func (e Endorsement) checkChain(makers []*x509.Certificate, at time.Time) error {
	key, err := e.key()
	if err != nil {
		return err
	}
	if len(e.Certificate) == 0 {
		return errors.New("its maker left no certificate in the TPM")
	}
	cert, err := e.certificate(key)
	if err != nil {
		return err
	}
	o := x509.VerifyOptions{
		Roots: x509.NewCertPool(), CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, ca := range makers {
		o.Roots.AddCert(ca)
	}
	_, err = cert.Verify(o)
	return err
}

// Seal returns secret as a credential for the attestation key that id pins, in
// the TPM of e (TPM2_MakeCredential).
func (e Endorsement) Seal(rand io.Reader, id trust.Identity, secret [SecretSize]byte) (Credential, error) {
	cred, err := e.seal(rand, id, secret)
	if err != nil {
		return Credential{}, fmt.Errorf("%w: %w", ErrEndorsement, err)
	}
	return cred, nil
}

func (e Endorsement) seal(rand io.Reader, id trust.Identity, secret [SecretSize]byte) (cred Credential, err error) {
	if _, err := e.key(); err != nil {
		return cred, err
	}
	area, err := e.area()
	if err != nil {
		return cred, err
	}
	key, err := tpm2.ImportEncapsulationKey(area)
	if err != nil {
		return cred, err
	}
	cred.Blob, cred.Secret, err = tpm2.CreateCredential(rand, key, keyName(id.Key), secret[:])
	return cred, err
}

// keyName is the Name of a public area: nameAlg || SHA256(area).
func keyName(area []byte) []byte {
	h := sha256.Sum256(area)
	return append([]byte{byte(tpm2.TPMAlgSHA256 >> 8), byte(tpm2.TPMAlgSHA256)}, h[:]...)
}

// Open has the TPM give up the secret of c (TPM2_ActivateCredential). It does so
// only if e is its own endorsement key, and the key that c was made for is the
// attestation key of the device in it.
func (c Credential) Open(ctx context.Context, t Target, e Endorsement) (secret [SecretSize]byte, err error) {
	area, err := e.area()
	if err != nil {
		return secret, fmt.Errorf("%w: %w", ErrEndorsement, err)
	}
	if len(c.Blob) > maxCredential || len(c.Secret) > maxCredential {
		return secret, errors.New("open credential: too long")
	}
	template, err := templateOf(area.Type)
	if err != nil {
		return secret, fmt.Errorf("open credential: %w", err)
	}
	err = operate(ctx, t, func(tp transport.TPM) error {
		secret, err = c.activate(tp, template)
		return err
	})
	if err != nil {
		return [SecretSize]byte{}, fmt.Errorf("open credential: %w", err)
	}
	return secret, nil
}

func (c Credential) activate(tp transport.TPM, template tpm2.TPMTPublic) (secret [SecretSize]byte, err error) {
	own, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(KeyHandle)}.Execute(tp)
	if err != nil {
		return secret, missing(err)
	}
	ek, _, err := loadEndorsement(tp, template)
	if err != nil {
		return secret, err
	}
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: KeyHandle, Name: own.Name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: ek.Handle, Name: ek.Name, Auth: endorsed()},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Blob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
	}.Execute(tp)
	if err = errors.Join(err, flush(tp, ek.Handle)); err != nil {
		return secret, err
	}
	if len(rsp.CertInfo.Buffer) != SecretSize {
		return secret, fmt.Errorf("a secret of %d bytes", len(rsp.CertInfo.Buffer))
	}
	return [SecretSize]byte(rsp.CertInfo.Buffer), nil
}

// endorsed is the session that lets an endorsement key be used: whoever may use
// the endorsement hierarchy, whose authorisation stays empty.
func endorsed() tpm2.Session {
	return tpm2.Policy(tpm2.TPMAlgSHA256, 16,
		func(c transport.TPM, h tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicySecret{
				AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
				PolicySession: h, NonceTPM: nonce,
			}.Execute(c)
			return err
		})
}

// RSA reports whether e is the TPM's RSA endorsement key. Many TPMs have one of
// each kind, so two keys of different kinds may be in one TPM.
func (e Endorsement) RSA() bool {
	area, err := e.area()
	return err == nil && area.Type == tpm2.TPMAlgRSA
}
