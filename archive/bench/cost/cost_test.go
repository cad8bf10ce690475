package cost

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/consensus"
	"github.com/bonafide-archive/bonafide/tree"
)

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance*math.Abs(want) {
		t.Errorf("%s: got %g, want %g within %g", what, got, want, tolerance*math.Abs(want))
	}
}

// TestProofBytes compares with proofs of real trees.
func TestProofBytes(t *testing.T) {
	for _, n := range []int{1, 2, 50, 2000} {
		const trees, proofs = 20, 25
		total := 0
		for k := range trees {
			m := treeOf(t, k, n)
			for i := range proofs {
				total += len(m.Prove(nameOf(k, i*n/proofs)))
			}
		}
		near(t, fmt.Sprintf("a proof of %d names", n), ProofBytes(float64(n), 8, 32), float64(total)/(trees*proofs), 0.02)
	}
}

func nameOf(k, i int) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(k)), uint32(i))
}

func treeOf(t *testing.T, k, n int) *tree.Memory {
	t.Helper()
	m := new(tree.Memory)
	for i := range n {
		val := sha256.Sum256(nameOf(k, i))
		if err := m.Put(nameOf(k, i), val[:]); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// TestLengths compares with the messages themselves.
func TestLengths(t *testing.T) {
	for _, n := range []int{4, 7, 16} {
		f := (n - 1) / 3
		join := consensus.Join{Challenges: make([]consensus.Challenge, n-1), Attestation: make([]byte, Attestation)}
		proposal := consensus.ProposalCertificate{Join: join, Vouchers: make([]consensus.Voucher, 2*f+1)}
		block := consensus.Block{Proposals: make([]consensus.ProposalCertificate, n)}
		for i := range block.Proposals {
			block.Proposals[i] = proposal
		}
		cert := archive.Certificate{Votes: make([]archive.Attested, 2*f+1)}
		for i := range cert.Votes {
			cert.Votes[i].Attestation = make([]byte, Attestation)
		}
		for what, x := range map[string]struct {
			got  float64
			want []byte
		}{
			"join":        {Join(float64(n)), join.Bytes()},
			"proposal":    {Proposal(float64(n)), proposal.Bytes()},
			"block":       {Block(float64(n)), block.Bytes()},
			"certificate": {Certificate(float64(n)), cert.Bytes()},
			"voucher":     {voucher, consensus.Voucher{}.Bytes()},
		} {
			if x.got != float64(len(x.want)) {
				t.Errorf("%s of %d replicas: got %g bytes, want %d", what, n, x.got, len(x.want))
			}
		}
	}
}

// TestVectors compares with the certificate and the record of archive's testdata,
// which real devices made.
func TestVectors(t *testing.T) {
	for file, got := range map[string]float64{"certificate.bin": Certificate(4), "record.txt": record(4)} {
		b, err := os.ReadFile(filepath.Join("..", "..", "testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		if got != float64(len(b)) {
			t.Errorf("%s: got %g bytes, want %d", file, got, len(b))
		}
	}
}

// straight is a + b·names + c·adds.
var straight = Model{Terms: []Term{
	{"1", func(Point) float64 { return 1 }},
	{"names", func(p Point) float64 { return p.Names }},
	{"Adds", func(p Point) float64 { return p.Adds }},
}}

func TestFit(t *testing.T) {
	var all []Sample
	for _, p := range []Point{{Names: 1e4}, {Names: 1e4, Adds: 1e3}, {Names: 1e5}, {Names: 1e6, Adds: 2e4}, {Names: 1e6}} {
		all = append(all, Sample{p, 0.5 + 3e-6*p.Names + 2e-5*p.Adds})
	}
	m, err := straight.Fit(all)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []float64{0.5, 3e-6, 2e-5} {
		near(t, m.Terms[i].Name, m.Consts[i], want, 1e-6)
	}
	near(t, "a billion", m.At(Point{Names: 1e9, Adds: 1e6}), 0.5+3000+20, 1e-6)
}

// TestFitNeverNegative has samples that a falling line would fit better.
func TestFitNeverNegative(t *testing.T) {
	m, err := straight.Fit([]Sample{{Point{Names: 1}, 3}, {Point{Names: 2}, 2}, {Point{Names: 3}, 1}})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range m.Consts {
		if c < 0 || math.IsNaN(c) {
			t.Errorf("constant of %s is %g", m.Terms[i].Name, c)
		}
	}
	near(t, "the mean by relative errors", m.At(Point{}), (1./3+1./2+1)/(1./9+1./4+1), 0.01)
}

// TestFitDerived leaves what is derived to it, and fits the rest.
func TestFitDerived(t *testing.T) {
	m := Model{Derived: func(p Point) float64 { return 10 * p.Names }, Terms: straight.Terms[:1]}
	m, err := m.Fit([]Sample{{Point{Names: 1}, 15}, {Point{Names: 2}, 25}})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "the rest", m.Consts[0], 5, 1e-6)
}

func TestFitRefuses(t *testing.T) {
	one := Sample{Point{Names: 1}, 1}
	for name, all := range map[string][]Sample{
		"too few": {one, one}, "zero": {one, one, {}}, "NaN": {one, one, {Value: math.NaN()}},
	} {
		if _, err := straight.Fit(all); err == nil {
			t.Errorf("%s: fitted", name)
		}
	}
}

// TestTouched: few Adds lie on a page each, many on all.
func TestTouched(t *testing.T) {
	const bytesPerName = 256 // 16 names a page
	for _, x := range []struct{ names, adds, want float64 }{
		{1.6e9, 1000, 1000}, {16_000, 1e6, 1000}, {16_000, 1000, 1000 * (1 - 1/math.E)}, {0, 10, 0}, {16_000, 0, 0},
	} {
		near(t, fmt.Sprint(x), Touched(Point{Names: x.names, Adds: x.adds}, bytesPerName), x.want, 0.001)
	}
}

// TestBoard holds that the block is most of what many replicas say: each board shows
// it whole.
func TestBoard(t *testing.T) {
	for n := 4.0; n <= 100; n += 3 {
		if sum := Block(n) + Certificate(n) + Proposal(n) + Join(n); Board(n) < sum {
			t.Errorf("the board of %g replicas has %g bytes, its longest items %g", n, Board(n), sum)
		}
	}
	near(t, "the block's share at 100", Block(100)/Board(100), 0.9, 0.05)
}
