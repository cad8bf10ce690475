package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/trust"
)

// Quotas of a writer that init or a trial makes.
const (
	writerNames = 100_000
	writerBytes = 64 << 30
)

func (a *app) initCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a replica, a writer or an archive",
		Long: `Make the parts of an archive on several machines.

On each machine, bonafide init replica provisions the trusted device and the
keys and prints the replica's entry. Each writer makes a key with bonafide init
writer and passes on its public line. A TPM proves that an entry is its own:
bonafide init challenge, made from the entry, is answered on the replica by
bonafide init answer. From all these, bonafide init archive makes the roster,
which every replica and every client needs, and which they must get by a way
they trust: its digest is the archive's ID. The replicas countersign it with
bonafide init countersign, and bonafide init members checks that all have.

Where a TPM is to let only approved boots write, bonafide init approver makes the
key that approves them, bonafide init boot prints what a machine booted, bonafide
init approve signs that, and bonafide init replica --profile measured or bonafide
init approval brings the approval to the replica.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.initReplicaCommand(), a.initWriterCommand(), a.initChallengeCommand(), a.initAnswerCommand(),
		a.initArchiveCommand(), a.initCountersignCommand(), a.initMembersCommand(),
		a.initApproverCommand(), a.initBootCommand(), a.initApproveCommand(), a.initApprovalCommand())
	return c
}

func (a *app) initReplicaCommand() *cobra.Command {
	var n newReplica
	c := &cobra.Command{
		Use:   "replica --dir DIR --id N --address HOST:PORT",
		Short: "Provision a replica and print its roster entry",
		Long: `Provision the trusted device and the service key of one replica in a directory
and print its entry for the roster. In that directory, losing store/ whole is
repairable; losing mas/ is losing the device.

The MAS is software (a file: for trials, protects from nobody who can write it),
swtpm (a software TPM of its own: the real backend, no real protection) or tpm
(the TPM of this machine, or the socket of an swtpm that others keep). A TPM
wears out: with an update phase every hour in about three years, every six hours
in seventeen.

With tpm the replica takes the machine's TPM for good, and asks first; in scripts
--yes answers. The owner and lockout authorisations are set at random and thrown
away. What other programs keep in the TPM goes on working, and so does its
endorsement hierarchy, but nobody can keep more in it, remove anything or end its
lockout after wrong passwords, and only the firmware can clear it, which ends the
device. With --recovery both are
written once to a new file; whoever has that can give the TPM back to its owner,
and forge what the replica says. Take it off the machine. A TPM whose firmware
leaves the platform hierarchy open, so that anyone could remake the device, is
refused without --allow-open-platform.

If the command is cut off at any moment, by a crash or a loss of power, run it
again as it was: it finishes what it began.

A device of profile lock takes writes from whatever program runs first after a
boot, one of profile measured from boots alone that an approver has approved:
--approver is the line that bonafide init approver printed, and --approval holds
what bonafide init approve says to the present boot.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.initReplica(c.Context(), n)
		},
	}
	f := c.Flags()
	f.StringVar(&n.dir, "dir", "", "`directory` of the replica")
	f.Uint32Var(&n.ID, "id", 0, "the replica's `number` in the roster, 1 or more")
	f.StringVar(&n.address, "address", "", "`HOST:PORT` of the service")
	f.StringVar(&n.agreement, "agreement", "", "`HOST:PORT` of the agreement engine (default: the next port)")
	f.StringVar(&n.MAS, "mas", masSoftware, "`kind` of trusted device: software, swtpm or tpm")
	f.StringVar(&n.Device, "device", "", "`file` of the TPM with --mas tpm (default "+tpmDevice+")")
	f.StringVar(&n.profile, "profile", "", "`profile` of a TPM: lock or measured (default lock)")
	f.StringVar(&n.by.approver, "approver", "", "public `line` of the approver of boots")
	f.StringVar(&n.by.approval, "approval", "", "`file` with the approval of the present boot")
	f.StringVar(&n.recovery, "recovery", "", "new `file` for the TPM's owner and lockout authorisations")
	f.BoolVar(&n.openPlatform, "allow-open-platform", false, "take a TPM whose platform hierarchy the firmware left open")
	f.BoolVar(&n.yes, "yes", false, "take the TPM without asking")
	require(c, "dir", "id", "address")
	return c
}

// newReplica is what init replica is asked for.
type newReplica struct {
	member
	profile, address, agreement string
	by                          measure
	recovery                    string
	openPlatform, yes           bool
}

// check refuses what does not go together.
func (n newReplica) check() error {
	if err := checkMAS(n.MAS); err != nil {
		return err
	}
	switch {
	case n.Device != "" && n.MAS != masTPM:
		return usagef("--device is for --mas %s", masTPM)
	case n.MAS == masSoftware && (n.recovery != "" || n.openPlatform):
		return usagef("--recovery and --allow-open-platform are for a TPM")
	}
	return n.checkProfile()
}

