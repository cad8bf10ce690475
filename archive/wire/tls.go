package wire

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// NewCertificate returns a self-signed certificate for key. Only its key means
// anything: that is what a roster pins.
func NewCertificate(key ed25519.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "bonafide"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280: no end
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// KeyPin returns the SHA-256 of the key's SubjectPublicKeyInfo, by which a
// roster pins a service key.
func KeyPin(pub ed25519.PublicKey) archive.Digest {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		panic("wire: encode public key: " + err.Error())
	}
	return archive.DigestOf(der)
}

// ServiceTLS is the server side of the service phase: it shows the service key
// and asks nobody for a certificate.
func ServiceTLS(key ed25519.PrivateKey) (*tls.Config, error) {
	cert, err := NewCertificate(key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2", "http/1.1"},

		DynamicRecordSizingDisabled: true, // contents want long records
	}, nil
}

// MutualTLS is the server side of the update phase: it shows the replica's own
// agreement key and takes connections only from those who show that of another
// replica in the roster. PeerID tells which.
func MutualTLS(key ed25519.PrivateKey, r *archive.Roster) (*tls.Config, error) {
	c, err := ServiceTLS(key)
	if err != nil {
		return nil, err
	}
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := PeerID(&cs, r)
		return err
	}
	return c, nil
}

// PeerID returns the replica whose agreement key the other side has shown.
func PeerID(cs *tls.ConnectionState, r *archive.Roster) (uint32, error) {
	key, err := peerKey(cs)
	if err != nil {
		return 0, err
	}
	for _, m := range r.Replicas {
		if bytes.Equal(m.Key, key) {
			return m.ID, nil
		}
	}
	return 0, ErrPin
}

func peerKey(cs *tls.ConnectionState) (ed25519.PublicKey, error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return nil, fmt.Errorf("%w: none", ErrPin)
	}
	key, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: not Ed25519", ErrPin)
	}
	return key, nil
}

// clientTLS accepts the replica m only. With an agreement key it shows that,
// and m may show either of its keys; without, m must be in its service phase.
func clientTLS(m archive.Replica, key ed25519.PrivateKey) *tls.Config {
	c := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection pins the key instead
		VerifyConnection:   func(cs tls.ConnectionState) error { return checkPin(&cs, m, key != nil) },
		NextProtos:         []string{"h2", "http/1.1"},

		DynamicRecordSizingDisabled: true,
	}
	if key == nil {
		return c
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := NewCertificate(key)
		return &cert, err
	}
	return c
}

func checkPin(cs *tls.ConnectionState, m archive.Replica, updating bool) error {
	key, err := peerKey(cs)
	switch {
	case err != nil:
		return err
	case KeyPin(key) == m.TLS:
		return nil
	case !bytes.Equal(key, m.Key):
		return fmt.Errorf("replica %d: %w", m.ID, ErrPin)
	case !updating:
		return fmt.Errorf("replica %d: %w", m.ID, ErrUpdating)
	}
	return nil
}
