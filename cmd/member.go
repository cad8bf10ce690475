package cmd

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// tpmDevice is the resource-managed TPM of a machine, unless a replica names
// another.
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

	journalFile = "provision.json" // in mas, until the replica is made
)

const memberFormat = "bonafide/replica/v1"

// member is what a replica's directory says of itself.
type member struct {
	Format string `json:"format"`
	ID     uint32 `json:"id"`
	MAS    string `json:"mas"`
	// Device is the TPM's, if it is not tpmDevice.
	Device string `json:"device,omitempty"`
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

// newMember provisions a replica in its directory: its device, its service key,
// and last the files that make it one. It returns what the maker of the roster
// needs. Called again after it was cut off, it goes on with what there is.
func newMember(ctx context.Context, n newReplica) (archive.Enrolment, error) {
	m := n.member
	m.Format = memberFormat
	lock, err := m.begin()
	if err != nil {
		return archive.Enrolment{}, err
	}
	defer lock.Close()
	if trust.Profile(n.profile) == trust.ProfileMeasured {
		m.Profile = trust.ProfileMeasured
		if err := m.measure(n.by); err != nil {
			return archive.Enrolment{}, err
		}
	}
	e, err := m.enrol(ctx, n)
	if err != nil {
		return e, fmt.Errorf("replica %d: %w", m.ID, err)
	}
	if err := errors.Join(writeFile(m.path(entryFile), e.Bytes(), 0o644), writeJSON(m.path(memberFile), m)); err != nil {
		return e, err
	}
	return e, m.forget(journalFile)
}

// begin makes the replica's directories, durably, and takes its lock.
func (m member) begin() (io.Closer, error) {
	if err := m.vacant(); err != nil {
		return nil, err
	}
	for _, d := range []string{m.path(storeDir), m.path(runDir), m.path(masDir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(syncDir(m.dir), syncDir(filepath.Dir(filepath.Clean(m.dir)))); err != nil {
		return nil, err
	}
	return m.claim()
}

func (m member) vacant() error {
	if !exists(m.path(memberFile)) {
		return nil
	}
	err := withStatus(exitUsage, fmt.Errorf("%s: %w", quote(m.path(memberFile)), fs.ErrExist))
	return withHint(err, "%s holds a replica already; its roster entry is %s", quote(m.dir), quote(m.path(entryFile)))
}

// enrol makes the device and the service key.
func (m member) enrol(ctx context.Context, n newReplica) (archive.Enrolment, error) {
	ek, digest, err := m.endorsement(ctx)
	if err != nil {
		return archive.Enrolment{}, err
	}
	identity, key, err := m.provision(ctx, n)
	if err != nil {
		return archive.Enrolment{}, err
	}
	service, err := m.ownKey()
	if err != nil {
		return archive.Enrolment{}, fmt.Errorf("service key: %w", err)
	}
	return archive.NewEnrolment(archive.Replica{
		ID: m.ID, Address: n.address, Agreement: n.agreement,
		TLS: wire.KeyPin(publicOf(service)), Key: archive.PublicKey(key), MAS: identity, EK: digest,
	}, ek.Public, ek.Certificate)
}

// ownKey returns the replica's service key. One that is there was made before
// newMember was cut off.
func (m member) ownKey() (ed25519.PrivateKey, error) {
	if exists(m.path(serviceKey)) {
		return loadKey(m.path(serviceKey))
	}
	return newKey(m.path(serviceKey), rand.Reader)
}

// forget removes a file of mas that is of no more use.
func (m member) forget(name string) error {
	if err := os.Remove(m.path(masDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(m.path(masDir))
}

func (m member) provision(ctx context.Context, n newReplica) (id trust.Identity, key ed25519.PublicKey, err error) {
	if m.MAS == masSoftware {
		id, key, err = m.provisionSoft()
	} else {
		id, key, err = m.provisionTPM(ctx, n)
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		err = withStatus(exitUsage, err)
	case errors.Is(err, tpm.ErrPlatform):
		err = withHint(err, "--allow-open-platform makes the device all the same")
	}
	return id, key, err
}

func (m member) provisionTPM(ctx context.Context, n newReplica) (id trust.Identity, key ed25519.PublicKey, err error) {
	s := tpm.Setup{Journal: m.path(masDir, journalFile), Recovery: n.recovery, OpenPlatform: n.openPlatform}
	err = m.withTPM(ctx, func(t tpm.Target) error {
		id, key, err = tpm.Provision(ctx, t, s, rand.Reader)
		return err
	})
	return id, key, err
}

// provisionSoft makes a software device, or returns the one that was made before
// newMember was cut off.
func (m member) provisionSoft() (trust.Identity, ed25519.PublicKey, error) {
	id, key, err := soft.Provision(m.path(masDir), rand.Reader)
	if errors.Is(err, fs.ErrExist) {
		return soft.Unused(m.path(masDir))
	}
	return id, key, err
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
	switch info, err := os.Stat(m.Device); {
	case m.MAS != masTPM:
		t.Socket = m.path(runDir, "tpm.sock")
	case m.Device == "":
		t.Device = tpmDevice
	case err == nil && info.Mode()&fs.ModeSocket != 0:
		t.Socket = m.Device
	default:
		t.Device = m.Device
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
