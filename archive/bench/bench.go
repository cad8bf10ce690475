// Package bench measures an archive while it runs, in the form of the Bonafide
// talk's evaluation: Get and Add, audit and repair after losses, and the update
// phase by its parts. It works through a client and the replicas' own sockets, and
// checks every result that it times: a measurement whose result is wrong ends the
// run.
package bench

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/replica"
)

// Config says which archive is measured and how much. The archive must be empty,
// run for this alone, and have no update phases but those of Update.
type Config struct {
	Roster *archive.Roster
	Key    ed25519.PrivateKey // of a writer of any name
	Dirs   []string           // of the replicas, on this machine
	// Update runs an update phase of all replicas and returns what each made of it.
	Update func(context.Context) ([]Phase, error)

	Names  int   // that the archive is filled with first
	Adds   []int // names of an update phase each, in this order
	Losses []int // percent of one replica's pages
	Runs   int   // of each repair and update phase
	Ops    int   // single Gets and Adds

	// Show is told how far a part of the run is. Nil: nobody.
	Show func(what string, done, total uint64)
}

// Phase is what one replica made of an update phase.
type Phase struct {
	Replica  uint32
	Epoch    archive.Epoch
	Head     archive.Digest
	Advanced bool
	Steps    []replica.Step
	Memory   int64 // the most that its process has had, in bytes
}

// Result holds all that was measured. Times of operations are in milliseconds, all
// others in seconds.
type Result struct {
	Machine  Machine   `json:"machine"`
	Date     time.Time `json:"date"`
	Command  string    `json:"command"`
	Replicas int       `json:"replicas"`
	MAS      string    `json:"mas"`
	Names    int       `json:"names"`
	Runs     int       `json:"runs"`
	Took     float64   `json:"took"`

	Fill    Fill     `json:"fill"`
	Ops     Ops      `json:"operations"`
	Repairs []Repair `json:"repairs"`
	Phases  []Row    `json:"phases"`
}

// Fill is how the names came into the archive: by Adds and update phases, as any.
type Fill struct {
	Names  int     `json:"names"`
	Add    float64 `json:"add"`    // until 2f+1 replicas had acknowledged all
	Phases int     `json:"phases"` // that bound them
	Update float64 `json:"update"`
	Tree   int64   `json:"tree_bytes"` // file of one replica
}

// Rate is names a second of bulk Adds.
func (f Fill) Rate() float64 { return float64(f.Names) / f.Add }

// run is one run.
type run struct {
	Config
	cl   *client.Client
	made int   // names added so far
	rec  shown // as of the newest update phase
}

// shown is what the archive must show.
type shown struct {
	epoch archive.Epoch
	head  archive.Digest
	root  archive.Digest
	names uint64
}

// Run measures the archive. It returns what it has measured so far beside an error.
func Run(ctx context.Context, c Config) (res Result, err error) {
	began := time.Now()
	cl, err := client.New(client.Config{Roster: c.Roster, Key: c.Key, Timeout: time.Minute})
	if err != nil {
		return res, err
	}
	defer cl.Close()
	st, err := replica.StatusServed(ctx, c.Dirs[0])
	if err != nil {
		return res, err
	}
	r := &run{Config: c, cl: cl, rec: shown{epoch: st.Epoch}}
	res = Result{Machine: ThisMachine(c.Dirs), Date: began.UTC().Truncate(time.Second), Replicas: c.Roster.N(), Names: c.Names, Runs: c.Runs}
	for _, part := range []func(context.Context, *Result) error{r.fill, r.operations, r.repairs, r.phases} {
		if err := part(ctx, &res); err != nil {
			return res, err
		}
	}
	res.Took = time.Since(began).Seconds()
	return res, nil
}

// fillBatch is how many names an update phase of the filling binds.
const fillBatch = 250_000

func (r *run) fill(ctx context.Context, res *Result) error {
	f := Fill{Names: r.Names}
	for left := r.Names; left > 0; left -= fillBatch {
		n := min(left, fillBatch)
		began := time.Now()
		if err := r.add(ctx, n); err != nil {
			return fmt.Errorf("fill: %w", err)
		}
		f.Add += time.Since(began).Seconds()
		m, err := r.update(ctx)
		if err != nil {
			return fmt.Errorf("fill: %w", err)
		}
		f.Phases, f.Update = f.Phases+1, f.Update+m.total
		r.show("filling", r.made, r.Names)
	}
	f.Tree = treeSize(r.Dirs[0])
	res.Fill = f
	return nil
}

func (r *run) show(what string, done, total int) {
	if r.Show != nil {
		r.Show(what, uint64(done), uint64(total))
	}
}

// phases runs update phases of so many Adds each.
func (r *run) phases(ctx context.Context, res *Result) error {
	for i, adds := range r.Adds {
		row := newRow(adds, r.made)
		for k := range r.Runs {
			r.show("update phases", i*r.Runs+k, len(r.Adds)*r.Runs)
			if err := r.add(ctx, adds); err != nil {
				return fmt.Errorf("%d Adds: %w", adds, err)
			}
			m, err := r.update(ctx)
			if err != nil {
				return fmt.Errorf("update phase of %d Adds: %w", adds, err)
			}
			row.take(m)
		}
		res.Phases = append(res.Phases, *row)
	}
	r.show("update phases", len(r.Adds)*r.Runs, len(r.Adds)*r.Runs)
	return nil
}

// agreed checks that all replicas have made the same next epoch, by this phase.
func (r *run) agreed(all []Phase) error {
	for _, p := range all {
		switch {
		case p.Epoch != r.rec.epoch+1 || !p.Advanced:
			return fmt.Errorf("replica %d came to epoch %d and not by its own votes, want %d", p.Replica, p.Epoch, r.rec.epoch+1)
		case p.Head != all[0].Head:
			return fmt.Errorf("%w: replicas %d and %d differ in epoch %d", archive.ErrIntegrity, all[0].Replica, p.Replica, p.Epoch)
		}
	}
	if len(all) != r.Roster.N() {
		return fmt.Errorf("%d replicas of %d had a phase", len(all), r.Roster.N())
	}
	return nil
}

// mean of a step over the replicas, in seconds.
func mean(all []Phase, steps ...string) float64 {
	var sum time.Duration
	for _, p := range all {
		for _, s := range p.Steps {
			if slices.Contains(steps, s.Name) {
				sum += s.Took
			}
		}
	}
	return sum.Seconds() / float64(len(all))
}
