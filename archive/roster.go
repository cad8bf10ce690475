package archive

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/bonafide-archive/bonafide/trust"
)

const rosterFormat = "bonafide/roster/v1"

// Bounds of a roster.
const (
	MaxRoster    = 4 << 20 // bytes
	MaxReplicas  = 16      // f = 5; what one agreement holds
	maxWriters   = 10_000
	maxOperators = 100
)

// Roster lists who an archive is made of: its replicas with their keys and
// trusted devices, its writers and operators, and its schedule and limits. The
// SHA-256 of the first roster is the archive's ID.
type Roster struct {
	Format    string      `json:"format"`
	Name      string      `json:"name"`
	Created   time.Time   `json:"created"` // whole seconds, UTC; the time of epoch 0
	Hash      string      `json:"hash"`    // "sha-256"
	F         int         `json:"f"`       // faulty replicas tolerated; there are 3f+1
	Schedule  Schedule    `json:"schedule"`
	Limits    Limits      `json:"limits"`
	Replicas  []Replica   `json:"replicas"` // by ascending ID
	Writers   []Writer    `json:"writers"`
	Operators []PublicKey `json:"operators"`
	Threshold int         `json:"threshold"` // operators needed to change the roster
}

// Limits bounds the update phase and what a replica takes.
type Limits struct {
	Phase         Duration `json:"phase"`          // hard end of an update phase
	Join          Duration `json:"join"`           // how long to wait for peers to join
	Grace         Duration `json:"grace"`          // how long to wait for all N proposals once Q are there
	Linger        Duration `json:"linger"`         // how long to serve late peers after the head is stored
	Propose       Duration `json:"propose"`        // engine: wait for the leader
	ProposeDelta  Duration `json:"propose_delta"`  // engine: more of it each round
	Vote          Duration `json:"vote"`           // engine: wait for votes
	VoteDelta     Duration `json:"vote_delta"`     // engine: more of it each round
	SubmissionAge Duration `json:"submission_age"` // how old a submission may get before it is bound
	ContentSize   uint64   `json:"content_size"`   // bytes
}

// DefaultLimits are those of an archive on machines that reboot.
func DefaultLimits() Limits {
	return Limits{
		Phase: Duration(10 * time.Minute), Join: Duration(2 * time.Minute),
		Grace: Duration(30 * time.Second), Linger: Duration(time.Minute),
		Propose: Duration(5 * time.Second), ProposeDelta: Duration(time.Second),
		Vote: Duration(time.Second), VoteDelta: Duration(500 * time.Millisecond),
		SubmissionAge: Duration(30 * 24 * time.Hour), ContentSize: 1 << 40,
	}
}

// TrialLimits are those of a trial on one machine whose phases are period
// apart: a phase of at most 20 s, and less when the period asks for it.
func TrialLimits(period time.Duration) Limits {
	phase := min(20*time.Second, period*4/5)
	l := DefaultLimits()
	l.Phase, l.Join = Duration(phase), Duration(phase/4)
	l.Grace, l.Linger = Duration(phase/20), Duration(phase/4)
	l.Propose, l.ProposeDelta = Duration(phase/10), Duration(phase/20)
	l.Vote, l.VoteDelta = Duration(phase/20), Duration(phase/40)
	return l
}

// Replica is a member's entry in the roster.
type Replica struct {
	ID        uint32         `json:"id"`        // 1 or more
	Address   string         `json:"address"`   // HOST:PORT of the service
	Agreement string         `json:"agreement"` // HOST:PORT of the agreement engine
	TLS       Digest         `json:"tls"`       // SHA-256 of the service key's SubjectPublicKeyInfo
	Key       PublicKey      `json:"key"`       // agreement key
	MAS       trust.Identity `json:"mas"`
	// EK is the SHA-256 of the SubjectPublicKeyInfo of the TPM's endorsement key;
	// zero for a software device.
	EK Digest `json:"ek,omitzero"`
}

