package cmd

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/soft"
	"github.com/bonafide-archive/bonafide/trust/tpm"
)

// Kinds of MAS that a replica can be made with.
const (
	masSoftware = "software"
	masSwtpm    = "swtpm"
	masTPM      = "tpm"
)

// tpmDevice is the resource-managed TPM of a machine.
const tpmDevice = "/dev/tpmrm0"

// Files in a replica's directory, beside its three parts. Losing store is
// repairable; losing mas is losing the device.
const (
	memberFile = "replica.json"
	entryFile  = "entry.json"
	serviceKey = "service.key"
	rosterFile = "roster.json"
	masDir     = "mas"
	storeDir   = "store"
	runDir     = "run"
)

const memberFormat = "bonafide/replica/v1"

// member is what a replica's directory says of itself.
type member struct {
	Format string `json:"format"`
	ID     uint32 `json:"id"`
	MAS    string `json:"mas"`
	// Profile is set for measured only: the others follow from MAS.
	Profile trust.Profile `json:"profile,omitempty"`

	dir string
}

// path names a file of the replica.
func (m member) path(elem ...string) string {
	return filepath.Join(append([]string{m.dir}, elem...)...)
}

// openMember reads what newMember wrote.
func openMember(dir string) (member, error) {
	m := member{dir: dir}
	b, err := readFile(m.path(memberFile), maxSmallFile)
	if err != nil {
		err = withStatus(exitUsage, fmt.Errorf("%s is not a replica's directory: %w", quote(dir), err))
		return m, withHint(err, "bonafide init replica makes one; bonafide serve alone makes a whole trial archive")
	}
	if err := json.Unmarshal(b, &m); err != nil || m.Format != memberFormat || m.ID == 0 {
		return m, usagef("%s: not a %s", quote(m.path(memberFile)), memberFormat)
	}
	return m, checkMAS(m.MAS)
}

func checkMAS(kind string) error {
	switch kind {
	case masSoftware, masSwtpm, masTPM:
		return nil
	}
	return usagef("--mas %s: want %s, %s or %s", quote(kind), masSoftware, masSwtpm, masTPM)
}

// newMember provisions the replica m in its directory: its device, of profile
// measured if so told, its service key, and last the files that make it one. It
// returns what the maker of the roster needs.
func newMember(ctx context.Context, m member, by *measure, address, agreement string) (archive.Enrolment, error) {
	id := m.ID
	m.Format = memberFormat
	if err := m.vacant(); err != nil {
		return archive.Enrolment{}, err
	}
	for _, d := range []string{m.path(storeDir), m.path(runDir), m.path(masDir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return archive.Enrolment{}, err
		}
	}
	if by != nil {
		m.Profile = trust.ProfileMeasured
		if err := m.measure(*by); err != nil {
			return archive.Enrolment{}, err
		}
	}
	ek, digest, err := m.endorsement(ctx)
	if err != nil {
		return archive.Enrolment{}, fmt.Errorf("replica %d: %w", id, err)
	}
	identity, key, err := m.provision(ctx)
	if err != nil {
		return archive.Enrolment{}, fmt.Errorf("replica %d: %w", id, err)
	}
	service, err := newKey(m.path(serviceKey), rand.Reader)
	if err != nil {
		return archive.Enrolment{}, fmt.Errorf("service key: %w", err)
	}
	entry := archive.Replica{
		ID: id, Address: address, Agreement: agreement,
		TLS: wire.KeyPin(publicOf(service)), Key: archive.PublicKey(key), MAS: identity, EK: digest,
	}
	e, err := archive.NewEnrolment(entry, ek.Public, ek.Certificate)
	if err != nil {
		return e, err
	}
	err = errors.Join(writeFile(m.path(entryFile), e.Bytes(), 0o644), writeJSON(m.path(memberFile), m))
	return e, err
}

func (m member) vacant() error {
	for _, f := range []string{memberFile, serviceKey} {
		if exists(m.path(f)) {
			err := withStatus(exitUsage, fmt.Errorf("%s: %w", quote(m.path(f)), fs.ErrExist))
			return withHint(err, "%s holds a replica already; its roster entry is %s", quote(m.dir), quote(m.path(entryFile)))
		}
	}
	return nil
}

