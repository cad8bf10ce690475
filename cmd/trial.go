package cmd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// A trial is a whole archive on one machine: its replicas, its roster, a writer
// and a client configuration. It is made in making, which becomes made in one
// rename; from there each part is moved to its place. So a kill at any moment
// leaves either no trial or one that the next start completes.
const (
	trialLock   = "lock"
	trialMaking = ".making"
	trialMade   = ".made"
	configFile  = "config.yaml"
	writerKey   = "writer.key"
	clientState = "client"
	trialPort   = 7400 // the first of two a replica
	trialHost   = "127.0.0.1"
	trialPeriod = archive.Schedule("@every 1m")
)

// trial says where a trial is, or will be.
type trial struct {
	dir    string // replicas and roster
	config string // directory of the client's configuration and key
}

// trialWish is what the flags of serve ask of a trial. Zero: whatever is there,
// or the default.
type trialWish struct {
	replicas int
	every    string
	mas      string
	listen   string
	limits   archive.Limits // of a new one; zero: a trial's
	names    uint64         // that its writer may have pending; 0: as many as by default
}

// trialAt returns the trial in dir. All of it lies there, unless that is the
// default place, whose configuration is the user's own.
func trialAt(dir string) trial {
	if filepath.Clean(dir) == dataHome() {
		return trial{dir, configHome()}
	}
	return trial{dir, dir}
}

func (t trial) path(elem ...string) string {
	return filepath.Join(append([]string{t.dir}, elem...)...)
}

func replicaDir(id uint32) string { return fmt.Sprintf("replica-%d", id) }

// exists reports whether the trial has been made.
func (t trial) exists() bool { return exists(t.path(rosterFile)) }

// open makes the trial if there is none and returns its roster. The caller
// holds its lock.
func (t trial) open(ctx context.Context, w trialWish) (*archive.Roster, error) {
	if !t.exists() {
		if err := t.make(ctx, w); err != nil {
			return nil, err
		}
	}
	if err := t.install(); err != nil {
		return nil, fmt.Errorf("complete trial: %w", err)
	}
	r, err := loadRoster(t.path(rosterFile))
	if err != nil {
		return nil, err
	}
	return r, t.fits(r, w)
}

// fits refuses flags that contradict the trial that is there: schedule and
// replicas are part of what the archive's ID names.
func (t trial) fits(r *archive.Roster, w trialWish) error {
	differs := func(what string, have any) error {
		return withHint(usagef("the trial in %s has %s %v", quote(t.dir), what, have),
			"it keeps what it was made with; --dir DIR makes another")
	}
	first, err := openMember(t.path(replicaDir(r.Replicas[0].ID)))
	switch {
	case err != nil:
		return err
	case w.replicas != 0 && w.replicas != r.N():
		return differs("--replicas", r.N())
	case w.every != "" && w.every != string(r.Schedule):
		return differs("--every", quote(r.Schedule))
	case w.mas != "" && w.mas != first.MAS:
		return differs("--mas", first.MAS)
	case w.listen != "" && w.listen != r.Replicas[0].Address:
		return differs("--listen", r.Replicas[0].Address)
	}
	return nil
}

func (w trialWish) check() error {
	switch {
	case w.replicas != 0 && w.replicas != 4 && w.replicas != 7 && w.replicas != 10:
		return usagef("--replicas %d: want 4, 7 or 10", w.replicas)
	case w.mas != "" && w.mas != masSoftware && w.mas != masSwtpm:
		return usagef("--mas %s: a trial takes %s or %s", quote(w.mas), masSoftware, masSwtpm)
	case w.every != "":
		return archive.Schedule(w.every).Check()
	}
	return nil
}

// make builds a whole trial aside and lets it be the trial in one step.
func (t trial) make(ctx context.Context, w trialWish) error {
	if exists(t.path(trialMade)) {
		return nil
	}
	if err := t.strangers(); err != nil {
		return err
	}
	if err := os.RemoveAll(t.path(trialMaking)); err != nil {
		return err
	}
	if err := os.MkdirAll(t.path(trialMaking), 0o700); err != nil {
		return err
	}
	if err := t.fill(ctx, w.withDefaults()); err != nil {
		return fmt.Errorf("make trial: %w", errors.Join(err, os.RemoveAll(t.path(trialMaking))))
	}
	if err := os.Rename(t.path(trialMaking), t.path(trialMade)); err != nil {
		return err
	}
	return syncDir(t.dir)
}

func (w trialWish) withDefaults() trialWish {
	if w.replicas == 0 {
		w.replicas = 4
	}
	if w.every == "" {
		w.every = string(trialPeriod)
	}
	if w.mas == "" {
		w.mas = masSoftware
	}
	if w.limits == (archive.Limits{}) {
		w.limits = archive.TrialLimits(period(archive.Schedule(w.every)))
	}
	if w.listen == "" {
		w.listen = freePorts(trialHost, trialPort, 2*w.replicas)
	}
	return w
}

// strangers refuses a directory with replicas but no roster: they are somebody's.
func (t trial) strangers() error {
	found, err := filepath.Glob(t.path("replica-*"))
	if err != nil || len(found) == 0 {
		return err
	}
	err = withStatus(exitUsage, fmt.Errorf("%s holds %s and no %s", quote(t.dir), filepath.Base(found[0]), rosterFile))
	return withHint(err, "bring the roster back, or name another --dir")
}

