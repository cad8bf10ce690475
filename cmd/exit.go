package cmd

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/replica"
)

// Exit statuses.
const (
	exitDone        = 0
	exitFailure     = 1
	exitUsage       = 2
	exitPartial     = 3
	exitAbsent      = 4
	exitIntegrity   = 5
	exitUnavailable = 6
	exitStale       = 7
	exitConflict    = 8
	exitDenied      = 9
	exitLocked      = 11
	exitInterrupted = 130
)

// exitTable is what every help and manual page says of them.
var exitTable = []struct {
	status  int
	meaning string
}{
	{exitDone, "done"},
	{exitFailure, "other failure (I/O)"},
	{exitUsage, "usage, bad name, bad configuration"},
	{exitPartial, "partial: some of several items failed"},
	{exitAbsent, "proven absent"},
	{exitIntegrity, "integrity: proof, digest or receipt wrong"},
	{exitUnavailable, "unavailable: no quorum, or update phase in progress (retry)"},
	{exitStale, "stale or rolled back: replicas are behind what is known"},
	{exitConflict, "conflict: name bound to other content"},
	{exitDenied, "denied or over quota"},
	{exitLocked, "data directory locked by another process"},
	{exitInterrupted, "interrupted"},
}

// exits are the statuses that a command ends with, by its path, beside those of all:
// 0, 1, 2 and 130. A session in testdata/script shows each.
var exits = map[string][]int{
	"add":     {exitPartial, exitUnavailable, exitStale, exitConflict, exitDenied},
	"get":     {exitPartial, exitAbsent, exitUnavailable, exitStale},
	"receipt": {exitPartial, exitAbsent, exitUnavailable, exitStale},
	"ls":      {exitAbsent, exitUnavailable, exitStale},
	"verify":  {exitPartial, exitAbsent, exitIntegrity, exitUnavailable, exitStale},
	"log":     {exitIntegrity, exitUnavailable, exitStale},
	"audit":   {exitPartial, exitIntegrity, exitUnavailable, exitStale},
	"update":  {exitPartial, exitUnavailable},
	"status":  {exitUnavailable},
	"guard":   {exitAbsent, exitIntegrity, exitUnavailable, exitStale},
	"serve":   {exitLocked},

	"init replica":  {exitIntegrity},
	"init archive":  {exitIntegrity},
	"init members":  {exitPartial, exitIntegrity},
	"init answer":   {exitLocked},
	"init approval": {exitIntegrity},
}

// exitHelp is the table of what the command at a path ends with, as a block of text,
// indented so that it stays one in a manual page.
func exitHelp(path string) string {
	all := append([]int{exitDone, exitFailure, exitUsage, exitInterrupted}, exits[path]...)
	if path == "" { // of them all
		all = nil
	}
	return "Exit status:\n\n" + exitRows(all)
}

// exitRows are the rows of the table with some statuses; nil: with all.
func exitRows(only []int) string {
	var b strings.Builder
	for _, e := range exitTable {
		if only == nil || slices.Contains(only, e.status) {
			fmt.Fprintf(&b, "    %3d  %s\n", e.status, e.meaning)
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

// statusError gives an error its exit status, where the error alone does not
// say it.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func withStatus(status int, err error) error { return &statusError{status, err} }

func usagef(format string, args ...any) error {
	return withStatus(exitUsage, fmt.Errorf(format, args...))
}

// silentError is told by the exit status alone.
type silentError struct{ err error }

func (e *silentError) Error() string { return e.err.Error() }
func (e *silentError) Unwrap() error { return e.err }

// hintError carries what to do next.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

func withHint(err error, format string, args ...any) error {
	return &hintError{err, fmt.Sprintf(format, args...)}
}

// exitStatus maps an error to the exit status, which is the first in this list
// that fits.
func exitStatus(err error) int {
	var with *statusError
	var absent *client.AbsentError
	var conflict *client.ConflictError
	var none *client.NoQuorumError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &with):
		return with.status
	case errors.As(err, &none): // it unwraps to what the replicas said, which decides nothing
		return exitUnavailable
	case errors.As(err, &absent):
		return exitAbsent
	case errors.As(err, &conflict):
		return exitConflict
	case errors.Is(err, client.ErrStale):
		return exitStale
	case errors.Is(err, client.ErrDenied), errors.Is(err, client.ErrQuota):
		return exitDenied
	case errors.Is(err, replica.ErrTooFew), errors.Is(err, client.ErrUpdating):
		return exitUnavailable
	case errors.Is(err, archive.ErrName), errors.Is(err, archive.ErrRoster):
		return exitUsage
	case errors.Is(err, archive.ErrIntegrity), errors.Is(err, archive.ErrFormat):
		return exitIntegrity
	case errors.Is(err, archive.ErrNotWriter):
		return exitDenied
	}
	return exitFailure
}

// hintOf returns the hint that err carries.
func hintOf(err error) string {
	var h *hintError
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}
