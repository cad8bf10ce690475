package tpm

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	journalFormat  = "bonafide/provision/v1"
	recoveryFormat = "bonafide/recovery/v1"
)

// A journal says which device Provision is making. It ties the device to the
// directory that it is made for: a TPM alone would not show whose it is.
type journal struct {
	Format    string   `json:"format"`
	Agreement hexBytes `json:"agreement_key"` // the public half
	// The recovery file, and the SHA-256 of what it holds, or will.
	Recovery string   `json:"recovery,omitempty"`
	Digest   hexBytes `json:"recovery_sha256,omitempty"`
}

type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, b), nil }

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.AppendDecode(nil, text)
	return err
}

// readJournal returns an error that unwraps to fs.ErrNotExist if there is none.
func readJournal(name string) (j journal, err error) {
	if name == "" {
		return j, fs.ErrNotExist
	}
	b, err := readSmall(name)
	if err != nil {
		return j, fmt.Errorf("journal: %w", err)
	}
	if err := json.Unmarshal(b, &j); err != nil || j.Format != journalFormat {
		return j, fmt.Errorf("journal: %q is not a %s", name, journalFormat)
	}
	return j, nil
}

func (j journal) write(name string) error {
	if name == "" {
		return nil
	}
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return replace(name, append(b, '\n'))
}

// sameRecovery refuses to finish a device with another recovery file than it was
// begun with: the owner authorisation is in that, or nowhere.
func (j journal) sameRecovery(want string) error {
	switch {
	case j.Recovery == want:
		return nil
	case j.Recovery == "":
		return errors.New("the device was begun without a recovery file, and its owner authorisation is gone")
	}
	return fmt.Errorf("the device was begun with the recovery file %q: name that", j.Recovery)
}

// auths are the authorisations that shut the hierarchies.
type auths struct{ owner, lockout []byte }

// text is what a recovery file holds. The words after the names are as the tools
// of the TPM software stack take them.
func (a auths) text() []byte {
	return fmt.Appendf(nil, "%s\nowner hex:%x\nlockout hex:%x\n", recoveryFormat, a.owner, a.lockout)
}

// auths reads the recovery file that j names.
func (j journal) auths() (a auths, err error) {
	b, err := readSmall(j.Recovery)
	if err != nil {
		return a, fmt.Errorf("recovery file: %w", err)
	}
	if sum := sha256.Sum256(b); !bytes.Equal(sum[:], j.Digest) {
		return a, fmt.Errorf("recovery file: %q is not the one that was begun with: %w", j.Recovery, fs.ErrExist)
	}
	_, err = fmt.Sscanf(string(b), recoveryFormat+"\nowner hex:%x\nlockout hex:%x\n", &a.owner, &a.lockout)
	return a, err
}

// begin draws a new device's secrets and has the journal, and the recovery file
// if there is to be one, on the disk when it returns.
func (m maker) begin() (seed []byte, a auths, err error) {
	was, err := readJournal(m.Journal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, a, err
	}
	a, kept, err := m.before(was)
	if err != nil {
		return nil, a, err
	}
	seed = make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(m.rand, seed); err != nil {
		return nil, a, err
	}
	j := journal{Format: journalFormat, Agreement: hexBytes(agreementKey(seed)), Recovery: m.Recovery}
	if m.Recovery != "" {
		sum := sha256.Sum256(a.text())
		j.Digest = sum[:]
	}
	if err := j.write(m.Journal); err != nil || m.Recovery == "" || kept {
		return seed, a, err
	}
	return seed, a, create(m.Recovery, a.text())
}

// before returns the authorisations to use: those in the recovery file of an
// earlier call that was cut off, which are then kept already, or new ones. It
// leaves no such file without a use, and touches no other.
func (m maker) before(was journal) (a auths, kept bool, err error) {
	if was.Recovery != "" {
		if a, err = was.auths(); err == nil {
			return a, true, was.sameRecovery(m.Recovery)
		}
	}
	if m.Recovery != "" {
		if err := m.vacate(was); err != nil {
			return a, false, err
		}
	}
	a, err = newAuths(m.rand)
	return a, false, err
}

// vacate makes sure that nothing lies where the recovery file is to be. An empty
// file that the journal names is an earlier call's, cut off before its one write.
func (m maker) vacate(was journal) error {
	info, err := os.Lstat(m.Recovery)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && was.Recovery == m.Recovery && info.Mode().IsRegular() && info.Size() == 0 {
		return os.Remove(m.Recovery)
	}
	if err == nil {
		err = fs.ErrExist
	}
	return fmt.Errorf("recovery file %q: %w", m.Recovery, err)
}

func newAuths(rand io.Reader) (auths, error) {
	b := make([]byte, 2*authSize)
	_, err := io.ReadFull(rand, b)
	return auths{b[:authSize], b[authSize:]}, err
}

// rest returns the authorisations for what adopt has to shut.
func (m maker) rest(j journal) (auths, error) {
	if j.Recovery != "" {
		return j.auths()
	}
	return newAuths(m.rand)
}

// create makes a file that only its owner can read, and has it on the disk.
func create(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return syncDir(filepath.Dir(name))
}

// replace puts a file in place whole, and on the disk.
func replace(name string, b []byte) error {
	next := name + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := create(next, b); err != nil {
		return err
	}
	if err := os.Rename(next, name); err != nil {
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
