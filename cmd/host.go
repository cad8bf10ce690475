package cmd

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/replica"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/watchdog"
)

const (
	runLock  = "lock"
	hostStop = 3 * time.Second // between a child's SIGTERM and SIGKILL
)

// host runs one replica: its watchdog, and the service and update processes as
// the watchdog's children.
type host struct {
	member
	roster  *archive.Roster
	verbose io.Writer                       // gets the logs too, if set
	phase   func(id uint32, rp childReport) // told of the end of each update phase
	reset   string                          // who resets the device; empty: its kind
	only    bool                            // service phases; others open update mode

	logs   []*logFile
	phases uint64 // seen by changed, which only the watchdog's Run calls

	mu     sync.Mutex // guards all below
	output *bounded   // of the newest update child
	report *childReport
	took   time.Duration // of the newest reset of the device
}

// stepReset is the watchdog's part of an update phase.
const stepReset = "reset"

// timedDevice notes how long its resets take.
type timedDevice struct {
	watchdog.Device
	h *host
}

// Reset implements watchdog.Device.
func (d timedDevice) Reset(ctx context.Context) error {
	began := time.Now()
	err := d.Device.Reset(ctx)
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	d.h.took = time.Since(began)
	return err
}

// run serves the replica, which has been claimed, until ctx ends.
func (h *host) run(ctx context.Context) error {
	device, end, err := h.device(ctx)
	if err != nil {
		return fmt.Errorf("replica %d: %w", h.ID, err)
	}
	defer end()
	defer h.closeLogs()
	w := watchdog.New(h.begin(ctx, h.config(device)))
	l, err := wire.ListenUnix(h.path(runDir), controlSocket)
	if err != nil {
		return fmt.Errorf("replica %d: %w", h.ID, err)
	}
	go h.control(ctx, l, w)
	if err := w.Run(ctx); err != nil {
		return fmt.Errorf("replica %d: %w", h.ID, err)
	}
	return nil
}

// once runs one update phase of the replica, which has been claimed and whose
// device has been reset.
func (h *host) once(ctx context.Context) (rp childReport, err error) {
	device, end, err := h.device(ctx)
	if err != nil {
		return rp, fmt.Errorf("replica %d: %w", h.ID, err)
	}
	defer end()
	defer h.closeLogs()
	if h.mode(ctx) == trust.ModeService {
		err := fmt.Errorf("replica %d: %w", h.ID, replica.ErrLocked)
		return rp, withHint(err, "bonafide serve --dir %s opens an update phase; where systemd does: systemctl start bonafide-reboot", quote(h.dir))
	}
	h.phase = func(_ uint32, end childReport) { rp = end }
	c := h.config(device)
	c.Fresh = true
	if err := watchdog.New(c).Once(ctx); err != nil && rp.Error == "" {
		rp.Status, rp.Error = exitFailure, oneLine(err.Error())
	}
	return rp, nil
}

// begin lets a watchdog whose device a reboot resets go on where this boot is:
// with the update phase if it has not been, otherwise with the service phase.
func (h *host) begin(ctx context.Context, c watchdog.Config) watchdog.Config {
	switch {
	case h.only:
		c.Schedule, c.Locked = never{}, true
	case h.reset == resetReboot:
		c.Locked = h.mode(ctx) == trust.ModeService
		c.Fresh = !c.Locked
	}
	return c
}

// never is the schedule of who opens no update phase.
type never struct{}

func (never) Next(time.Time) time.Time { return time.Time{} }

// mode returns the mode that the device attests, 0 if it does not.
func (h *host) mode(ctx context.Context) trust.Mode {
	ctx, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	mas, err := h.openMAS(ctx)
	if err != nil {
		return 0
	}
	defer mas.Close()
	var n trust.Nonce
	rand.Read(n[:]) // never fails
	att, err := mas.Lookup(ctx, n)
	if err != nil {
		return 0
	}
	st, err := h.roster.VerifyAttested(archive.Attested{Replica: h.ID, Attestation: att}, n)
	if err != nil {
		return 0
	}
	return st.Mode
}

