package cmd

import (
	"fmt"
	"strings"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// Exit statuses of status --check, which are those of monitoring plugins.
const (
	checkOK = iota
	checkWarning
	checkCritical
	checkUnknown
)

var checkStates = []string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}

// checkHelp is the table of those, as exitHelp is of all others.
const checkHelp = `Exit status with --check, in place of the table below:

      0  OK        all replicas are as they should be
      1  WARNING   some are not: unreachable, behind, damaged, reset out of turn
      2  CRITICAL  adds or reads fail, an update phase has not come, or a device
                   attests less than it did
      3  UNKNOWN   the check could not be made`

// health is what status --check finds.
type health struct {
	state   int
	reasons []string

	attested, updating, overdue int // replicas
	epoch                       archive.Epoch
	pending                     uint64
	next                        time.Time
}

// check is what status --check prints in JSON.
type check struct {
	Kind     string        `json:"kind"`
	State    string        `json:"state"`
	Reasons  []string      `json:"reasons"`
	Epoch    archive.Epoch `json:"epoch"`
	Attested int           `json:"attested"`
	Updating int           `json:"updating"`
	Overdue  int           `json:"overdue"`
	Pending  uint64        `json:"pending"`
	Next     time.Time     `json:"next"`
	MAS      string        `json:"mas"`
}

// healthOf judges what the replicas of an archive say and attest at a time.
func healthOf(r *archive.Roster, all []replicaStatus, now time.Time) *health {
	h := &health{next: r.Schedule.Next(now)}
	for _, st := range all {
		h.take(st)
	}
	begun := !r.Schedule.Next(now.Add(-r.Limits.Phase.Std())).After(now) // a phase, so lately that it may go on
	usable := h.attested + h.updating
	switch {
	case h.attested <= r.F && h.attested+h.updating <= r.F:
		h.is(checkCritical, "%d of %d needed replicas attest an epoch", h.attested, r.F+1)
	case usable < 2*r.F+1:
		h.is(checkCritical, "%d of %d replicas that adds and update phases need are there", usable, 2*r.F+1)
	case h.attested <= r.F && !begun:
		h.is(checkWarning, "an update phase is in progress that no schedule asks for")
	}
	if h.overdue > r.F {
		h.is(checkCritical, "an update phase is overdue")
	}
	return h
}

// take counts one replica and says what is wrong with it.
func (h *health) take(st replicaStatus) {
	if st.Phase == "update" {
		h.updating++
		return
	}
	if !st.Reachable {
		h.is(checkWarning, "replica %d: %s", st.ID, st.Note)
		return
	}
	h.pending = max(h.pending, st.Pending)
	if st.Attested && st.Epoch > 0 {
		h.attested++
		h.epoch = max(h.epoch, st.Epoch)
	}
	if st.Overdue {
		h.overdue++
	}
	switch text := st.remarks(); {
	case st.RolledBack:
		h.is(checkCritical, "replica %d: %s", st.ID, text)
	case text != "":
		h.is(checkWarning, "replica %d: %s", st.ID, text)
	}
}

// is notes a reason; the worst decides the state and comes first.
func (h *health) is(state int, format string, args ...any) {
	reason := fmt.Sprintf(format, args...)
	if state > h.state {
		h.state, h.reasons = state, append([]string{reason}, h.reasons...)
		return
	}
	h.reasons = append(h.reasons, reason)
}

// line is what a monitoring plugin prints: one line with performance data after
// a bar, which therefore stands nowhere else.
func (h *health) line(r *archive.Roster, now time.Time) string {
	text := strings.Join(h.reasons, "; ")
	if text == "" {
		text = fmt.Sprintf("archive %s, epoch %d, %d replicas", r.Name, h.epoch, h.attested)
		if h.updating > 0 {
			text += fmt.Sprintf(", %d in an update phase", h.updating)
		}
	}
	text = strings.ReplaceAll(oneLine(text), "|", "/")
	return fmt.Sprintf("BONAFIDE %s - %s; MAS profile %s | epoch=%d replicas=%d;%d:;%d:;0;%d updating=%d overdue=%d pending=%d next_update=%ds",
		checkStates[h.state], text, r.Profile(), h.epoch, h.attested+h.updating, r.N(), 2*r.F+1, r.N(), h.updating, h.overdue, h.pending,
		int64(h.next.Sub(now).Seconds()))
}

// printHealth prints what was found and returns what makes it the exit status.
func (a *app) printHealth(r *archive.Roster, h *health, now time.Time) error {
	m := check{
		Kind: "check", State: checkStates[h.state], Reasons: append([]string{}, h.reasons...), Epoch: h.epoch, Attested: h.attested,
		Updating: h.updating, Overdue: h.overdue, Pending: h.pending, Next: h.next, MAS: string(r.Profile()),
	}
	if err := a.result(m, "%s", h.line(r, now)); err != nil {
		return err
	}
	return checkStatus(h.state)
}

// checkFailed says that the check could not be made, and why.
func (a *app) checkFailed(err error) error {
	m := check{Kind: "check", State: checkStates[checkUnknown], Reasons: []string{err.Error()}}
	if err := a.result(m, "BONAFIDE %s - %s", m.State, strings.ReplaceAll(oneLine(err.Error()), "|", "/")); err != nil {
		return err
	}
	return checkStatus(checkUnknown)
}

// checkStatus is a state of a check as an exit status.
func checkStatus(state int) error {
	if state == checkOK {
		return nil
	}
	return &silentError{withStatus(state, fmt.Errorf("%s", checkStates[state]))}
}