func (n newReplica) checkProfile() error {
	switch trust.Profile(n.profile) {
	case trust.ProfileMeasured:
		if n.MAS == masSoftware || n.by.approver == "" || n.by.approval == "" {
			return usagef("--profile measured needs --mas tpm or swtpm, --approver and --approval")
		}
		return nil
	case "", trust.ProfileLock:
		if n.by != (measure{}) || n.profile != "" && n.MAS == masSoftware {
			return usagef("--approver and --approval are for --profile measured, and --profile is for a TPM")
		}
		return nil
	}
	return usagef("--profile %s: want %s or %s", quote(n.profile), trust.ProfileLock, trust.ProfileMeasured)
}

// complete fills in what was left to its default, and makes files absolute: the
// replica is served, and its making gone on with, from anywhere.
func (n *newReplica) complete() (err error) {
	if n.agreement == "" {
		if n.agreement, err = nextPort(n.address, 1); err != nil {
			return err
		}
	}
	for _, file := range []*string{&n.Device, &n.recovery} {
		if *file == "" {
			continue
		}
		if *file, err = filepath.Abs(*file); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) initReplica(ctx context.Context, n newReplica) error {
	if err := n.check(); err != nil {
		return err
	}
	if err := n.complete(); err != nil {
		return err
	}
	if err := n.vacant(); err != nil {
		return err
	}
	if err := a.mayTake(ctx, n); err != nil {
		return err
	}
	entry, err := newMember(ctx, n)
	if err != nil {
		return err
	}
	a.say("replica %d is in %s; its entry is kept in %s", n.ID, quote(n.dir), quote(n.path(entryFile)))
	_, err = a.out.Write(entry.Bytes())
	return err
}

// mayTake asks before a TPM is taken that others may use too. An swtpm that this
// program makes has no others.
func (a *app) mayTake(ctx context.Context, n newReplica) error {
	if n.MAS != masTPM {
		return nil
	}
	for _, line := range n.meaning() {
		a.warn("%s", line)
	}
	if n.yes {
		return nil
	}
	return a.confirm(ctx, "this takes the TPM for good", "--yes if it may be taken")
}

// meaning is what becomes of the TPM.
func (n newReplica) meaning() []string {
	device := n.Device
	if device == "" {
		device = tpmDevice
	}
	var lines []string
	if n.recovery == "" {
		lines = append(lines, fmt.Sprintf("the TPM %s becomes this replica's device: its owner and lockout authorisations are set at random and thrown away", quote(device)),
			"what other programs keep in it goes on working, but from then on nobody can keep more in it, remove anything or end its lockout after wrong passwords; only the firmware can clear it, and that ends the device")
	} else {
		lines = append(lines, fmt.Sprintf("the TPM %s becomes this replica's device: its owner and lockout authorisations are set at random and written to %s and nowhere else", quote(device), quote(n.recovery)),
			"what other programs keep in it goes on working, but from then on nobody can keep more in it, remove anything, end its lockout after wrong passwords or clear it without that file",
			"whoever has that file can forge what this replica says: take it off this machine")
	}
	if n.openPlatform {
		lines = append(lines, "where the firmware leaves the platform hierarchy open, whoever reaches the TPM can forge what this replica says")
	}
	return lines
}

func (a *app) initWriterCommand() *cobra.Command {
	var key string
	var encrypted bool
	c := &cobra.Command{
		Use:   "writer",
		Short: "Make a writer's key and print its public line",
		Long: `Make the key that signs what is added, in a file that this user alone may read,
and print the line that goes into the roster. A key that others can read is refused
when it is used.

With --encrypt, the file is encrypted with a passphrase, in OpenSSH's format:
ssh-keygen -p -f FILE changes it. It is asked for on the terminal, then and whenever
something is added; or BONAFIDE_PASSPHRASE_FILE names a file that holds it, or
BONAFIDE_PASSPHRASE_COMMAND a shell command that prints it.

Keep a copy of the file where the archive's fate is not shared. Who loses the key can
add nothing more under it, and who finds it can bind names under it for ever; what is
bound stays as it is in both cases.`,
		Example: `  bonafide init writer
  bonafide init writer --encrypt --key ~/keys/evidence.key
  BONAFIDE_PASSPHRASE_COMMAND='pass show bonafide' bonafide add -r logs /var/log/old`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.initWriter(c.Context(), key, encrypted)
		},
	}
	c.Flags().BoolVar(&encrypted, "encrypt", false, "encrypt the key with a passphrase")
	c.Flags().StringVar(&key, "key", "", "`file` of the new private key (default $XDG_CONFIG_HOME/bonafide/writer.key)")
	return c
}