// Writer is who may add names.
type Writer struct {
	Key      PublicKey `json:"key"`
	Prefixes []string  `json:"prefixes"` // of the names it may write; none: all names
	Names    uint64    `json:"names"`    // pending names at most
	Bytes    uint64    `json:"bytes"`    // pending content bytes at most
}

// Bytes returns the roster's one encoding: JSON, indented.
func (r *Roster) Bytes() []byte {
	b, err := encodeText(r)
	if err != nil {
		panic("archive: encode roster: " + err.Error())
	}
	return b
}

// ID returns the SHA-256 of Bytes: the archive ID, when r is its first roster.
func (r *Roster) ID() Digest { return DigestOf(r.Bytes()) }

// ParseRoster parses and checks what Bytes returns.
func ParseRoster(b []byte) (*Roster, error) {
	if len(b) > MaxRoster {
		return nil, fmt.Errorf("%w: %d bytes", ErrRoster, len(b))
	}
	r := new(Roster)
	if err := decodeText(b, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRoster, err)
	}
	return r, r.Check()
}

// N returns the number of replicas.
func (r *Roster) N() int { return len(r.Replicas) }

// Quorum returns 2f+1.
func (r *Roster) Quorum() int { return 2*r.F + 1 }

// Replica returns the entry with the given ID.
func (r *Roster) Replica(id uint32) (Replica, bool) {
	for _, m := range r.Replicas {
		if m.ID == id {
			return m, true
		}
	}
	return Replica{}, false
}

// Admit returns the writer with the given key ID, provided that archive is the
// ID of r.
func (r *Roster) Admit(archive Digest, id KeyID) (Writer, error) {
	if archive != r.ID() {
		return Writer{}, fmt.Errorf("%w: for archive %s", ErrNotWriter, archive)
	}
	for _, w := range r.Writers {
		if KeyIDOf(ed25519.PublicKey(w.Key)) == id {
			return w, nil
		}
	}
	return Writer{}, fmt.Errorf("%w: unknown key %s", ErrNotWriter, id)
}

// Profile returns the weakest MAS profile among the replicas.
func (r *Roster) Profile() trust.Profile {
	var all []trust.Profile
	for _, m := range r.Replicas {
		all = append(all, m.MAS.Profile)
	}
	return trust.Weakest(all...)
}

// Check returns an ErrRoster that says what contradicts itself in r, or nil.
func (r *Roster) Check() error {
	switch {
	case r.Format != rosterFormat:
		return fmt.Errorf("%w: format %q, want %q", ErrRoster, r.Format, rosterFormat)
	case len(r.Name) == 0 || len(r.Name) > 100 || checkText(r.Name) != nil:
		return fmt.Errorf("%w: archive name %q", ErrRoster, r.Name)
	case r.Hash != "sha-256":
		return fmt.Errorf("%w: hash %q", ErrRoster, r.Hash)
	case r.Created.Location() != time.UTC || r.Created.Nanosecond() != 0:
		return fmt.Errorf("%w: created is not in whole seconds of UTC", ErrRoster)
	case r.F < 1 || len(r.Replicas) != 3*r.F+1 || len(r.Replicas) > MaxReplicas:
		return fmt.Errorf("%w: %d replicas with f = %d, want 3f+1, at most %d", ErrRoster, len(r.Replicas), r.F, MaxReplicas)
	case len(r.Writers) > maxWriters || len(r.Operators) > maxOperators:
		return fmt.Errorf("%w: %d writers, %d operators", ErrRoster, len(r.Writers), len(r.Operators))
	case r.Threshold < 0 || r.Threshold > len(r.Operators) || (r.Threshold == 0) != (len(r.Operators) == 0):
		return fmt.Errorf("%w: threshold %d of %d operators", ErrRoster, r.Threshold, len(r.Operators))
	}
	if err := r.Schedule.Check(); err != nil {
		return err
	}
	if err := r.Limits.check(); err != nil {
		return err
	}
	return r.checkMembers()
}

