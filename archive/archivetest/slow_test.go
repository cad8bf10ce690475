package archivetest_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/client"
	"github.com/bonafide-archive/bonafide/archive/replica"
	"github.com/bonafide-archive/bonafide/trust"
)

// chip is how long a TPM takes for a signature. An attestation has two.
const chip = 150 * time.Millisecond

// slowChip is a device that takes as long as a chip to attest.
type slowChip struct {
	trust.MAS
	turn sync.Mutex
}

func (d *slowChip) Lookup(ctx context.Context, n trust.Nonce) (trust.Attestation, error) {
	d.turn.Lock()
	defer d.turn.Unlock()
	select {
	case <-time.After(2 * chip):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return d.MAS.Lookup(ctx, n)
}

// BenchmarkGet is a Get of one name, and of a thousand in one session, through
// four replicas whose devices are as slow as chips. Each entry is checked.
func BenchmarkGet(b *testing.B) {
	a := archivetest.NewRoster(b, 4)
	files := make(map[archive.Name][]byte)
	var names []archive.Name
	for i := range 1000 {
		n := archive.Name(fmt.Sprintf("slow/%04d", i))
		files[n], names = []byte(n), append(names, n)
	}
	a.Certify(b, files)
	serveSlowly(b, a)
	cl, err := client.New(client.Config{Roster: a.Roster, Timeout: time.Minute})
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	getAll(b, cl, names[:1]) // once they serve
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("names=%d", n), func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				getAll(b, cl, names[:n])
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "p50-ms")
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "names/s")
		})
	}
}

// serveSlowly serves all replicas of a, with slow devices, until the test ends.
func serveSlowly(b *testing.B, a *archivetest.Archive) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, r := range a.Replicas {
		all.Go(func() {
			replica.Serve(ctx, replica.Config{
				Dir: r.Dir, ID: r.ID, Roster: a.Roster, MAS: &slowChip{MAS: r.MAS},
				ServiceKey: r.ServiceKey, Log: slog.New(slog.DiscardHandler),
			})
		})
	}
	b.Cleanup(func() { cancel(); all.Wait() })
}

func getAll(b *testing.B, cl *client.Client, names []archive.Name) {
	results, err := cl.Get(b.Context(), names...)
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range results {
		if r.Err != nil || r.Entry.Content != archivetest.ContentOf([]byte(r.Name)) {
			b.Fatalf("%s: %+v, %v", r.Name, r.Entry, r.Err)
		}
	}
}
