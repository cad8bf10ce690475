package replica

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

var (
	trials = flag.Int("trials", trialsUnlessTold, "how often TestCampaign damages a store")
	seed   = flag.Uint64("seed", 1, "of the random choices of TestCampaign")
	only   = flag.Int("only", -1, "the one trial of TestCampaign to run")
)

var trialsUnlessTold = len(archivetest.Thinned(make([]struct{}, 12)))

// Files of one replica's store are damaged, at random, while the replica is
// down or while it serves. Damage to live data, which is whatever makes the
// store say something else than before, must be found and repaired from peers,
// of which one lies; meanwhile no answer may be wrong, nothing may panic or
// hang, and what is acknowledged must be kept.
func TestCampaign(t *testing.T) {
	c := newCampaign(t)
	for i := range *trials {
		if *only < 0 || i == *only {
			c.trial(i)
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("seed %d: %v", *seed, &c.sum)
}

// campaign is an archive whose first replica suffers.
type campaign struct {
	*archivetest.Archive
	t        testing.TB
	dir      string
	victim   *archivetest.Replica
	bound    map[archive.Name][]byte
	names    []archive.Name // of bound
	pristine string         // a copy of the victim's store
	stale    []string       // copies of it in earlier epochs
	want     logical
	sum      tally
}

// tally is what a campaign came to.
type tally struct {
	kinds                         map[string]int
	down, serving                 int // trials
	live, found, repaired         int // trials with damage to live data
	answers, refusals, proofs     int
	contents, dropped, adds, lost int // dropped: contents that the reader found wrong; lost: pending submissions
}

func (s *tally) String() string {
	var kinds []string
	for _, k := range slices.Sorted(maps.Keys(s.kinds)) {
		kinds = append(kinds, fmt.Sprintf("%s %d", k, s.kinds[k]))
	}
	return fmt.Sprintf("%d trials down, %d serving; live data damaged in %d, found in %d, repaired in %d; "+
		"%d right answers, %d right proofs, %d refusals; %d right contents, %d wrong ones seen by their digest; "+
		"%d adds acknowledged and kept, %d pending submissions lost; damage: %s",
		s.down, s.serving, s.live, s.found, s.repaired, s.answers, s.proofs, s.refusals, s.contents, s.dropped,
		s.adds, s.lost, strings.Join(kinds, ", "))
}

func newCampaign(t testing.TB) *campaign {
	c := &campaign{Archive: archivetest.NewRoster(t, 4), t: t, dir: t.TempDir(), bound: make(map[archive.Name][]byte)}
	c.sum.kinds = make(map[string]int)
	c.victim = c.Replicas[0]
	rnd := rand.New(rand.NewPCG(*seed, 1))
	for e, n := range []int{20, 300, 60} {
		c.bind(rnd, e+1, n)
		if e < 2 {
			c.stale = append(c.stale, c.copyStore())
		}
	}
	c.names = slices.Sorted(maps.Keys(c.bound))
	c.Pack(t, c.victim)
	startLiar(t, c.Archive, c.Replicas[2])
	victim := startService(t, c.Archive, c.victim)
	c.submit(victim, startService(t, c.Archive, c.Replicas[1]), startService(t, c.Archive, c.Replicas[3]))
	victim.stop()
	c.pristine = c.copyStore()
	c.want = c.look(c.pristine)
	return c
}

// bind makes an epoch with n names, most of them of one content.
func (c *campaign) bind(rnd *rand.Rand, epoch, n int) {
	all := names(fmt.Sprintf("shared/%d", epoch), n)
	for i := range 12 {
		all[archive.Name(fmt.Sprintf("small/%d/%d", epoch, i))] = noise(rnd, 1+rnd.IntN(4096))
	}
	all[archive.Name(fmt.Sprintf("middle/%d", epoch))] = noise(rnd, 100_000)
	if epoch == 2 {
		all["large"] = noise(rnd, 2*archive.BlockSize+12345)
	}
	c.Certify(c.t, all)
	maps.Copy(c.bound, all)
}

func noise(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// submit leaves submissions pending at the victim and at its honest peers.
func (c *campaign) submit(all ...*served) {
	for i := range 70 {
		files := map[archive.Name][]byte{archive.Name(fmt.Sprintf("pending/%d", i)): fmt.Appendf(nil, "pending %d", i/8)}
		sub := c.Submission(time.Now(), files)
		for _, s := range all {
			if _, err := upAndAdd(c.t, c.Archive, s, sub, files); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

func (c *campaign) storeDir() string { return filepath.Join(c.victim.Dir, storeDir) }

// copyStore returns a copy of the victim's store.
func (c *campaign) copyStore() string { return c.copyOf(c.storeDir()) }

func (c *campaign) copyOf(store string) string {
	dir, err := os.MkdirTemp(c.dir, "")
	if err == nil {
		err = os.CopyFS(dir, os.DirFS(store))
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return dir
}

// reset gives the victim its store back.
func (c *campaign) reset() {
	c.t.Helper()
	fresh := c.copyOf(c.pristine)
	removeAll(c.t, c.storeDir())
	if err := os.Rename(fresh, c.storeDir()); err != nil {
		c.t.Fatal(err)
	}
}

// trialTime is how long a trial may take.
const trialTime = 2 * time.Minute

func (c *campaign) trial(i int) {
	rnd := rand.New(rand.NewPCG(*seed, uint64(i)+1000))
	hang := time.AfterFunc(trialTime, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("trial %d of seed %d hangs", i, *seed))
	})
	defer hang.Stop()
	c.reset()
	p := &patient{campaign: c, rnd: rnd, made: make(map[archive.Digest]string)}
	quiet := func() {}
	if rnd.IntN(2) == 0 {
		c.sum.down++
		p.damage()
		if rnd.IntN(2) == 0 {
			p.auditDown()
		}
		p.start()
	} else {
		c.sum.serving++
		p.start()
		p.ready()
		quiet = p.askAlways()
		p.damage()
		p.over.Store(true)
	}
	p.heal()
	quiet()
	p.stop()
	p.check()
	if c.t.Failed() {
		c.t.Logf("trial %d of seed %d, damage: %v\n%s", i, *seed, p.done, p.log.String())
	}
}

// patient is the victim in one trial.
type patient struct {
	*campaign
	rnd    *rand.Rand
	done   []string // damage
	live   bool     // live data was damaged
	found  bool
	client *wire.Client
	log    logBuffer
	end    func()
	ended  sync.WaitGroup
	over   atomic.Bool               // the damage is done
	made   map[archive.Digest]string // new submissions
	acked  []archive.Submission      // of them, since the damage was done
}

// logBuffer takes what a process logs.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (p *patient) config() Config {
	return loggingTo(serviceConfig(p.t, p.Archive, p.victim), &p.log)
}

func loggingTo(c Config, w io.Writer) Config {
	c.Log = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return c
}

// start serves the victim, and again when the service ends by itself, as a
// watchdog does.
func (p *patient) start() {
	ctx, cancel := context.WithCancel(context.Background())
	p.end = cancel
	p.ended.Go(func() {
		for ctx.Err() == nil {
			if err := Serve(ctx, p.config()); err != nil {
				fmt.Fprintf(&p.log, "served: %v\n", err)
				pause(ctx, 20*time.Millisecond)
			}
		}
	})
	p.client = wire.NewClient(p.victim.Replica, p.Roster, wire.Options{Timeout: 5 * time.Second})
}

func (p *patient) stop() {
	if p.end == nil {
		return
	}
	p.end()
	p.ended.Wait()
	p.client.Close()
	p.end = nil
}

func (p *patient) ready() {
	waitFor(p.t, "the victim serves", func() bool {
		st, err := p.client.Status(p.t.Context())
		return err == nil && st.Note == ""
	})
}

// auditDown wants the damage found by an audit that changes nothing.
func (p *patient) auditDown() {
	report, st := audit(p.t, p.Archive, p.victim, false)
	p.found = report.Damaged > 0
	if p.live && !p.found {
		p.t.Errorf("damage to live data not found: %+v\n%s", report, st)
	}
}

// heal waits until the victim is whole: by itself, or told to repair.
func (p *patient) heal() {
	var last string
	for late := time.Now().Add(trialTime / 4); time.Now().Before(late); {
		st := new(story)
		report, err := AuditServed(p.t.Context(), p.victim.Dir, AuditOptions{Repair: true}, st.emit)
		for _, e := range st.events { // also of an audit that ended with its process
			p.found = p.found || e.Kind == EventDamage
		}
		status, serr := p.client.Status(p.t.Context())
		if err == nil && report.Damaged == 0 && serr == nil && status.Note == "" && !status.Damaged {
			return
		}
		last = fmt.Sprintf("audit %+v, %v, status %+v, %v\n%s", report, err, status, serr, st)
		pause(p.t.Context(), 5*time.Millisecond)
	}
	p.t.Errorf("the victim does not become whole: %s", last)
}

// check compares what is in the store in the end with the truth.
func (p *patient) check() {
	for _, said := range []string{"the tree is damaged", "damage found", "gave a wrong proof", "msg=damage", `msg="damage`} {
		p.found = p.found || strings.Contains(p.log.String(), said)
	}
	if strings.Contains(p.log.String(), "panic serving") {
		p.t.Error("a request ended in a panic")
	}
	got := p.look(p.storeDir())
	if p.live {
		p.sum.live++
	}
	if diff := p.want.diff(got); diff != "" {
		p.t.Errorf("not repaired: %s", diff)
	} else if p.live {
		p.sum.repaired++
	}
	if p.live && p.found {
		p.sum.found++
	}
	if p.live && !p.found {
		p.t.Errorf("damage to live data not found")
	}
	p.checkPending(got)
}

// checkPending wants nothing pending that was not submitted, and all that was
// acknowledged since the damage.
func (p *patient) checkPending(got logical) {
	missing := 0
	for _, s := range p.acked {
		if got.pending[s.Digest()] == "" {
			missing++
		}
	}
	if missing > 0 {
		p.t.Errorf("%d of %d acknowledged submissions are lost", missing, len(p.acked))
	}
	p.sum.adds += len(p.acked)
	for d, row := range got.pending {
		if p.want.pending[d] != row && p.made[d] != row {
			p.t.Errorf("pending: a submission that nobody made")
		}
	}
	for d := range p.want.pending {
		if got.pending[d] == "" {
			p.sum.lost++
		}
	}
}

// logical is what a store says.
type logical struct {
	history  map[string]string
	contents map[archive.Digest]bool // right
	tree     string                  // its rows, or why they cannot be read
	pending  map[archive.Digest]string
}

// diff returns where what must be right differs.
func (l logical) diff(got logical) string {
	switch {
	case !maps.Equal(l.history, got.history):
		return fmt.Sprintf("history: %d files are right of %d", len(got.history), len(l.history))
	case !maps.Equal(l.contents, got.contents):
		return fmt.Sprintf("contents: %d are right of %d", len(got.contents), len(l.contents))
	case l.tree != got.tree:
		return "tree: " + got.tree[:min(200, len(got.tree))]
	}
	return ""
}

// look reads a store by other means than those that are tested. It leaves the
// store as it is.
func (c *campaign) look(dir string) logical {
	l := logical{history: make(map[string]string), contents: make(map[archive.Digest]bool)}
	for e := archive.Epoch(1); e <= c.Record.Epoch; e++ {
		for _, suffix := range []string{recordSuffix, certificateSuffix} {
			name := fmt.Sprintf("%020d%s", e, suffix)
			if b, err := readRegular(filepath.Join(dir, historyDir, name)); err == nil && string(b) == c.signed(e, suffix) {
				l.history[name] = string(b)
			}
		}
	}
	store := newStore(dir, c.Roster)
	defer store.Close()
	for _, b := range c.bound {
		if holds(store, b) {
			l.contents[archive.DigestOf(b)] = true
		}
	}
	l.tree = c.rows(filepath.Join(dir, treeFile))
	l.pending = waitingIn(filepath.Join(dir, pendingFile))
	return l
}

// signed returns what a file of history must hold.
func (c *campaign) signed(e archive.Epoch, suffix string) string {
	h := c.History()[e-1]
	if suffix == recordSuffix {
		return h.Record
	}
	return string(h.Certificate)
}

func readRegular(path string) ([]byte, error) {
	if err := checkRegular(path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

func holds(store *Store, b []byte) bool {
	f, err := store.OpenContent(archive.DigestOf(b))
	if err != nil {
		return false
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	return err == nil && bytes.Equal(got, b)
}

// rows returns all rows of the file, met by a walk and found by search.
func (c *campaign) rows(path string) string {
	var out strings.Builder
	err := readBolt(path, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("leaves"))
		n := 0
		for k, v := b.Cursor().First(); k != nil && n < 1<<16; n++ {
			fmt.Fprintf(&out, "%q %x\n", k, v)
			cur := b.Cursor()
			cur.Seek(k)
			k, v = cur.Next()
		}
		for _, p := range c.Pairs() {
			if !bytes.Equal(b.Get(p.Name), p.Val) {
				return fmt.Errorf("%q is not found", p.Name)
			}
		}
		return digests(tx, &out)
	})
	if err != nil {
		return err.Error()
	}
	return out.String()
}

// digests writes all stored digests, and the state.
func digests(tx *bbolt.Tx, out io.Writer) error {
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		if string(name) == "leaves" {
			return nil
		}
		return b.ForEach(func(k, v []byte) error { _, err := fmt.Fprintf(out, "%s %q %x\n", name, k, v); return err })
	})
}

// waitingIn returns the rows of a pending buffer that are what they say.
func waitingIn(path string) map[archive.Digest]string {
	all := make(map[archive.Digest]string)
	readBolt(path, func(tx *bbolt.Tx) error {
		return tx.Bucket(submissionsBucket).ForEach(func(k, v []byte) error {
			if d := archive.DigestOf(v); bytes.Equal(k, d[:]) {
				all[d] = string(v)
			}
			return nil
		})
	})
	return all
}

// readBolt reads a copy of a file that may be damaged.
func readBolt(path string, f func(*bbolt.Tx) error) (err error) {
	b, err := readRegular(path)
	if err != nil {
		return err
	}
	if err := acyclic(b); err != nil {
		return err
	}
	copied, err := os.CreateTemp("", "look-")
	if err != nil {
		return err
	}
	defer os.Remove(copied.Name())
	_, err = copied.Write(b)
	if err := errors.Join(err, copied.Close()); err != nil {
		return err
	}
	return guard(func() error {
		db, err := bbolt.Open(copied.Name(), 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
		if err != nil {
			return err
		}
		defer db.Close()
		return db.View(f)
	})
}

// acyclic refuses files in which bbolt might walk for ever.
func acyclic(b []byte) error {
	const size, branch, deepest = 4096, 1, 6
	var walk func(id, depth int) error
	walk = func(id, depth int) error {
		if (id+1)*size > len(b) || b[id*size+8] != branch {
			return nil
		}
		if depth == deepest {
			return errors.New("pages in a circle")
		}
		p := b[id*size:][:size]
		for i := range min(int(p[10])|int(p[11])<<8, 200) {
			e := p[16+16*i:]
			if err := walk(int(e[8])|int(e[9])<<8, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	for id := range len(b) / size {
		if err := walk(id, 0); err != nil {
			return err
		}
	}
	return nil
}

// damage damages files of the victim's store, and notes whether live data was
// hit.
func (p *patient) damage() {
	a, b := p.rnd.Uint64(), p.rnd.Uint64()
	// The same to a copy: a victim that serves may repair it before we look.
	shadow := &vandal{p.campaign, rand.New(rand.NewPCG(a, b)), p.copyOf(p.pristine)}
	planned, err := shadow.damage()
	if err != nil {
		p.t.Fatalf("damage: %v: %v", planned, err)
	}
	p.done, err = (&vandal{p.campaign, rand.New(rand.NewPCG(a, b)), p.storeDir()}).damage()
	p.live = err == nil && slices.Equal(p.done, planned) && p.want.diff(p.look(shadow.dir)) != ""
	os.RemoveAll(shadow.dir)
}

// vandal damages files below a directory.
type vandal struct {
	*campaign
	rnd *rand.Rand
	dir string
}

// damage does one to three things to files, and says which.
func (p *vandal) damage() (done []string, err error) {
	for range 1 + p.rnd.IntN(3) {
		kind, path := kinds[p.rnd.IntN(len(kinds))], p.anyFile()
		if path == "" {
			break
		}
		done = append(done, kind.name+" "+strings.TrimPrefix(path, p.dir+"/"))
		p.sum.kinds[kind.name]++
		if err := kind.do(p, path); err != nil {
			return done, err
		}
	}
	return done, nil
}

// anyFile returns a file of the store: each part of it is as likely.
func (p *vandal) anyFile() string {
	parts := make(map[string][]string)
	filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			part, _, _ := strings.Cut(strings.TrimPrefix(path, p.dir+"/"), "/")
			parts[part] = append(parts[part], path)
		}
		return nil
	})
	if len(parts) == 0 {
		return ""
	}
	some := slices.Sorted(maps.Keys(parts))
	in := parts[some[p.rnd.IntN(len(some))]]
	return in[p.rnd.IntN(len(in))]
}

// kinds are the ways to damage a file.
var kinds = []struct {
	name string
	do   func(*vandal, string) error
}{
	{"bit", inPlace(func(r *rand.Rand, b []byte) { b[r.IntN(len(b))] ^= 1 << r.IntN(8) })},
	{"run", inPlace(func(r *rand.Rand, b []byte) {
		for at, i := r.IntN(len(b)), 0; at < len(b) && i < 64; at, i = at+1, i+1 {
			b[at] = byte(r.Uint32())
		}
	})},
	{"header", inPlace(func(r *rand.Rand, b []byte) {
		b[min(len(b)-1, r.IntN(len(b)/4096+1)*4096+r.IntN(200))] ^= 1 << r.IntN(8)
	})},
	{"zeroed page", inPlace(func(r *rand.Rand, b []byte) { clear(pageOf(r, b)) })},
	{"swapped pages", inPlace(func(r *rand.Rand, b []byte) {
		x, y := pageOf(r, b), pageOf(r, b)
		n := min(len(x), len(y))
		tmp := bytes.Clone(x[:n])
		copy(x, y[:n])
		copy(y, tmp)
	})},
	{"page twice", inPlace(func(r *rand.Rand, b []byte) { copy(pageOf(r, b), pageOf(r, b)) })},
	{"moved page", inPlace(func(r *rand.Rand, b []byte) {
		if to, from := pageOf(r, b), pageOf(r, b); min(len(to), len(from)) > 8 {
			copy(to[8:], from[8:]) // it keeps its number
		}
	})},
	{"truncated", func(p *vandal, path string) error { return os.Truncate(path, p.rnd.Int64N(sizeOf(path)+1)) }},
	{"extended", func(p *vandal, path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(noise(p.rnd, 1+p.rnd.IntN(10_000)))
		return errors.Join(err, f.Close())
	}},
	{"deleted", func(_ *vandal, path string) error { return os.Remove(path) }},
	{"directory", func(_ *vandal, path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }},
	{"pipe", func(_ *vandal, path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) }},
	{"link to nowhere", func(_ *vandal, path string) error { return relink("nowhere", path) }},
	{"link to itself", func(_ *vandal, path string) error { return relink(path, path) }},
	{"link to another", func(p *vandal, path string) error { return relink(p.anyFile(), path) }},
	{"another's bytes", func(p *vandal, path string) error { return copyOver(p.anyFile(), path) }},
	{"another file", func(p *vandal, path string) error { return replaceBy(p.anyFile(), path) }},
	{"stale bytes", func(p *vandal, path string) error { return copyOver(p.staleOf(path), path) }},
	{"stale file", func(p *vandal, path string) error { return replaceBy(p.staleOf(path), path) }},
	{"its directory", func(_ *vandal, path string) error { return os.RemoveAll(filepath.Dir(path)) }},
}

// inPlace changes bytes of a file where it lies, as a disk does.
func inPlace(f func(*rand.Rand, []byte)) func(*vandal, string) error {
	return func(p *vandal, path string) error {
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			return err
		}
		f(p.rnd, b)
		return overwrite(path, b)
	}
}

func overwrite(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Truncate(int64(len(b))), f.Close())
}

func pageOf(r *rand.Rand, b []byte) []byte {
	at := r.IntN(len(b)/4096+1) * 4096
	if at == len(b) {
		at = max(0, at-4096)
	}
	return b[at:min(at+4096, len(b))]
}

func sizeOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

func relink(to, path string) error { return errors.Join(os.Remove(path), os.Symlink(to, path)) }

func copyOver(from, path string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return overwrite(path, b)
}

func replaceBy(from, path string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.Remove(path), os.WriteFile(path, b, 0o600))
}