func (l Limits) check() error {
	for _, d := range []Duration{l.Phase, l.Join, l.Grace, l.Linger, l.Propose, l.Vote, l.SubmissionAge} {
		if d <= 0 {
			return fmt.Errorf("%w: a limit of %s", ErrRoster, d.Std())
		}
	}
	if l.ProposeDelta < 0 || l.VoteDelta < 0 || l.Join+l.Grace >= l.Phase {
		return fmt.Errorf("%w: join window and grace do not fit the phase", ErrRoster)
	}
	return nil
}

func (r *Roster) checkMembers() error {
	seen := make(map[string]bool)
	unique := func(what, v string) error {
		if seen[what+v] {
			return fmt.Errorf("%w: %s %s stands twice", ErrRoster, what, v)
		}
		seen[what+v] = true
		return nil
	}
	for i, m := range r.Replicas {
		if i > 0 && r.Replicas[i-1].ID >= m.ID {
			return fmt.Errorf("%w: replica IDs are not ascending", ErrRoster)
		}
		if err := m.Check(); err != nil {
			return err
		}
		for _, u := range [][2]string{{"address", m.Address}, {"address", m.Agreement}, {"TLS key", m.TLS.String()},
			{"agreement key", m.Key.String()}, {"MAS key", hex.EncodeToString(m.MAS.Key)}, {"endorsement key", m.EK.String()}} {
			if u[0] == "endorsement key" && m.EK.IsZero() {
				continue
			}
			if err := unique(u[0], u[1]); err != nil {
				return fmt.Errorf("%w: replica %d", err, m.ID)
			}
		}
	}
	for _, w := range r.Writers {
		if err := w.check(); err != nil {
			return err
		}
		if err := unique("writer", w.Key.String()); err != nil {
			return err
		}
	}
	for _, k := range r.Operators {
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("%w: operator key of %d bytes", ErrRoster, len(k))
		}
		if err := unique("operator", k.String()); err != nil {
			return err
		}
	}
	return nil
}

// Check returns an ErrRoster if the entry alone is unusable.
func (m Replica) Check() error {
	if m.ID == 0 {
		return fmt.Errorf("%w: replica ID 0", ErrRoster)
	}
	for _, a := range []string{m.Address, m.Agreement} {
		if err := checkAddress(a); err != nil {
			return fmt.Errorf("%w: replica %d: %v", ErrRoster, m.ID, err)
		}
	}
	if len(m.Key) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: replica %d: agreement key of %d bytes", ErrRoster, m.ID, len(m.Key))
	}
	if err := m.MAS.Check(); err != nil {
		return fmt.Errorf("%w: replica %d: %v", ErrRoster, m.ID, err)
	}
	if (m.MAS.Profile == trust.ProfileSoftware) != m.EK.IsZero() {
		return fmt.Errorf("%w: replica %d: an endorsement key stands with a TPM, and with nothing else", ErrRoster, m.ID)
	}
	return nil
}

func checkAddress(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(port); host == "" || err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("address %q: want HOST:PORT", a)
	}
	return nil
}

func (w Writer) check() error {
	if len(w.Key) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: writer key of %d bytes", ErrRoster, len(w.Key))
	}
	for _, p := range w.Prefixes {
		if err := CheckPrefix(p); err != nil || p == "" {
			return fmt.Errorf("%w: writer prefix %q", ErrRoster, p)
		}
	}
	return nil
}

// NewRoster returns the first roster of an archive, checked.
func NewRoster(name string, created time.Time, schedule Schedule, limits Limits, replicas []Replica, writers []Writer, operators []PublicKey) (*Roster, error) {
	r := &Roster{
		Format: rosterFormat, Name: name, Created: created.UTC().Truncate(time.Second), Hash: "sha-256",
		F: (len(replicas) - 1) / 3, Schedule: schedule, Limits: limits,
		Replicas: replicas, Writers: writers, Operators: operators, Threshold: len(operators)/2 + 1,
	}
	if len(operators) == 0 {
		r.Operators, r.Threshold = []PublicKey{}, 0
	}
	return r, r.Check()
}
