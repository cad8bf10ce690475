package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

func (a *app) serveCommand() *cobra.Command {
	var w trialWish
	var dir, roster string
	var verbose, only bool
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve a replica, or a whole trial archive on this machine",
		Long: `Serve, until interrupted.

With --roster, or where --dir is a replica's directory, one replica of an
archive. This process is its watchdog: it opens an update phase on schedule and
ends it on time, and runs everything that speaks to the network as children.
Update mode opens by a reset of the device. Where that is a reboot of the
machine, --reset reboot lets this process do it, or --service-only leaves update
phases to the units for systemd that come with bonafide.

Otherwise a trial: a whole archive of four replicas on this machine, made on the
first start in $XDG_DATA_HOME/bonafide, with a writer's key and a client
configuration in $XDG_CONFIG_HOME/bonafide. With --dir all of it lies in that
directory, and clients are pointed at it by --config DIR/config.yaml. A trial
shows how an archive works; it protects from nothing, since one machine holds
all of it.

The logs are in the run/ directory of each replica.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !c.Flags().Changed("dir") {
				dir = a.v.GetString("dir")
			}
			s := server{app: a, verbose: verbose, only: only, reset: a.v.GetString("reset")}
			return s.serve(c.Context(), dir, roster, w)
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "", "`directory` of the replica or the trial")
	f.StringVar(&roster, "roster", "", "`file` with the roster that the replica is in")
	f.IntVar(&w.replicas, "replicas", 0, "`number` of replicas of a new trial: 4, 7 or 10 (default 4)")
	f.StringVar(&w.every, "every", "", "`when` update phases of a new trial begin: cron in UTC, or @every D (default @every 1m)")
	f.StringVar(&w.mas, "mas", "", "`kind` of trusted device of a new trial: software or swtpm (default software)")
	f.StringVar(&w.listen, "listen", "", "first `HOST:PORT` of a new trial, two ports a replica (default: from "+trialHost+":7400 on)")
	f.BoolVarP(&verbose, "verbose", "v", false, "print the logs of all processes too")
	f.String("reset", "", "`who` resets the device for an update phase: software, swtpm or reboot, of this machine (default: what the device is; a machine is not rebooted unasked)")
	f.BoolVar(&only, "service-only", false, "lock the device and serve; the machine's boot runs update phases, by bonafide update")
	return c
}

// server is one run of serve.
type server struct {
	*app
	verbose, only bool
	reset         string

	mu     sync.Mutex // guards the rest
	newest archive.Epoch
	failed map[uint32]string
}

func (s *server) serve(ctx context.Context, dir, roster string, w trialWish) error {
	signal.Ignore(syscall.SIGPIPE) // who read our commentary may go
	if err := w.check(); err != nil {
		return err
	}
	if dir == "" && roster == "" {
		dir = dataHome()
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if roster != "" || exists(filepath.Join(dir, memberFile)) {
		err = s.serveOne(ctx, dir, roster)
	} else {
		err = s.serveTrial(ctx, trialAt(dir), w)
	}
	if err == nil && ctx.Err() != nil {
		return s.stopped(ctx)
	}
	return err
}

// stopped says how a server ends that has been told to.
func (s *server) stopped(ctx context.Context) error {
	s.say("stopped; every device is locked")
	if errors.Is(context.Cause(ctx), errTerminated) {
		return nil
	}
	return withStatus(exitInterrupted, errors.New("interrupted"))
}

func (s *server) serveOne(ctx context.Context, dir, roster string) error {
	m, err := openMember(dir)
	if err != nil {
		return err
	}
	if roster != "" {
		r, err := loadRoster(roster)
		if err != nil {
			return err
		}
		if err := m.adopt(r); err != nil {
			return err
		}
	}
	r, err := m.roster()
	if err != nil {
		return err
	}
	return s.run(ctx, r, []member{m}, func() { s.announceOne(m, r) })
}

func (s *server) announceOne(m member, r *archive.Roster) {
	entry, _ := r.Replica(m.ID)
	_ = s.message(serving{"serving", r.ID(), m.dir, "", []uint32{m.ID}})
	s.say("replica %d of archive %s on %s, in %s", m.ID, quote(r.Name), entry.Address, quote(m.dir))
	s.say("%s", cautionOf(m, entry.MAS.Profile))
	switch {
	case s.only:
		s.say("update phases: after each boot of this machine")
	case s.reset == resetReboot:
		s.say("update phases: %s, each by a reboot of this machine", r.Schedule)
	default:
		s.say("update phases: %s; the first one now", r.Schedule)
	}
}

// caution says what a MAS profile does not protect from.
func caution(p trust.Profile) string {
	switch p {
	case trust.ProfileSoftware:
		return "MAS profile software: no protection from anyone who can write these files"
	case trust.ProfileLock:
		return "MAS profile lock: sound on real TPMs, as long as every boot runs the operator's own update image first"
	}
	return "MAS profile " + string(p)
}

// cautionOf knows more of a replica on this machine than its profile says.
func cautionOf(m member, p trust.Profile) string {
	if m.MAS == masSwtpm {
		return "MAS profile " + string(p) + ", by a software TPM: no protection from anyone who can write these files"
	}
	return caution(p)
}

// serving announces a server.
type serving struct {
	Kind     string         `json:"kind"`
	Archive  archive.Digest `json:"archive"`
	Dir      string         `json:"dir"`
	Config   string         `json:"config,omitempty"`
	Replicas []uint32       `json:"replicas"`
}

func (s *server) serveTrial(ctx context.Context, t trial, w trialWish) error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	lock, err := lockFile(t.path(trialLock), t.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	made := !t.exists()
	r, err := t.open(ctx, w)
	if err != nil {
		return err
	}
	members, err := membersIn(t.dir)
	if err != nil {
		return err
	}
	return s.run(ctx, r, members, func() { s.announceTrial(t, r, members, made) })
}

func (s *server) announceTrial(t trial, r *archive.Roster, members []member, made bool) {
	config := filepath.Join(t.configDir(), configFile)
	var ids []uint32
	for _, m := range r.Replicas {
		ids = append(ids, m.ID)
	}
	_ = s.message(serving{"serving", r.ID(), t.dir, config, ids})
	verb := "serving the"
	if made {
		verb = "made a"
	}
	s.say("%s trial archive of %d replicas in %s", verb, r.N(), quote(t.dir))
	s.say("client configuration: %s", quote(config))
	s.say("all on this machine, so a trial of how it works, not of how it protects:")
	s.say("  %s", cautionOf(members[0], r.Profile()))
	s.say("update phases: %s; the first one now", r.Schedule)
	s.say("in another terminal:")
	for _, rest := range []string{"add notes/a.txt FILE --wait", "get notes/a.txt", "status"} {
		s.say("  %s", t.command(rest))
	}
}

// run hosts the replicas until ctx ends or one of them cannot go on.
func (s *server) run(ctx context.Context, r *archive.Roster, members []member, announce func()) error {
	if err := s.checkReset(members); err != nil {
		return err
	}
	for _, m := range members {
		lock, err := m.claim()
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	announce()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go s.awaitReady(ctx, r, members)
	errs := make(chan error)
	for _, m := range members {
		h := &host{member: m, roster: r, verbose: s.logs(), phase: s.phaseEnded, reset: s.reset, only: s.only}
		go func() { errs <- h.run(ctx) }()
	}
	var all []error
	for range members {
		if err := <-errs; err != nil {
			all = append(all, err)
			cancel(err)
		}
	}
	return errors.Join(all...)
}

// checkReset refuses what the devices cannot do, and to reboot a machine for
// several replicas.
func (s *server) checkReset(members []member) error {
	if len(members) > 1 && (s.only || s.reset == resetReboot) {
		return usagef("--reset %s and --service-only are for one replica on a machine of its own, not for a trial", resetReboot)
	}
	for _, m := range members {
		if err := m.checkReset(s.reset); err != nil && !s.only {
			return err
		}
	}
	return nil
}

func (s *server) logs() io.Writer {
	if !s.verbose {
		return nil
	}
	return s.stderr()
}

// phaseEnded reports what came of an update phase: each new epoch once, and
// trouble when it begins and ends.
func (s *server) phaseEnded(id uint32, rp childReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.message(struct {
		Kind    string `json:"kind"`
		Replica uint32 `json:"replica"`
		childReport
	}{"phase", id, rp})
	if rp.Error != "" {
		s.trouble(id, rp.Error)
		return
	}
	delete(s.failed, id)
	if rp.Epoch > s.newest {
		s.newest = rp.Epoch
		s.say("%s epoch %d, joined by %s", time.Now().Format(time.TimeOnly), rp.Epoch, replicas(rp.Joined))
	}
}

// trouble says why a replica's phase made no epoch, unless it said so of the
// one before.
func (s *server) trouble(id uint32, why string) {
	if s.failed == nil {
		s.failed = make(map[uint32]string)
	}
	if s.failed[id] == why {
		return
	}
	s.failed[id] = why
	s.say("%s replica %d: no epoch: %s", time.Now().Format(time.TimeOnly), id, why)
}

// replicas lists IDs in a sentence.
func replicas(ids []uint32) string {
	if len(ids) == 0 {
		return "nobody"
	}
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprint(&b, id)
	}
	return b.String()
}

// awaitReady says when the archive can be used: its first epoch is there, and
// enough of the replicas served here answer.
func (s *server) awaitReady(ctx context.Context, r *archive.Roster, members []member) {
	var clients []*wire.Client
	for _, m := range members {
		if entry, ok := r.Replica(m.ID); ok {
			c := wire.NewClient(entry, r, wire.Options{Timeout: time.Second})
			defer c.Close()
			clients = append(clients, c)
		}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if epoch, ok := readyAt(ctx, clients, min(r.Quorum(), len(clients))); ok {
			_ = s.message(struct {
				Kind  string        `json:"kind"`
				Epoch archive.Epoch `json:"epoch"`
			}{"ready", epoch})
			s.say("%s ready", time.Now().Format(time.TimeOnly))
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// readyAt reports whether need replicas serve an epoch, and the newest that
// need of them have.
func readyAt(ctx context.Context, clients []*wire.Client, need int) (archive.Epoch, bool) {
	var epochs []archive.Epoch
	for _, c := range clients {
		if st, err := c.Status(ctx); err == nil && st.Phase == "service" && st.Epoch > 0 && !st.Damaged {
			epochs = append(epochs, st.Epoch)
		}
	}
	if len(epochs) < need {
		return 0, false
	}
	slices.Sort(epochs)
	return epochs[len(epochs)-need], true
}