func (m member) provision(ctx context.Context) (trust.Identity, ed25519.PublicKey, error) {
	switch m.MAS {
	case masSoftware:
		return soft.Provision(m.path(masDir), rand.Reader)
	case masTPM:
		return tpm.Provision(ctx, m.target(), tpm.Setup{}, rand.Reader)
	}
	s, err := tpm.StartSwtpm(ctx, m.path(masDir), m.path(runDir))
	if err != nil {
		return trust.Identity{}, nil, withHint(err, "is swtpm installed? (apt install swtpm)")
	}
	defer s.Stop()
	return tpm.Provision(ctx, m.target(), tpm.Setup{}, rand.Reader)
}

// openMAS opens the replica's device, which for an swtpm its watchdog runs.
func (m member) openMAS(ctx context.Context) (trust.MAS, error) {
	if m.MAS == masSoftware {
		return soft.Open(m.path(masDir))
	}
	return tpm.Open(ctx, m.target())
}

// target is where the replica's TPM is, or will be once its swtpm runs.
func (m member) target() (t tpm.Target) {
	if m.MAS == masTPM {
		t.Device = tpmDevice
	} else {
		t.Socket = m.path(runDir, "tpm.sock")
	}
	if m.Profile == trust.ProfileMeasured {
		t.Approvals = m.path(masDir, approvalsDir)
	}
	return t
}

// roster returns the roster that the replica serves, provided that it is in it
// and has countersigned it.
func (m member) roster() (*archive.Roster, error) {
	r, err := loadRoster(m.path(rosterFile))
	if err != nil {
		return nil, withHint(err, "bonafide serve --dir %s --roster FILE gives a replica its roster", quote(m.dir))
	}
	if err := m.standsIn(r); err != nil {
		return r, err
	}
	return r, m.countersigned(r)
}

// standsIn checks that the roster's entry for this replica is its own.
func (m member) standsIn(r *archive.Roster) error {
	entry, ok := r.Replica(m.ID)
	if !ok {
		return usagef("%w: replica %d does not stand in archive %s", archive.ErrRoster, m.ID, quote(r.Name))
	}
	key, err := loadKey(m.path(serviceKey))
	if err != nil {
		return err
	}
	if wire.KeyPin(publicOf(key)) != entry.TLS {
		return usagef("%w: replica %d of archive %s has another service key than %s", archive.ErrRoster, m.ID, quote(r.Name), quote(m.path(serviceKey)))
	}
	return nil
}

// adopt keeps the roster in the replica's directory, with the replica's word for
// it. One device serves one archive, so another roster is refused.
func (m member) adopt(r *archive.Roster) error {
	if err := m.standsIn(r); err != nil {
		return err
	}
	if !exists(m.path(rosterFile)) {
		return m.accept(r)
	}
	have, err := loadRoster(m.path(rosterFile))
	if err != nil {
		return err
	}
	if have.ID() != r.ID() {
		return usagef("%w: %s serves archive %s already, not %s", archive.ErrRoster, quote(m.dir), have.ID(), r.ID())
	}
	if !exists(m.path(countersignFile)) {
		return m.accept(r)
	}
	return nil
}

// accept puts the replica's name to a roster that holds its entry as it is.
func (m member) accept(r *archive.Roster) error {
	if err := m.sameEntry(r); err != nil {
		return err
	}
	if _, err := m.countersign(r); err != nil {
		return err
	}
	return writeFile(m.path(rosterFile), r.Bytes(), 0o644)
}

func writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(name, append(b, '\n'), 0o644)
}

// nextPort returns the address whose port is n above that of address.
func nextPort(address string, n int) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", usagef("address %s: want HOST:PORT", quote(address))
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || p == 0 || int(p)+n > 65535 {
		return "", usagef("address %s: want HOST:PORT", quote(address))
	}
	return net.JoinHostPort(host, strconv.Itoa(int(p)+n)), nil
}
