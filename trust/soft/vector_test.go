package soft_test

import (
	"bytes"
	"crypto/ed25519"
	"flag"
	"path/filepath"
	"testing"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/soft"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

var update = flag.Bool("update", false, "write the vectors anew")

// TestVectors writes ../testdata/software.json if told to; package trust checks it.
func TestVectors(t *testing.T) {
	if !*update {
		t.Skip("without -update the vectors stay as they are")
	}
	dir := filepath.Join(t.TempDir(), "mas")
	id, _, err := soft.Provision(dir, bytes.NewReader(bytes.Repeat([]byte{7}, 2*ed25519.SeedSize)))
	must(t, err)
	m := open(t, dir)
	must(t, m.Advance(t.Context()))
	must(t, m.Store(t.Context(), trusttest.Slots(1)))
	n := trust.Nonce([]byte("a nonce: thirty-two random bytes"))
	before, err := m.Lookup(t.Context(), n)
	must(t, err)
	must(t, m.Lock(t.Context()))
	after, err := m.Lookup(t.Context(), n)
	must(t, err)
	trusttest.WriteVectors(t, "../testdata/software.json", []trusttest.Vector{
		trusttest.NewVector(t, "software, update mode", id, n, before),
		trusttest.NewVector(t, "software, service mode", id, n, after),
		trusttest.NewVector(t, "refused: software, another nonce", id, trust.Nonce{1}, after),
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
