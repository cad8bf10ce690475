package cmd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/trust/watchdog"
)

// seldom is the schedule of the tour and of bench: the phases are those they ask for.
const seldom = "0 0 29 2 *"

// tourLimit is how long any step of the tour may take.
const tourLimit = 2 * time.Minute

func (a *app) tourCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tour [FILE]...",
		Short: "Show what an archive does, on a throw-away one",
		Long: `Start a trial archive in a temporary directory, add the files (or some samples)
to it and get them back, damage a replica's disk and see it found and repaired,
roll replicas back to an older state and see what a client makes of it, and check
a receipt with nothing running. Each step is a command of this program, printed
before it runs. Takes about half a minute, and leaves nothing behind.`,
		RunE: func(c *cobra.Command, args []string) error {
			if a.json {
				return usagef("a tour is for people; it has no --json")
			}
			return about("tour", "", a.tour(c.Context(), args))
		},
	}
}

// tour is one tour. Its methods are its chapters, in order.
type tour struct {
	*app
	ctx     context.Context
	base    string // holds everything
	trial   trial
	files   []tourFile
	server  *watchdog.Process
	ended   chan struct{} // closed when the server's last line is out
	receipt string
}

// tourFile is a file that the tour archives.
type tourFile struct {
	name archive.Name
	path string
}

func (a *app) tour(ctx context.Context, files []string) (err error) {
	base, err := os.MkdirTemp("", "bonafide-tour-")
	if err != nil {
		return err
	}
	t := &tour{app: a, ctx: ctx, base: base, trial: trialAt(filepath.Join(base, "trial")), receipt: filepath.Join(base, "receipt")}
	defer func() { err = errors.Join(err, t.leave()) }()
	if err := t.collect(files); err != nil {
		return err
	}
	for _, chapter := range []func() error{
		t.start, t.addAll, t.getAll, t.once, t.damage, t.rollBackOne, t.rollBackMost, t.heal, t.offline,
	} {
		if err := chapter(); err != nil {
			return err
		}
	}
	t.tell("That was the tour. To keep an archive: bonafide serve")
	return nil
}

// leave stops what still runs and removes everything.
func (t *tour) leave() error {
	return errors.Join(t.stop(), os.RemoveAll(t.base))
}

// start serves a trial archive.
func (t *tour) start() error {
	t.tell("An archive of four replicas, each with a watchdog, on this machine. (Its\nupdate phases are scheduled far away, so that they come when we ask for them.)")
	if err := t.serve(); err != nil {
		return err
	}
	t.tellShell("export BONAFIDE_CONFIG=" + quote(t.config()))
	return nil
}

// serve starts the server and waits until its archive is ready.
func (t *tour) serve() error {
	args := []string{"serve", "--dir", t.trial.dir, "--every", seldom}
	t.tellShell(shell(args) + " &")
	cmd := t.command(args...)
	out, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if t.server, err = watchdog.Start(cmd); err != nil {
		return err
	}
	ready := make(chan struct{})
	t.ended = make(chan struct{})
	go t.relay(out, ready)
	select {
	case <-ready:
		return nil
	case <-t.server.Done():
		return fmt.Errorf("serve ended: %w", t.server.Err())
	case <-time.After(tourLimit):
		return fmt.Errorf("serve was not ready within %s", tourLimit)
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
}

// relay shows what the server says and notes when it is ready.
func (t *tour) relay(out io.Reader, ready chan<- struct{}) {
	defer close(t.ended)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		_ = t.line(t.out, "serve| "+lines.Text())
		if strings.HasSuffix(lines.Text(), " ready") {
			close(ready)
		}
	}
}

// stop ends the server, if it runs.
func (t *tour) stop() error {
	if t.server == nil {
		return nil
	}
	t.server.Signal(syscall.SIGTERM)
	select {
	case <-t.server.Done():
	case <-time.After(patience):
		t.server.Kill()
		<-t.server.Done()
	}
	<-t.ended
	err := t.server.Err()
	t.server = nil
	return err
}

