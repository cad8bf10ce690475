package replica

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

// BenchmarkPhase runs whole update phases of replicas that are goroutines with
// software devices and real connections on loopback, onto an archive of so many
// names, and reports how long each part took: the mean over the replicas, from the
// steps that they log. Reset and start of processes are apart, and all replicas
// come, so that there is no grace. Each epoch is checked afterwards.
//
//	go test ./archive/replica -run xxx -bench Phase -benchtime 3x -names 1000000
//
// With -names 1000000 there is a phase with a million Adds too.
func BenchmarkPhase(b *testing.B) {
	for _, size := range []struct{ replicas, adds int }{
		{4, 0}, {4, 1_000}, {4, 25_000}, {4, 100_000}, {4, 1_000_000}, {7, 1_000}, {10, 1_000},
	} {
		if size.adds > *benchNames {
			continue
		}
		b.Run(fmt.Sprintf("N=%d/adds=%d", size.replicas, size.adds), func(b *testing.B) {
			newTimed(b, size.replicas).bench(b, size.adds)
		})
	}
}

// BenchmarkMessages runs update phases without Adds, of as many replicas as agreement
// is made for, and reports what all of them together sent. Nothing else may use the
// network meanwhile: the counters are those of the machine.
//
//	go test ./archive/replica -run xxx -bench Messages -benchtime 5x -names 1000
func BenchmarkMessages(b *testing.B) {
	for _, n := range []int{4, 7, 10, 13, 16} {
		b.Run(fmt.Sprintf("N=%d", n), func(b *testing.B) { newTimed(b, n).bench(b, 0) })
	}
}

// timed is a cluster whose steps are timed.
type timed struct {
	*cluster
	parts *parts
	made  int // names so far
}

// newTimed makes an archive of -names names, in one epoch.
func newTimed(b *testing.B, n int) *timed {
	b.Helper()
	c := newClusterOf(b, n, func(r *archive.Roster) { r.Limits = archive.DefaultLimits() })
	old := make(map[archive.Name][]byte, *benchNames)
	for i := range *benchNames {
		old[archive.Name(fmt.Sprintf("old/%07d", i))] = nil
	}
	c.Certify(b, old)
	for _, r := range c.Replicas {
		c.Fill(b, r)
	}
	return &timed{cluster: c, parts: newParts()}
}

func (c *timed) bench(b *testing.B, adds int) {
	epoch := archive.Epoch(1)
	var wall, used time.Duration
	var segments, octets uint64
	for b.Loop() {
		b.StopTimer()
		c.fill(adds)
		c.reset(c.all()...)
		b.StartTimer()
		start, before, s, o := time.Now(), processorTime(), sentSoFar(b, "snmp", "Tcp", "OutSegs"), sentSoFar(b, "netstat", "IpExt", "OutOctets")
		c.update(b.Context(), c.all()...)
		wall, used = wall+time.Since(start), used+processorTime()-before
		segments, octets = segments+sentSoFar(b, "snmp", "Tcp", "OutSegs")-s, octets+sentSoFar(b, "netstat", "IpExt", "OutOctets")-o
		b.StopTimer()
		epoch++
		rec := c.agreed(epoch, c.all()...)
		if want := uint64(*benchNames + c.made); rec.Names != want {
			b.Fatalf("epoch %d has %d names, want %d", epoch, rec.Names, want)
		}
		b.StartTimer()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(wall.Seconds()/float64(b.N), "s")
	b.ReportMetric(used.Seconds()/float64(b.N*len(c.Replicas)), "s-cpu/replica")
	b.ReportMetric(float64(segments)/float64(b.N), "segments")
	b.ReportMetric(float64(octets)/float64(b.N), "B-sent")
	for name, d := range c.parts.took {
		b.ReportMetric(d.Seconds()/float64(b.N*len(c.Replicas)), "s-"+name)
	}
}

// sentSoFar is a counter of the machine's network: a column of the rows that begin
// with proto in a file of /proc/net, names in the first and values in the second.
func sentSoFar(b *testing.B, file, proto, name string) uint64 {
	b.Helper()
	text, err := os.ReadFile("/proc/net/" + file)
	if err != nil {
		b.Fatal(err)
	}
	var rows [][]string
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, proto+":"); ok {
			rows = append(rows, strings.Fields(rest))
		}
	}
	if len(rows) != 2 {
		b.Fatalf("%s has %d rows of %s", file, len(rows), proto)
	}
	n, err := strconv.ParseUint(rows[1][slices.Index(rows[0], name)], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// fill buffers Adds of new names at all replicas, a thousand in a submission.
func (c *timed) fill(adds int) {
	var subs []archive.Submission
	for ; adds > 0; adds -= 1000 {
		files := make(map[archive.Name][]byte)
		for range min(adds, 1000) {
			files[archive.Name(fmt.Sprintf("new/%07d", c.made))] = nil
			c.made++
		}
		subs = append(subs, c.Submission(time.Now(), files))
	}
	c.addAll(subs, c.all()...)
}

// update runs the update processes of the given replicas.
func (c *timed) update(ctx context.Context, ids ...uint32) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, id := range ids {
		all.Go(func() {
			config := c.config(id)
			config.Log = slog.New(c.parts)
			out, err := Update(ctx, config)
			mu.Lock()
			defer mu.Unlock()
			c.last[id] = result{out, err}
		})
	}
	all.Wait()
}

// parts adds up how long the steps of a phase took, as they are logged.
type parts struct {
	slog.Handler
	mu   sync.Mutex
	took map[string]time.Duration
}

// partOf names the part of a phase that a step belongs to.
var partOf = map[string]string{
	StepOpened:    "open",
	StepTick:      "join",
	StepJoined:    "join",
	StepProposals: "vouch",
	StepDecided:   "agree",
	StepApplied:   "apply",
	StepPrepared:  "votes",
	StepCommitted: "votes",
	StepStored:    "store",
	StepLingered:  "linger",
}

func newParts() *parts {
	return &parts{Handler: slog.DiscardHandler, took: make(map[string]time.Duration)}
}

// Enabled implements slog.Handler.
func (p *parts) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler.
func (p *parts) WithAttrs([]slog.Attr) slog.Handler { return p }

// Handle implements slog.Handler.
func (p *parts) Handle(_ context.Context, r slog.Record) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.Attrs(func(a slog.Attr) bool {
		if d, ok := a.Value.Any().(time.Duration); ok && a.Key == "took" && partOf[r.Message] != "" {
			p.took[partOf[r.Message]] += d
		}
		return true
	})
	return nil
}
