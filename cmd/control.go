package cmd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/replica"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust/watchdog"
)

// The control socket of a watchdog takes one request a connection, a line of
// JSON, and gives one reply.
const (
	controlSocket  = "control"
	maxControl     = 64 << 10 // bytes of a request or a reply
	maxControllers = 16       // connections at once
	controlLimit   = 5 * time.Second
)

// What a controller may ask for.
const (
	doState  = "state"
	doUpdate = "update"
)

type controlRequest struct {
	Do string `json:"do"`
}

// controlReply says what the watchdog is doing and, after an update phase, what
// came of it.
type controlReply struct {
	Replica  uint32       `json:"replica"`
	Watchdog int          `json:"watchdog"` // process id
	Child    int          `json:"child"`    // process id, 0: none
	Phase    string       `json:"phase"`
	Reboots  bool         `json:"reboots,omitempty"` // the machine, for each update phase
	Last     time.Time    `json:"last"`
	Next     time.Time    `json:"next"`
	Trouble  string       `json:"trouble,omitempty"`
	Report   *childReport `json:"report,omitempty"`
	Error    string       `json:"error,omitempty"`
}

// childReport is what an update child prints of its phase, its only output.
type childReport struct {
	Epoch    archive.Epoch  `json:"epoch"`
	Head     archive.Digest `json:"head"`
	Tick     uint64         `json:"tick"`
	Joined   []uint32       `json:"joined"`
	Advanced bool           `json:"advanced"`
	CaughtUp bool           `json:"caught_up"`
	Steps    []replica.Step `json:"steps,omitempty"`  // the reset of the device first
	Memory   int64          `json:"memory,omitempty"` // the most that the process has had, in bytes
	Status   int            `json:"status"`
	Error    string         `json:"error,omitempty"`
}

// control answers controllers until ctx ends.
func (h *host) control(ctx context.Context, l net.Listener, w *watchdog.Watchdog) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	room := make(chan struct{}, maxControllers)
	for {
		room <- struct{}{}
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { <-room }()
			defer conn.Close()
			h.obey(ctx, conn, w)
		}()
	}
}

func (h *host) obey(ctx context.Context, conn net.Conn, w *watchdog.Watchdog) {
	conn.SetDeadline(time.Now().Add(controlLimit))
	var req controlRequest
	if err := receive(conn, &req); err != nil {
		return
	}
	var err error
	switch req.Do {
	case doState:
	case doUpdate:
		if h.only {
			err = errBooted
			break
		}
		conn.SetDeadline(time.Time{})
		err = w.Trigger(ctx)
	default:
		err = fmt.Errorf("unknown request %q", req.Do)
	}
	conn.SetDeadline(time.Now().Add(controlLimit))
	_ = send(conn, h.reply(w.State(), req.Do, err))
}

func (h *host) reply(s watchdog.State, do string, err error) controlReply {
	r := controlReply{
		Replica: h.ID, Watchdog: os.Getpid(), Child: s.Child, Phase: s.Phase,
		Reboots: h.reset == resetReboot,
		Last:    s.Last, Next: s.Next, Trouble: s.LastError, Report: h.latest(),
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// errBooted is told to who asks a watchdog of service phases alone for an update
// phase.
var errBooted = errors.New("its update phases begin with a boot of its machine: systemctl start bonafide-reboot")

// errNoWatchdog says that nobody serves the replica.
var errNoWatchdog = errors.New("nothing serves it")

// ask sends one request to the replica's watchdog.
func (m member) ask(ctx context.Context, do string) (controlReply, error) {
	var r controlReply
	conn, err := wire.DialUnix(ctx, m.path(runDir), controlSocket)
	if err != nil {
		return r, withStatus(exitUnavailable, fmt.Errorf("replica %d: %w", m.ID, errNoWatchdog))
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if err := send(conn, controlRequest{do}); err != nil {
		return r, fmt.Errorf("replica %d: control: %w", m.ID, err)
	}
	if err := receive(conn, &r); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return r, fmt.Errorf("replica %d: control: %w", m.ID, err)
	}
	return r, nil
}

func send(w io.Writer, v any) error {
	_, err := io.WriteString(w, encode(v)+"\n")
	return err
}

func receive(r io.Reader, v any) error {
	line, err := bufio.NewReader(io.LimitReader(r, maxControl)).ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}