// collect names the files, or makes samples.
func (t *tour) collect(files []string) error {
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return usagef("%s is not a regular file", quote(f))
		}
		n, _ := archive.NormalizeName("tour/" + filepath.Base(f))
		if err := n.Check(); err != nil {
			return fmt.Errorf("%s: %w", quote(f), err)
		}
		t.files = append(t.files, tourFile{n, f})
	}
	if len(files) > 0 {
		return nil
	}
	for _, s := range []struct{ name, text string }{
		{"tour/note.txt", "What is written here stays written.\n"},
		{"tour/table.csv", strings.Repeat("42,bonafide\n", 50_000)},
	} {
		f := tourFile{archive.Name(s.name), filepath.Join(t.base, filepath.Base(s.name))}
		if err := os.WriteFile(f.path, []byte(s.text), 0o600); err != nil {
			return err
		}
		t.files = append(t.files, f)
	}
	return nil
}

func (t *tour) addAll() error {
	t.tell("Add files. Once 2f+1 = 3 of the 4 replicas have acknowledged a name, it is\npending: the next update phase binds it.")
	for _, f := range t.files {
		if err := t.run(exitDone, "add", string(f.name), f.path); err != nil {
			return err
		}
	}
	t.tell("Until then it is absent, and proven so (status %d).", exitAbsent)
	if err := t.run(exitAbsent, "get", string(t.files[0].name)); err != nil {
		return err
	}
	t.tell("An update phase: the replicas agree on what was added and certify the epoch\nwith their trusted devices.")
	return t.run(exitDone, "update")
}

func (t *tour) getAll() error {
	t.tell("Names are listed with a proof that none is left out, and contents come back as\nthey were.")
	if err := t.run(exitDone, "ls", "tour/"); err != nil {
		return err
	}
	for i, f := range t.files {
		args := []string{"get", string(f.name), "-o", t.copyOf(f)}
		if i == 0 {
			args = append(args, "--receipt", t.receipt)
		}
		if err := t.run(exitDone, args...); err != nil {
			return err
		}
		if err := sameBytes(f.path, t.copyOf(f)); err != nil {
			return err
		}
	}
	return t.run(exitDone, "verify", string(t.files[0].name), t.files[0].path)
}

func (t *tour) copyOf(f tourFile) string {
	return filepath.Join(t.base, "back-"+filepath.Base(string(f.name)))
}

func sameBytes(a, b string) error {
	x, err := os.ReadFile(a)
	if err != nil {
		return err
	}
	y, err := os.ReadFile(b)
	if err == nil && !bytes.Equal(x, y) {
		err = fmt.Errorf("%w: %s differs from %s", archive.ErrIntegrity, quote(b), quote(a))
	}
	return err
}

func (t *tour) once() error {
	t.tell("A name is bound once. Another content is refused (status %d).", exitConflict)
	other := filepath.Join(t.base, "other")
	if err := os.WriteFile(other, []byte("something else\n"), 0o600); err != nil {
		return err
	}
	return t.run(exitConflict, "add", string(t.files[0].name), other)
}

// damage spoils what one replica has on its disk.
func (t *tour) damage() error {
	t.tell("Each replica can check all it holds.")
	if err := t.settle(); err != nil {
		return err
	}
	if err := t.run(exitDone, "audit"); err != nil {
		return err
	}
	t.tell("Spoil one replica's disk: a bit of a content, and a bit of its tree.")
	const id = 2
	content, err := t.describe(t.ctx, t.files[0].path)
	if err != nil {
		return err
	}
	if err := t.spoil(id, content.Digest); err != nil {
		return err
	}
	t.tell("The audit reads the disk, not what it remembers, and fetches good copies from\nthe others, whom it need not trust.")
	return t.run(exitDone, "audit", "--repair")
}

// settle waits until the replicas have done the audit that they begin to serve
// with, which would repair what the tour wants to show.
func (t *tour) settle() error {
	ctx, cancel := context.WithTimeout(t.ctx, tourLimit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for t.command("audit").Run() != nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("replicas keep auditing: %w", ctx.Err())
		}
	}
	return nil
}

// spoil flips a bit of a content, and of what the tree says of it, on the
// replica's disk.
func (t *tour) spoil(id uint32, d archive.Digest) error {
	store := t.trial.path(replicaDir(id), storeDir)
	return filepath.WalkDir(store, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		at := spoilAt(filepath.Base(path), b, d)
		if at < 0 || at >= len(b) {
			return nil
		}
		t.tellStep("flip a bit at byte %d of %s", at, path)
		return flip(path, b[at], int64(at))
	})
}

