package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/replica"
)

// Row is the update phase with so many Adds, in seconds. The parts follow one
// another; each is the mean over the replicas.
type Row struct {
	Adds     int    `json:"adds"`
	Before   int    `json:"before"` // names, before the first run
	Parts    []Part `json:"parts"`
	Total    Stat   `json:"total"`    // from its request until a Get is answered in the new epoch
	Segments Stat   `json:"segments"` // of TCP that this machine sent meanwhile
	Memory   Stat   `json:"memory"`   // MiB: the most that any replica's process has had
}

// Part is a part of the update phase.
type Part struct {
	Name string `json:"name"`
	Took Stat   `json:"took"`
}

// The names of the parts of an update phase, in the talk's words where it has them.
// PartProcesses is what the others leave of the total.
const (
	PartReset     = "Reset of the device"
	PartOpening   = "Opening: tree rehashed"
	PartMeeting   = "Meeting: 2f+1 replicas heard"
	PartProposal  = "Proposal creation"
	PartAgreement = "Agreement"
	PartUpdate    = "Tree update"
	PartStore     = "Votes and store"
	PartPeers     = "Waiting for peers"
	PartProcesses = "Processes: stop, start, first Get"
)

// The parts of an update phase, and the steps that each is.
var parts = []struct {
	name  string
	steps []string
}{
	{PartReset, []string{"reset"}},
	{PartOpening, []string{replica.StepOpened}},
	{PartMeeting, []string{replica.StepTick}},
	{PartProposal, []string{replica.StepJoined, replica.StepProposals}},
	{PartAgreement, []string{replica.StepDecided}},
	{PartUpdate, []string{replica.StepApplied}},
	{PartStore, []string{replica.StepPrepared, replica.StepCommitted, replica.StepStored}},
	{PartPeers, []string{replica.StepLingered}},
}

func newRow(adds, before int) *Row {
	row := &Row{Adds: adds, Before: before}
	for _, p := range parts {
		row.Parts = append(row.Parts, Part{Name: p.name})
	}
	row.Parts = append(row.Parts, Part{Name: PartProcesses})
	return row
}

// memory is the most that the process of any replica has had, in bytes.
func memory(all []Phase) (most int64) {
	for _, p := range all {
		most = max(most, p.Memory)
	}
	return most
}

func (row *Row) take(m measured) {
	rest := m.total
	for i, p := range parts {
		took := mean(m.phases, p.steps...)
		row.Parts[i].Took.add(took)
		rest -= took
	}
	row.Parts[len(parts)].Took.add(rest)
	row.Total.add(m.total)
	row.Memory.add(float64(memory(m.phases)) / (1 << 20))
	row.Segments.add(m.segments)
}

// measured is one update phase.
type measured struct {
	phases   []Phase
	total    float64
	segments float64
}

// update runs an update phase until a name is proven in the new epoch, and checks
// the epoch: that all replicas made the same, the number of its names, some of them
// and the absence of another.
func (r *run) update(ctx context.Context) (m measured, err error) {
	began, before := time.Now(), segments()
	if m.phases, err = r.Update(ctx); err != nil {
		return m, err
	}
	if err := r.agreed(m.phases); err != nil {
		return m, err
	}
	if err := r.await(ctx, m.phases[0]); err != nil {
		return m, err
	}
	m.total, m.segments = time.Since(began).Seconds(), segments()-before
	if r.rec.names != uint64(r.made) {
		return m, fmt.Errorf("%w: epoch %d has %d names, want %d", archive.ErrIntegrity, r.rec.epoch, r.rec.names, r.made)
	}
	_, err = r.lookUp(ctx, 0, r.made/2, r.made-1)
	return m, errors.Join(err, r.absent(ctx))
}

// await gets a name until the answer is from the epoch that was made.
func (r *run) await(ctx context.Context, p Phase) error {
	for {
		all, err := r.cl.Get(ctx, nameOf(0))
		if err == nil && all[0].Err == nil && all[0].Record.Epoch >= p.Epoch {
			rec := all[0].Record
			r.rec = shown{rec.Epoch, rec.Head(), archive.Digest(rec.Root), rec.Names}
			if r.rec.head != p.Head {
				return fmt.Errorf("%w: epoch %d is proven under another head than was made", archive.ErrIntegrity, rec.Epoch)
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// segments returns how many TCP segments this machine has sent since its start
// (/proc/net/snmp, OutSegs), 0 if it does not say.
func segments() float64 {
	b, _ := os.ReadFile("/proc/net/snmp")
	var head []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if head == nil {
			head = f
			continue
		}
		for i, name := range head {
			if name == "OutSegs" && i < len(f) {
				n, _ := strconv.ParseFloat(f[i], 64)
				return n
			}
		}
	}
	return 0
}
