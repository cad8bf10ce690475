package tpm_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/trust"
)

// BenchmarkLookup is attestations a second on an swtpm, and on one that takes as
// long to sign as a chip: for one caller after the other, and for many at once.
func BenchmarkLookup(b *testing.B) {
	s, _ := provision(b)
	m := open(b, s.Target())
	for _, delay := range []time.Duration{0, 150 * time.Millisecond} {
		batch := trust.NewBatch(func(ctx context.Context, root [32]byte) (trust.Signed, error) {
			time.Sleep(delay)
			return m.Attest(ctx, root)
		})
		for _, callers := range []int{1, 10, 100, 1000} {
			b.Run(fmt.Sprintf("delay=%v/callers=%d", delay, callers), func(b *testing.B) {
				var next atomic.Int64
				var all sync.WaitGroup
				for range callers {
					all.Go(func() {
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							var n trust.Nonce
							binary.BigEndian.PutUint64(n[:], uint64(i))
							if _, err := batch.Lookup(b.Context(), n); err != nil {
								b.Error(err)
							}
						}
					})
				}
				all.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
			})
		}
	}
}