// spoilAt returns which byte of a file to spoil, if any.
func spoilAt(name string, b []byte, d archive.Digest) int {
	switch {
	case name == d.String():
		return len(b) / 2
	case name == "tree.db":
		return bytes.Index(b, d[:])
	case filepath.Ext(name) != ".tar":
		return -1
	}
	header := bytes.Index(b, []byte(d.String()))
	if header < 0 {
		return -1
	}
	return header + 512 // the content lies behind it
}

func flip(path string, was byte, at int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{was ^ 1}, at)
	return errors.Join(err, f.Close())
}

// rollBackOne keeps the state of all replicas, lets the archive go on, and
// brings the old state of one back.
func (t *tour) rollBackOne() error {
	t.tell("Now an attacker with root on replicas. He keeps a copy of everything they have,\ntrusted device included: in this trial that is a file.")
	for id := uint32(1); id <= 3; id++ {
		if err := t.keep(id); err != nil {
			return err
		}
	}
	later := filepath.Join(t.base, "later")
	if err := os.WriteFile(later, []byte("added later\n"), 0o600); err != nil {
		return err
	}
	t.tell("The archive goes on.")
	for _, args := range [][]string{{"add", "tour/later.txt", later}, {"update"}, {"get", "tour/later.txt"}} {
		if err := t.run(exitDone, args...); err != nil {
			return err
		}
	}
	t.tell("He puts one replica back to its old state. The client takes the newest epoch that\ntwo replicas prove: the right answer, from the others.")
	if err := t.rollBack(1); err != nil {
		return err
	}
	if err := t.run(exitDone, "status"); err != nil {
		return err
	}
	return t.run(exitDone, "get", "tour/later.txt")
}

func (t *tour) rollBackMost() error {
	t.tell("He puts back two more: three of four now prove the old epoch. But this client has\nseen a newer one, and refuses (status %d) rather than call the name absent.", exitStale)
	if err := t.rollBack(2, 3); err != nil {
		return err
	}
	if err := t.run(exitDone, "status"); err != nil {
		return err
	}
	return t.run(exitStale, "get", "tour/later.txt")
}

func (t *tour) heal() error {
	t.tell("Two get their own state back. The third needs no help: the next update phase\nbrings it to what the others have certified.")
	if err := t.restart("was", 2, 3); err != nil {
		return err
	}
	if err := t.await(func(epochs map[uint32]archive.Epoch, newest archive.Epoch) bool {
		return epochs[2] == newest && epochs[3] == newest
	}); err != nil {
		return err
	}
	for _, command := range []string{"update", "status"} {
		if err := t.run(exitDone, command); err != nil {
			return err
		}
	}
	return t.run(exitDone, "get", "tour/later.txt")
}

func (t *tour) offline() error {
	t.tell("Stop everything. A receipt needs no server, only the archive's first roster.")
	t.tellShell("kill %1")
	if err := t.stop(); err != nil {
		return err
	}
	if err := t.run(exitUnavailable, "get", "--timeout", "1s", string(t.files[0].name)); err != nil {
		return err
	}
	return t.run(exitDone, "verify", "--receipt", t.receipt, t.files[0].path)
}

// The parts of a replica that an attacker on its machine can put back.
var stolen = []string{masDir, storeDir}

func (t *tour) keep(id uint32) error {
	t.tellStep("copy %s and %s of replica %d", masDir, storeDir, id)
	for _, part := range stolen {
		if err := os.CopyFS(filepath.Join(t.base, "kept", replicaDir(id), part), os.DirFS(t.trial.path(replicaDir(id), part))); err != nil {
			return err
		}
	}
	return nil
}

// rollBack puts the kept state of replicas in place of the present one.
func (t *tour) rollBack(ids ...uint32) error {
	if err := t.restart("kept", ids...); err != nil {
		return err
	}
	return t.await(func(epochs map[uint32]archive.Epoch, newest archive.Epoch) bool {
		return !slices.ContainsFunc(ids, func(id uint32) bool { return epochs[id] == 0 || epochs[id] == newest })
	})
}

