package tpm_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/trust"
)

// BenchmarkLookup is attestations a second on an swtpm, and on one that takes as
// long to sign as a chip, for one caller after the other and for many at once;
// and how long half of them waited. An attestation has two signatures: "each"
// delays both.
func BenchmarkLookup(b *testing.B) {
	s, _ := provision(b)
	m := open(b, s.Target())
	const chip = 150 * time.Millisecond
	for _, d := range []struct {
		name  string
		delay time.Duration
	}{{"none", 0}, {"150ms", chip}, {"150ms-each", 2 * chip}} {
		batch := trust.NewBatch(func(ctx context.Context, root [32]byte) (trust.Signed, error) {
			time.Sleep(d.delay)
			return m.Attest(ctx, root)
		})
		for _, callers := range []int{1, 10, 100, 1000} {
			b.Run(fmt.Sprintf("delay=%s/callers=%d", d.name, callers), func(b *testing.B) {
				b.ReportAllocs()
				took := make([]time.Duration, b.N)
				var next atomic.Int64
				var all sync.WaitGroup
				b.ResetTimer()
				for range callers {
					all.Go(func() {
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							var n trust.Nonce
							binary.BigEndian.PutUint64(n[:], uint64(i))
							began := time.Now()
							if _, err := batch.Lookup(b.Context(), n); err != nil {
								b.Error(err)
							}
							took[i-1] = time.Since(began)
						}
					})
				}
				all.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
				slices.Sort(took)
				b.ReportMetric(float64(took[b.N/2].Microseconds())/1000, "p50-ms")
			})
		}
	}
}
