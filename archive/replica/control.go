package replica

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// ErrNotServed says that no service process listens in a replica's directory.
var ErrNotServed = errors.New("replica is not being served")

const (
	controlAudit  = "/v1/audit"
	controlStatus = "/v1/status"
	maxEvent      = 64 << 10 // bytes of a line
)

// controlServer serves the local operator over the control socket.
func (s *service) controlServer(ctx context.Context) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+controlAudit, s.controlAudit)
	mux.HandleFunc("GET "+controlStatus, func(w http.ResponseWriter, _ *http.Request) { wire.WriteJSON(w, s.status()) })
	return &http.Server{
		Handler:           mux,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
}

// controlAudit runs an audit and sends its events as they come, one JSON line
// each.
func (s *service) controlAudit(w http.ResponseWriter, r *http.Request) {
	if !s.auditing.TryLock() {
		wire.WriteError(w, wire.Errorf(wire.CodeUnavailable, "%v", ErrBusy))
		return
	}
	defer s.auditing.Unlock()
	out := &lineWriter{w: w, c: http.NewResponseController(w)}
	q := r.URL.Query()
	subset, err := ParseSubset(q.Get("subset"))
	if err != nil {
		wire.WriteError(w, badRequest(err))
		return
	}
	a := s.auditor(AuditOptions{Repair: q.Get("repair") == "true", Subset: subset}, out.event)
	if _, err := a.run(r.Context()); err != nil {
		out.event(Event{Kind: eventFailed, Replica: s.ID, Detail: err.Error()})
	}
}

// eventFailed ends the lines of an audit that could not be finished.
const eventFailed = "failed"

type lineWriter struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func (l *lineWriter) event(e Event) {
	b, err := archive.EncodeJSON(e)
	if err != nil {
		panic("replica: encode event: " + err.Error())
	}
	l.c.SetWriteDeadline(time.Now().Add(requestTime))
	l.w.Write(append(b, '\n')) // who has gone has ended the request's context
	l.c.Flush()
}

// AuditServed has the service process of the replica in dir audit itself, and
// tells emit of everything it finds. Without such a process it returns
// ErrNotServed.
func AuditServed(ctx context.Context, dir string, o AuditOptions, emit func(Event)) (Report, error) {
	resp, err := control(ctx, dir, http.MethodPost, fmt.Sprintf("%s?repair=%t&subset=%s", controlAudit, o.Repair, o.Subset))
	if err != nil {
		return Report{}, fmt.Errorf("audit: %w", err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	var report *Report
	for lines.Scan() { // to the end: then the next audit may begin
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return Report{}, fmt.Errorf("audit: %w", err)
		}
		if e.Kind == eventFailed {
			return Report{}, errors.New(e.Detail)
		}
		if emit != nil {
			emit(e)
		}
		if e.Kind == EventReport {
			report = e.Report
		}
	}
	if report != nil {
		return *report, nil
	}
	return Report{}, fmt.Errorf("audit: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF))
}

// StatusServed asks the service process of the replica in dir for its status.
// Without such a process it returns ErrNotServed.
func StatusServed(ctx context.Context, dir string) (wire.Status, error) {
	var st wire.Status
	resp, err := control(ctx, dir, http.MethodGet, controlStatus)
	if err != nil {
		return st, fmt.Errorf("status: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxStatus))
	if err != nil {
		return st, fmt.Errorf("status: %w", err)
	}
	return st, archive.DecodeJSON(b, &st)
}

// control sends a request over the control socket.
func control(ctx context.Context, dir, method, path string) (*http.Response, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return wire.DialUnix(ctx, filepath.Join(dir, runDir), serviceSocket)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, method, "http://replica"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNotServed
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusServiceUnavailable:
		resp.Body.Close()
		return nil, ErrBusy
	case resp.StatusCode != http.StatusOK:
		resp.Body.Close()
		return nil, fmt.Errorf("control socket: HTTP status %d", resp.StatusCode)
	}
	return resp, nil
}
