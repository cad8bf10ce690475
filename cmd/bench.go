package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/bench"
	"github.com/bonafide-archive/bonafide/archive/replica"
	"github.com/bonafide-archive/bonafide/trust/watchdog"
)

// benchWish is what the flags of bench ask for.
type benchWish struct {
	names, runs, replicas int
	adds                  []int
	mas                   string
	quick                 bool
}

// The sizes of a run. A quick one takes a minute or two.
var (
	benchFull  = benchWish{names: 1_000_000, runs: 3, adds: []int{0, 1_000, 25_000, 100_000, 1_000_000}}
	benchQuick = benchWish{names: 10_000, runs: 3, adds: []int{0, 1_000, 5_000}}
)

// Single Gets and Adds of a run, and the losses that are repaired, in percent.
const benchOps, benchQuickOps = 1000, 200

var benchLosses = []int{0, 1, 10, 100}

func (a *app) benchCommand() *cobra.Command {
	var w benchWish
	c := &cobra.Command{
		Use:   "bench [--quick]",
		Short: "Measure an archive on this machine",
		Long: `Make an archive in a temporary directory, with a service and an update process for
each replica as serve makes them, on loopback; fill it with names, by Adds and update
phases as any; and print, in the form of the Bonafide talk's tables and with mean and
standard deviation: the time of a Get and of an Add; that of an audit with repair after
a loss of 0, 1, 10 and 100 % of one replica's pages; and that of the update phase with
so many Adds, by its parts.

What is timed is checked: that each name has its content and a receipt that verifies,
each epoch the same head at all replicas and the right number of names, each replica
after a repair nothing damaged. A wrong result ends the run with status 1.

All replicas share this machine and its disk, and there is no network between them. The
directory lies in $TMPDIR and is removed at the end, after an interrupt too.`,
		Example: `  bonafide bench --quick
  bonafide bench --names 100000 --adds 0,25000 --replicas 7 --json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, args []string) error {
			w.fill(c)
			if err := w.check(); err != nil {
				return about("bench", "", err)
			}
			return about("bench", "", a.bench(c.Context(), w))
		},
	}
	f := c.Flags()
	f.BoolVar(&w.quick, "quick", false, "10,000 names and phases of 0, 1,000 and 5,000 Adds")
	f.IntVar(&w.names, "names", benchFull.names, "`number` of names to begin with")
	f.IntVar(&w.runs, "runs", benchFull.runs, "`number` of runs of each repair and update phase")
	f.IntSliceVar(&w.adds, "adds", benchFull.adds, "`numbers` of Adds, an update phase each")
	f.IntVar(&w.replicas, "replicas", 4, "`number` of replicas: 4, 7 or 10")
	f.StringVar(&w.mas, "mas", masSoftware, "`kind` of trusted device: software or swtpm")
	return c
}

// fill gives a quick run its sizes, where flags do not.
func (w *benchWish) fill(c *cobra.Command) {
	if !w.quick {
		return
	}
	set := func(flag string, to func()) {
		if !c.Flags().Changed(flag) {
			to()
		}
	}
	set("names", func() { w.names = benchQuick.names })
	set("runs", func() { w.runs = benchQuick.runs })
	set("adds", func() { w.adds = benchQuick.adds })
}

func (w benchWish) check() error {
	switch {
	case w.names < 1 || w.names > 100_000_000:
		return usagef("--names %d: want 1 to 100000000", w.names)
	case w.runs < 1:
		return usagef("--runs %d: want 1 or more", w.runs)
	case slices.ContainsFunc(w.adds, func(n int) bool { return n < 0 || n > 10_000_000 }):
		return usagef("--adds: want 0 to 10000000 each")
	}
	if err := w.trial(0).check(); err != nil {
		return err
	}
	if w.mas != masSwtpm {
		return nil
	}
	if _, err := exec.LookPath("swtpm"); err != nil {
		return withHint(usagef("--mas %s: %w", masSwtpm, err), "is swtpm installed? (apt install swtpm)")
	}
	return nil
}

// trial is the archive to measure: one with the limits of a real one, whose update
// phases come when they are asked for.
func (w benchWish) trial(pending uint64) trialWish {
	return trialWish{
		replicas: w.replicas, every: seldom, mas: w.mas, limits: archive.DefaultLimits(), names: pending,
		listen: passingPorts(2 * w.replicas),
	}
}

// benched is an archive that is measured.
type benched struct {
	*app
	trial  trial
	server *watchdog.Process
	log    string
}

func (a *app) bench(ctx context.Context, w benchWish) (err error) {
	base, err := os.MkdirTemp("", "bonafide-bench-")
	if err != nil {
		return err
	}
	b := &benched{app: a, trial: trialAt(filepath.Join(base, "archive")), log: filepath.Join(base, "log")}
	defer func() { err = errors.Join(err, b.stop(), os.RemoveAll(base)) }()
	c, err := b.start(ctx, w)
	if err != nil {
		return err
	}
	res, err := bench.Run(ctx, c)
	if err != nil {
		return measuredWrong(ctx, err)
	}
	res.MAS, res.Command = w.mas, w.command()
	if !a.json {
		_, err := io.WriteString(a.out, res.Text())
		return err
	}
	return a.message(struct {
		Kind string `json:"kind"`
		bench.Result
	}{"bench", res})
}

// measuredWrong ends a run with status 1, whatever its replicas and clients say.
func measuredWrong(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return withStatus(exitFailure, err)
}

// command is the command line that makes such a run.
func (w benchWish) command() string {
	var adds []string
	for _, n := range w.adds {
		adds = append(adds, fmt.Sprint(n))
	}
	quick := ""
	if w.quick {
		quick = " --quick"
	}
	return fmt.Sprintf("bonafide bench%s --names %d --runs %d --adds %s --replicas %d --mas %s",
		quick, w.names, w.runs, strings.Join(adds, ","), w.replicas, w.mas)
}

// start makes the archive, serves it, and says how it is to be measured.
func (b *benched) start(ctx context.Context, w benchWish) (c bench.Config, err error) {
	pending := uint64(w.names + benchOps)
	for _, n := range w.adds {
		pending += uint64(n)
	}
	if err := os.MkdirAll(b.trial.dir, 0o700); err != nil {
		return c, err
	}
	if c.Roster, err = b.trial.open(ctx, w.trial(pending)); err != nil {
		return c, err
	}
	if c.Key, err = loadKey(b.trial.path(writerKey)); err != nil {
		return c, err
	}
	members, err := membersIn(b.trial.dir)
	if err != nil {
		return c, err
	}
	for _, m := range members {
		c.Dirs = append(c.Dirs, m.dir)
	}
	c.Names, c.Adds, c.Runs, c.Losses, c.Ops = w.names, w.adds, w.runs, benchLosses, benchOps
	if w.quick {
		c.Ops = benchQuickOps
	}
	c.Update = func(ctx context.Context) ([]bench.Phase, error) { return b.update(ctx, members) }
	c.Show = b.showPart()
	return c, b.serve(ctx, members)
}

// showPart shows the parts of a run, one bar after the other, on a terminal only.
func (b *benched) showPart() func(what string, done, total uint64) {
	var part string
	show, end := b.counting("")
	return func(what string, done, total uint64) {
		if what != part {
			end()
			part = what
			show, end = b.counting(what)
		}
		show(done, total)
	}
}

// serve serves the archive until each replica has had its first update phase.
func (b *benched) serve(ctx context.Context, members []member) error {
	log, err := os.Create(b.log)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "serve", "--dir", b.trial.dir)
	cmd.Args[0] = "bonafide"
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "BONAFIDE_") })
	cmd.Stdout, cmd.Stderr = log, log
	if b.server, err = watchdog.Start(cmd); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, tourLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !b.served(limit, members) {
		select {
		case <-tick.C:
		case <-b.server.Done():
			return b.ended()
		case <-limit.Done():
			return fmt.Errorf("serve was not ready: %w", limit.Err())
		}
	}
	return nil
}

// ended says why the server did.
func (b *benched) ended() error {
	said, _ := os.ReadFile(b.log)
	return fmt.Errorf("serve ended: %w: %s", b.server.Err(), oneLine(strings.TrimSpace(string(said))))
}

// served reports whether all replicas made the first epoch and serve.
func (b *benched) served(ctx context.Context, members []member) bool {
	return !slices.ContainsFunc(members, func(m member) bool {
		st, err := replica.StatusServed(ctx, m.dir)
		return err != nil || st.Phase != "service" || st.Epoch == 0 || st.Damaged
	})
}

// update runs an update phase of all replicas, by their watchdogs.
func (b *benched) update(ctx context.Context, members []member) ([]bench.Phase, error) {
	all, errs := make([]bench.Phase, len(members)), make([]error, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() { all[i], errs[i] = phaseOf(ctx, m) })
	}
	wg.Wait()
	return all, errors.Join(errs...)
}

func phaseOf(ctx context.Context, m member) (bench.Phase, error) {
	reply, err := m.ask(ctx, doUpdate)
	switch rp := reply.Report; {
	case err != nil:
		return bench.Phase{}, err
	case reply.Error != "" || rp == nil:
		return bench.Phase{}, fmt.Errorf("replica %d: no epoch: %s", m.ID, reply.Error)
	case rp.Error != "":
		return bench.Phase{}, fmt.Errorf("replica %d: no epoch: %s", m.ID, rp.Error)
	default:
		return bench.Phase{Replica: m.ID, Epoch: rp.Epoch, Head: rp.Head, Advanced: rp.Advanced, Steps: rp.Steps, Memory: rp.Memory}, nil
	}
}

// stop ends the server, if it runs, and with it all replicas.
func (b *benched) stop() error {
	if b.server == nil {
		return nil
	}
	b.server.Signal(syscall.SIGTERM)
	select {
	case <-b.server.Done():
	case <-time.After(patience - time.Second):
		b.server.Kill()
		<-b.server.Done()
	}
	return b.server.Err()
}