func (a *app) initWriter(ctx context.Context, name string, encrypted bool) error {
	if name == "" {
		name = filepath.Join(configHome(), "writer.key")
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	key, err := a.newWriterKey(ctx, name, encrypted)
	if errors.Is(err, fs.ErrExist) {
		return withHint(withStatus(exitUsage, err), "--key FILE makes another")
	}
	if err != nil {
		return err
	}
	pub := archive.PublicKey(publicOf(key))
	a.say("the private key is in %s", quote(name))
	return a.result(struct {
		Kind string            `json:"kind"`
		Key  archive.PublicKey `json:"key"`
		File string            `json:"file"`
	}{"writer", pub, name}, "%s", pub)
}

// newArchive is what init archive is asked for.
type newArchive struct {
	name, schedule    string
	replicas, writers []string
	operators         []string
	proofs            proofs
}

func (a *app) initArchiveCommand() *cobra.Command {
	var n newArchive
	c := &cobra.Command{
		Use:   "archive --name NAME --replica ENTRY-FILE... --writer PUB[=PREFIX]...",
		Short: "Make an archive's roster and print it",
		Long: `Make the first roster of an archive from the entries of its replicas and the
public lines of its writers, and print it. Its SHA-256 is the archive's ID.
There are 3f+1 replicas: 4, 7 or 10, up to 16. A writer may be bound to names
that begin with a prefix; given several times, to several.

Each replica with a TPM must have answered a challenge (bonafide init challenge),
and its endorsement key must be certified by one of the makers in --ek-ca, or
stand in --ek: the SHA-256 of its SubjectPublicKeyInfo in DER. A software TPM has
no maker, so --ek is the only way, and it shows no more than that the replica's
operator read it out. Replicas with a software device prove nothing.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.initArchive(n, time.Now()) },
	}
	f := c.Flags()
	f.StringVar(&n.name, "name", "", "`name` of the archive")
	f.StringVar(&n.schedule, "schedule", "0 */6 * * *", "`when` update phases begin: cron in UTC, or @every D")
	f.StringArrayVar(&n.replicas, "replica", nil, "`file` with a replica's entry; repeat")
	f.StringArrayVar(&n.writers, "writer", nil, "a writer's public `line`, and the prefix it is bound to; repeat")
	f.StringArrayVar(&n.operators, "operator", nil, "an operator's public `line`; repeat")
	n.proofs.flags(c)
	require(c, "name", "replica", "writer")
	return c
}

func (a *app) initArchive(n newArchive, now time.Time) error {
	r, err := n.roster(now)
	if err != nil {
		return err
	}
	a.say("archive %s, %d replicas, %d of them may be faulty in update phases; MAS profile %s", r.ID(), r.N(), r.F, r.Profile())
	if n.proofs.unproven {
		a.say("unproven: no TPM was asked, each profile is the word of its replica")
	}
	a.say("each replica: bonafide init countersign --dir DIR --roster FILE, then bonafide serve --dir DIR")
	_, err = a.out.Write(r.Bytes())
	return err
}

func (n newArchive) roster(now time.Time) (*archive.Roster, error) {
	var replicas []archive.Replica
	var enrolments []archive.Enrolment
	for _, file := range n.replicas {
		e, err := readEnrolment(file)
		if err != nil {
			return nil, err
		}
		enrolments, replicas = append(enrolments, e), append(replicas, e.Replica)
	}
	if err := n.proofs.check(enrolments, now); err != nil {
		return nil, err
	}
	writers, err := parseWriters(n.writers)
	if err != nil {
		return nil, err
	}
	var operators []archive.PublicKey
	for _, line := range n.operators {
		k, err := parsePublic(line)
		if err != nil {
			return nil, err
		}
		operators = append(operators, k)
	}
	schedule := archive.Schedule(n.schedule)
	if err := schedule.Check(); err != nil {
		return nil, err
	}
	return archive.NewRoster(n.name, now, schedule, limitsFor(schedule), replicas, writers, operators)
}

// limitsFor returns the limits that machines need which reboot, unless the
// schedule leaves no room for them.
func limitsFor(s archive.Schedule) archive.Limits {
	l := archive.DefaultLimits()
	if p := period(s); p < 2*l.Phase.Std() {
		return archive.TrialLimits(p)
	}
	return l
}

// parseWriters reads PUB[=PREFIX]; several of one key are one writer.
func parseWriters(lines []string) ([]archive.Writer, error) {
	var all []archive.Writer
	at := make(map[string]int)
	for _, line := range lines {
		pub, prefix, bound := strings.Cut(line, "=")
		k, err := parsePublic(pub)
		if err != nil {
			return nil, err
		}
		i, known := at[pub]
		if !known {
			i, at[pub] = len(all), len(all)
			all = append(all, newWriter(k))
		}
		if bound {
			all[i].Prefixes = append(all[i].Prefixes, prefix)
		}
	}
	return all, nil
}

func newWriter(k archive.PublicKey) archive.Writer {
	return archive.Writer{Key: k, Prefixes: []string{}, Names: writerNames, Bytes: writerBytes}
}

func parsePublic(line string) (archive.PublicKey, error) {
	var k archive.PublicKey
	if err := k.UnmarshalText([]byte(strings.TrimSpace(line))); err != nil {
		return nil, usagef("public key %s: %w", quote(line), err)
	}
	return k, nil
}

// require marks flags without which a command means nothing.
func require(c *cobra.Command, flags ...string) {
	for _, f := range flags {
		if err := c.MarkFlagRequired(f); err != nil {
			panic("cmd: require " + f)
		}
	}
}
