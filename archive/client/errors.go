package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// Errors that callers decide on.
var (
	// ErrStale reports that the replicas are behind what is known, or that an
	// absence is no longer, or not surely, current.
	ErrStale = errors.New("stale")
	// ErrDenied reports that f+1 replicas, or the roster, deny the write.
	ErrDenied = errors.New("denied")
	// ErrQuota reports that f+1 replicas, or the roster, find it too much.
	ErrQuota = errors.New("over quota")
	// ErrChanged reports a source that was not the same when read again.
	ErrChanged = errors.New("changed while it was read")
	// ErrIntegrity reports what does not verify.
	ErrIntegrity = archive.ErrIntegrity
	// ErrUpdating is a replica's error while its service process is stopped.
	ErrUpdating = wire.ErrUpdating
)

// NoQuorumError reports that too few replicas answered well. It unwraps to
// their errors.
type NoQuorumError struct {
	Need     int
	Got      int
	Replicas map[uint32]error
}

// Error lists each replica's error.
func (e *NoQuorumError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d needed replicas answered", e.Got, e.Need)
	sep := ": "
	for _, id := range e.ids() {
		subject := fmt.Sprintf("replica %d: ", id)
		b.WriteString(sep + subject + strings.TrimPrefix(e.Replicas[id].Error(), subject))
		sep = "; "
	}
	return b.String()
}

// Unwrap returns the replicas' errors, by ascending replica.
func (e *NoQuorumError) Unwrap() []error {
	var errs []error
	for _, id := range e.ids() {
		errs = append(errs, e.Replicas[id])
	}
	return errs
}

func (e *NoQuorumError) ids() []uint32 {
	var ids []uint32
	for id := range e.Replicas {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Updating reports whether some replica is in an update phase, so that asking
// again later may help.
func (e *NoQuorumError) Updating() bool { return errors.Is(e, ErrUpdating) }

// AbsentError reports that a name is proven not to be bound, as of Record.
type AbsentError struct {
	Name    archive.Name
	Record  archive.EpochRecord
	Pending bool      // some replica says that it waits for the next update phase
	Due     time.Time // when that is scheduled
}

// Error names the epoch.
func (e *AbsentError) Error() string {
	return fmt.Sprintf("proven absent as of epoch %d", e.Record.Epoch)
}

// ConflictError reports that a name is proven to be bound to other content.
type ConflictError struct {
	Name   archive.Name
	Want   archive.Content
	Bound  archive.Entry
	Record archive.EpochRecord // under which that is proven
}

// Error names the content that won.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s is bound to other content since epoch %d: sha256 %s", e.Name, e.Bound.Epoch, e.Bound.Digest)
}

// transient reports whether asking the same replica again may help.
func transient(err error) bool {
	var e *wire.Error
	if errors.As(err, &e) {
		return e.Code == wire.CodeUnavailable || e.Code == wire.CodeDamaged
	}
	for _, final := range []error{archive.ErrIntegrity, archive.ErrFormat, wire.ErrPin, ErrChanged, errSource} {
		if errors.Is(err, final) {
			return false
		}
	}
	return true
}

// retry calls try until it succeeds, fails for good, or ctx ends; then it
// returns the last error that was not the context's.
func retry(ctx context.Context, try func(context.Context) error) error {
	var last error
	for wait := backoffMin; ; wait = min(2*wait, backoffMax) {
		err := try(ctx)
		if err == nil || !transient(err) {
			return err
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if !pause(ctx, wait) {
			return last
		}
	}
}

// pause waits for d and reports whether ctx still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}

// inTime says in plain words that a replica has not answered.
func inTime(err error, d time.Duration) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fmt.Errorf("no answer within %s", d)
	}
	return err
}