// restart swaps the state of replicas with one laid aside, and kills their
// service processes, so that the next ones work with it.
func (t *tour) restart(aside string, ids ...uint32) error {
	for _, id := range ids {
		t.tellStep("put the %s state of replica %d in place and kill its service process", adjective[aside], id)
		if err := t.swap(aside, id); err != nil {
			return err
		}
		reply, err := member{ID: id, dir: t.trial.path(replicaDir(id))}.ask(t.ctx, doState)
		if err != nil {
			return err
		}
		if reply.Child <= 0 {
			return fmt.Errorf("replica %d has no service process", id)
		}
		if err := syscall.Kill(reply.Child, syscall.SIGKILL); err != nil {
			return err
		}
	}
	return nil
}

var adjective = map[string]string{"kept": "old", "was": "new"}

// swap moves the present state out of the way and one laid aside in its place.
func (t *tour) swap(aside string, id uint32) error {
	for _, part := range stolen {
		now := t.trial.path(replicaDir(id), part)
		for _, move := range [][2]string{
			{now, filepath.Join(t.base, "out", replicaDir(id), part)},
			{filepath.Join(t.base, aside, replicaDir(id), part), now},
			{filepath.Join(t.base, "out", replicaDir(id), part), filepath.Join(t.base, "was", replicaDir(id), part)},
		} {
			if err := os.MkdirAll(filepath.Dir(move[1]), 0o700); err != nil {
				return err
			}
			if err := os.Rename(move[0], move[1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// await waits until the epochs that the replicas attest are as wanted.
func (t *tour) await(wanted func(epochs map[uint32]archive.Epoch, newest archive.Epoch) bool) error {
	ctx, cancel := context.WithTimeout(t.ctx, tourLimit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if epochs, newest, err := t.epochs(); err == nil && wanted(epochs, newest) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("replicas did not come back: %w", ctx.Err())
		}
	}
}

// epochs asks the replicas for the epoch that each attests.
func (t *tour) epochs() (map[uint32]archive.Epoch, archive.Epoch, error) {
	r, err := loadRoster(t.trial.path(rosterFile))
	if err != nil {
		return nil, 0, err
	}
	c, err := client.New(client.Config{Roster: r, Timeout: time.Second})
	if err != nil {
		return nil, 0, err
	}
	defer c.Close()
	epochs, newest := make(map[uint32]archive.Epoch), archive.Epoch(0)
	for _, st := range statuses(t.ctx, c) {
		if st.Attested {
			epochs[st.ID] = st.Epoch
			newest = max(newest, st.Epoch)
		}
	}
	return epochs, newest, nil
}

// run runs a command of this program, printed first, and expects its status.
func (t *tour) run(want int, args ...string) error {
	t.tellShell(shell(args))
	cmd := t.command(args...)
	cmd.Stdout, cmd.Stderr = t.out, t.out // one story, in order
	p, err := watchdog.Start(cmd)
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-t.ctx.Done():
		p.Kill()
		<-p.Done()
		return t.ctx.Err()
	}
	if p.Status() != want {
		return fmt.Errorf("%s ended with status %d, want %d", shell(args), p.Status(), want)
	}
	if want != exitDone {
		t.tellStep("status %d", want)
	}
	return nil
}

func (t *tour) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "bonafide"
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "BONAFIDE_") })
	if exists(t.config()) {
		cmd.Env = append(cmd.Env, "BONAFIDE_CONFIG="+t.config())
	}
	return cmd
}

func (t *tour) config() string { return filepath.Join(t.trial.dir, configFile) }

func shell(args []string) string {
	words := []string{"bonafide"}
	for _, a := range args {
		words = append(words, quote(a))
	}
	return strings.Join(words, " ")
}

// tell, tellShell and tellStep print what the tour says, what it types, and
// what it does by other means.
func (t *tour) tell(format string, args ...any) {
	_ = t.line(t.out, "")
	for l := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		_ = t.line(t.out, "# "+plain(l))
	}
}

func (t *tour) tellShell(command string) { _ = t.line(t.out, "$ "+plain(command)) }
func (t *tour) tellStep(format string, args ...any) {
	_ = t.line(t.out, "  ("+plain(fmt.Sprintf(format, args...))+")")
}