// staleOf returns the file as it was in an earlier epoch, or one of its kind.
func (p *vandal) staleOf(path string) string {
	old := p.stale[p.rnd.IntN(len(p.stale))]
	name := filepath.Join(old, strings.TrimPrefix(path, p.dir))
	if _, err := os.Stat(name); err != nil {
		return filepath.Join(old, treeFile)
	}
	return name
}

// askAlways asks the victim for everything until stop is called.
func (p *patient) askAlways() (stop func()) {
	ctx, cancel := context.WithCancel(p.t.Context())
	var all sync.WaitGroup
	var mu sync.Mutex // guards sum and acked
	for i := range 3 {
		rnd := rand.New(rand.NewPCG(p.rnd.Uint64(), uint64(i)))
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				q := question{p, ctx, rnd, &mu}
				if i == 2 {
					q.history()
					q.add(n % 100)
					continue
				}
				q.name()
				q.proof()
				q.content()
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

// question is something asked of the victim while it suffers.
type question struct {
	*patient
	ctx context.Context
	rnd *rand.Rand
	mu  *sync.Mutex
}

func (q question) count(n *int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	*n++
}

// any returns a name that is bound, or now and then one that is not.
func (q question) any() archive.Name {
	n := q.names[q.rnd.IntN(len(q.names))]
	if q.rnd.IntN(3) == 0 {
		n += "x"
	}
	return n
}

// right checks what a verified view says of a name.
func (q question) right(v *tree.View, n archive.Name) {
	e, ok, err := archive.Lookup(v, n)
	b, there := q.bound[n]
	if err != nil || ok != there || ok && e.Content != archivetest.ContentOf(b) {
		q.t.Errorf("wrong answer for %q: %v, %t, %v", n, e, ok, err)
	}
}

func (q question) name() {
	n, nonce := q.any(), trust.Nonce(noise(q.rnd, 32))
	ans, err := q.client.Answer(q.ctx, wire.AnswerRequest{Nonce: nonce, Name: n})
	if err != nil {
		q.count(&q.sum.refusals)
		return
	}
	v, err := ans.Verify(q.Roster, q.victim.ID, nonce)
	if err != nil || v.Head != q.Record.Head() {
		q.t.Errorf("an answer that does not verify: %v", err)
		return
	}
	q.right(v.View, n)
	q.count(&q.sum.answers)
}

func (q question) proof() {
	n := q.any()
	proofs, err := q.client.Proofs(q.ctx, q.Record.Head(), []archive.Name{n})
	if err != nil {
		q.count(&q.sum.refusals)
		return
	}
	v, err := archive.VerifyProof(q.Record, proofs[0])
	if err != nil {
		q.t.Errorf("a proof that does not verify: %v", err)
		return
	}
	q.right(v, n)
	q.count(&q.sum.proofs)
}

// content reads a content as a reader does, who believes only its digest.
func (q question) content() {
	b := q.bound[q.names[q.rnd.IntN(len(q.names))]]
	body, size, err := q.client.Content(q.ctx, archive.DigestOf(b), 0)
	if err != nil {
		q.count(&q.sum.refusals)
		return
	}
	defer body.Close()
	got, err := io.ReadAll(io.LimitReader(body, int64(len(b))+1))
	switch {
	case err != nil:
		q.count(&q.sum.refusals)
	case size == int64(len(b)) && bytes.Equal(got, b):
		q.count(&q.sum.contents)
	default:
		q.count(&q.sum.dropped)
	}
}

func (q question) history() {
	all, err := q.client.History(q.ctx, 1, 10)
	if err != nil {
		q.count(&q.sum.refusals)
		return
	}
	for _, h := range all {
		rec, _, err := archive.VerifyRecord(q.Roster, []byte(h.Record), h.Certificate)
		if err == nil && h.Record != q.History()[rec.Epoch-1].Record {
			q.t.Errorf("another record of epoch %d verifies", rec.Epoch)
		}
	}
}

// add submits a new name; what is acknowledged must be kept.
func (q question) add(i int) {
	all := map[archive.Name][]byte{archive.Name(fmt.Sprintf("new/%d", i)): []byte("shared")}
	s, over := q.Submission(time.Now(), all), q.over.Load()
	q.mu.Lock()
	q.made[s.Digest()] = string(s.Bytes())
	q.mu.Unlock()
	if _, err := q.client.Add(q.ctx, s); err != nil {
		q.count(&q.sum.refusals)
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if over {
		q.acked = append(q.acked, s)
	}
}