// fill makes everything that belongs to a trial in the making.
func (t trial) fill(ctx context.Context, w trialWish) error {
	making := trial{t.path(trialMaking), ""}
	var replicas []archive.Replica
	for i := range w.replicas {
		entry, err := making.member(ctx, w, i)
		if err != nil {
			return err
		}
		replicas = append(replicas, entry.Replica)
	}
	key, err := newKey(making.path(writerKey), rand.Reader)
	if err != nil {
		return err
	}
	writer := newWriter(archive.PublicKey(publicOf(key)))
	writer.Names = max(writer.Names, w.names)
	r, err := archive.NewRoster("trial", time.Now(), archive.Schedule(w.every), w.limits,
		replicas, []archive.Writer{writer}, nil)
	if err != nil {
		return err
	}
	for _, m := range replicas {
		if err := (member{ID: m.ID, dir: making.path(replicaDir(m.ID))}).accept(r); err != nil {
			return err
		}
	}
	err = writeFile(making.path(configFile), t.clientConfig(), 0o644)
	return errors.Join(err, writeFile(making.path(rosterFile), r.Bytes(), 0o644))
}

func (t trial) member(ctx context.Context, w trialWish, i int) (archive.Enrolment, error) {
	address, err := nextPort(w.listen, 2*i)
	if err != nil {
		return archive.Enrolment{}, err
	}
	agreement, err := nextPort(w.listen, 2*i+1)
	if err != nil {
		return archive.Enrolment{}, err
	}
	id := uint32(i + 1)
	return newMember(ctx, newReplica{
		member:  member{ID: id, MAS: w.mas, dir: t.path(replicaDir(id))},
		address: address, agreement: agreement,
	})
}

// clientConfig is relative where all lies in one directory, so that it can be
// moved.
func (t trial) clientConfig() []byte {
	dir, state := ".", clientState
	if t.config != t.dir {
		dir, state = t.dir, stateHome()
	}
	return fmt.Appendf(nil, `# Client configuration of the trial archive in %[1]s.
roster: %[2]s
writer-key: %[3]s
state: %[4]s
dir: %[5]s
`, quote(t.dir), quote(filepath.Join(dir, rosterFile)), writerKey, quote(state), quote(dir))
}

// install moves what has been made to its place, the roster last. It may be cut
// off anywhere and run again.
func (t trial) install() error {
	made := trial{t.path(trialMade), ""}
	if !exists(made.dir) {
		return nil
	}
	if err := t.installConfig(made); err != nil {
		return err
	}
	replicas, err := filepath.Glob(made.path("replica-*"))
	if err != nil {
		return err
	}
	for _, from := range append(replicas, made.path(rosterFile)) {
		if err := os.Rename(from, t.path(filepath.Base(from))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := syncDir(t.dir); err != nil {
			return err
		}
	}
	return os.RemoveAll(made.dir)
}

// installConfig puts the client's configuration and key where the trial's
// client looks for them. A configuration of another archive is left alone; then
// both stay in the trial's own directory.
func (t trial) installConfig(made trial) error {
	to := t.configDir()
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, f := range []string{writerKey, configFile} {
		b, err := readFile(made.path(f), maxSmallFile)
		if err != nil {
			return err
		}
		if f == configFile && to != t.config {
			b = trial{t.dir, t.dir}.clientConfig()
		}
		if err := writeFile(filepath.Join(to, f), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// configDir is where the trial's configuration lies, or will.
func (t trial) configDir() string {
	if t.config == t.dir {
		return t.dir
	}
	for _, f := range []string{configFile, writerKey} {
		if !exists(filepath.Join(t.config, f)) {
			continue
		}
		settings, err := parseConfig(filepath.Join(t.config, configFile))
		if err != nil || settings["roster"] != t.path(rosterFile) {
			return t.dir
		}
	}
	return t.config
}

// period is the shortest time between two of the schedule's next ticks.
func period(s archive.Schedule) time.Duration {
	const looked = 10
	shortest := time.Duration(0)
	at := s.Next(time.Now())
	for range looked {
		next := s.Next(at)
		if d := next.Sub(at); shortest == 0 || d > 0 && d < shortest {
			shortest = d
		}
		at = next
	}
	return shortest
}

// passingPorts are free ports for an archive that is thrown away. Each process looks
// from another port on, so that two of them, or one and a trial, that start at the same
// moment do not both take what was free.
func passingPorts(n int) string {
	return freePorts(trialHost, trialPort+100*(1+os.Getpid()%24), n)
}

// freePorts returns the first address of n neighbouring ports that nobody
// listens on now, looking from the first port on.
func freePorts(host string, first, n int) string {
	for p := first; p+n < 1<<15; p += 100 {
		if portsFree(host, p, n) {
			return net.JoinHostPort(host, fmt.Sprint(p))
		}
	}
	return net.JoinHostPort(host, fmt.Sprint(first))
}

func portsFree(host string, first, n int) bool {
	for p := first; p < first+n; p++ {
		l, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(p)))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// members returns the replicas of the trial, or the one whose directory dir is.
func membersIn(dir string) ([]member, error) {
	if exists(filepath.Join(dir, memberFile)) {
		m, err := openMember(dir)
		return []member{m}, err
	}
	t := trialAt(dir)
	if !t.exists() {
		err := withStatus(exitUsage, fmt.Errorf("no archive in %s", quote(dir)))
		return nil, withHint(err, "bonafide serve makes a trial; --dir DIR names another place")
	}
	r, err := loadRoster(t.path(rosterFile))
	if err != nil {
		return nil, err
	}
	var all []member
	for _, m := range r.Replicas {
		one, err := openMember(t.path(replicaDir(m.ID)))
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// command returns a command line that works on this trial from anywhere.
func (t trial) command(rest string) string {
	if t.configDir() == configHome() {
		return "bonafide " + rest
	}
	return strings.Join([]string{"bonafide", "--config", quote(filepath.Join(t.configDir(), configFile)), rest}, " ")
}