// claim keeps others from serving the replica.
func (m member) claim() (io.Closer, error) {
	if err := os.MkdirAll(m.path(runDir), 0o700); err != nil {
		return nil, err
	}
	return lockFile(m.path(runDir, runLock), m.dir)
}

func (h *host) config(d watchdog.Device) watchdog.Config {
	return watchdog.Config{
		Schedule: h.roster.Schedule, Device: timedDevice{d, h},
		Update: h.updateChild, Service: h.serviceChild, Over: phaseOver,
		PhaseLimit: h.roster.Limits.Phase.Std() + time.Second, // the child ends by itself, and says why
		StopGrace:  hostStop,
		Log:        slog.New(slog.NewTextHandler(h.log("watchdog"), nil)),
		OnChange:   h.changed,
		Alive:      func() { notify("WATCHDOG=1") },
	}
}

// phaseOver are the exit statuses of an update child that has locked the device,
// well or not: another would find it locked. With any other it has died.
var phaseOver = []int{exitDone, exitFailure, exitIntegrity, exitUnavailable, exitStale}

// log opens one of the replica's bounded logs.
func (h *host) log(name string) *logFile {
	l := &logFile{name: h.path(runDir, name+".log")}
	if h.verbose != nil {
		l.also = &prefixed{w: h.verbose, prefix: fmt.Sprintf("replica %d %s: ", h.ID, name)}
	}
	h.logs = append(h.logs, l)
	return l
}

func (h *host) closeLogs() {
	for _, l := range h.logs {
		l.Close()
	}
}

// serviceChild and updateChild make the commands of the two children: this
// same binary, whatever has become of its file.
func (h *host) serviceChild(context.Context) *exec.Cmd {
	c := h.child("service")
	c.Stderr = h.childLog("service")
	return c
}

func (h *host) updateChild(context.Context) *exec.Cmd {
	c := h.child("update", "--child")
	out := new(bounded)
	h.mu.Lock()
	h.output = out
	h.mu.Unlock()
	c.Stdout, c.Stderr = out, h.childLog("update")
	return c
}

// childLog finds the log that the children of one kind share.
func (h *host) childLog(name string) *logFile {
	for _, l := range h.logs {
		if l.name == h.path(runDir, name+".log") {
			return l
		}
	}
	return h.log(name)
}

func (h *host) child(args ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", append(args, "--dir", h.dir)...)
	c.Args[0] = "bonafide"
	return c
}

// changed notes the end of each update phase, and tells systemd when the
// replica serves.
func (h *host) changed(s watchdog.State) {
	if s.Phase == watchdog.PhaseService && s.Child != 0 {
		notify("READY=1")
	}
	if s.Phases == h.phases {
		return
	}
	h.phases = s.Phases
	rp := h.collect(s.LastError)
	if h.phase != nil {
		h.phase(h.ID, rp)
	}
}

// collect reads what the update child printed. A child that printed nothing
// did not come to its end.
func (h *host) collect(trouble string) childReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	var rp childReport
	if h.output == nil || json.Unmarshal(h.output.Bytes(), &rp) != nil {
		rp = childReport{Status: exitFailure, Error: trouble}
	}
	rp.Steps = append([]replica.Step{{Name: stepReset, Took: h.took}}, rp.Steps...)
	h.took = 0
	h.output, h.report = nil, &rp
	return rp
}

// latest is what came of the newest update phase, nil before the first.
func (h *host) latest() *childReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.report
}

// bounded keeps the first maxControl bytes written to it.
type bounded struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *bounded) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Write(p[:min(len(p), maxControl-w.b.Len())])
	return len(p), nil
}

func (w *bounded) Bytes() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Clone(w.b.Bytes())
}

// prefixed says on each line who wrote it.
type prefixed struct {
	w      io.Writer
	prefix string
	part   string // of a line without its end; owned by the one writer
}

func (p *prefixed) Write(b []byte) (int, error) {
	lines := strings.Split(p.part+string(b), "\n")
	p.part = lines[len(lines)-1]
	for _, l := range lines[:len(lines)-1] {
		if _, err := io.WriteString(p.w, p.prefix+plain(l)+"\n"); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
