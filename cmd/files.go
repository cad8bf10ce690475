package cmd

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bonafide-archive/bonafide/archive"
)

// maxSmallFile bounds configuration, key and entry files.
const maxSmallFile = 1 << 20

// writeFile puts a file in place whole, and on the disk.
func writeFile(name string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readFile reads a file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: over %d bytes", quote(name), limit)
	}
	return b, err
}

// exists reports whether something is called name. What cannot be looked at
// counts as there.
func exists(name string) bool {
	_, err := os.Lstat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

// A private key lies in a file as PKCS #8 in PEM, which openssl reads too.
const pemPrivate = "PRIVATE KEY"

// newKey makes a key in a file that must not be there yet.
func newKey(name string, rand io.Reader) (ed25519.PrivateKey, error) {
	if exists(name) {
		return nil, fmt.Errorf("%s: %w", quote(name), fs.ErrExist)
	}
	_, key, err := ed25519.GenerateKey(rand)
	if err != nil {
		return nil, err
	}
	return key, savePrivate(name, key)
}

// savePrivate puts a private key, of a kind that PKCS #8 has, in place.
func savePrivate(name string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writeFile(name, pem.EncodeToMemory(&pem.Block{Type: pemPrivate, Bytes: der}), 0o600)
}

// loadKey reads what newKey wrote.
func loadKey(name string) (ed25519.PrivateKey, error) {
	any, err := loadPrivate(name)
	if err != nil {
		return nil, err
	}
	key, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, usagef("%s: not an Ed25519 key", quote(name))
	}
	return key, nil
}

// loadPrivate reads what savePrivate wrote.
func loadPrivate(name string) (any, error) {
	b, err := readFile(name, maxSmallFile)
	if err != nil {
		return nil, withStatus(exitUsage, err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemPrivate {
		return nil, usagef("%s: not a private key in PEM", quote(name))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, usagef("%s: %w", quote(name), err)
	}
	return key, nil
}

func publicOf(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// loadRoster reads and checks a roster.
func loadRoster(name string) (*archive.Roster, error) {
	b, err := readFile(name, archive.MaxRoster)
	if err != nil {
		return nil, withStatus(exitUsage, fmt.Errorf("roster: %w", err))
	}
	r, err := archive.ParseRoster(b)
	if err != nil {
		return nil, withStatus(exitUsage, fmt.Errorf("%s: %w", quote(name), err))
	}
	return r, nil
}

// lockFile takes the lock that whoever works on dir holds meanwhile.
func lockFile(name, dir string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, withHint(withStatus(exitLocked, fmt.Errorf("%s is in use by another process", quote(dir))),
			"a bonafide serve is running on it; bonafide update and audit --dir %s ask that", quote(dir))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", quote(name), err)
	}
	return f, nil
}
