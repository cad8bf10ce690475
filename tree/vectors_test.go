package tree

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

// The vectors: byte strings in hexadecimal.
type vectors struct {
	Leaves []leafVector `json:"leaves"`
	Trees  []treeVector `json:"trees"`
}

type leafVector struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Digest string `json:"digest"`
	Height int    `json:"height"`
}

// A tree of the first Count pairs of SPEC.md, "Vectors".
type treeVector struct {
	Count  int           `json:"count"`
	Levels int           `json:"levels"`
	Root   string        `json:"root"`
	Proofs []proofVector `json:"proofs"`
}

// A proof of Name, or of the range from Name to To if Limit is not 0; an empty
// To is no bound.
type proofVector struct {
	Name  string `json:"name"`
	To    string `json:"to,omitempty"`
	Limit int    `json:"limit,omitempty"`
	Proof string `json:"proof"`
}

func vectorPair(i int) Pair {
	return Pair{fmt.Appendf(nil, "name/%05d", 2*i), fmt.Appendf(nil, "value %d", i)}
}

func vectorTree(t *testing.T, n int) (*Memory, treeVector) {
	t.Helper()
	m, h := &Memory{}, NewHasher()
	for i := range n {
		p := vectorPair(i)
		if err := h.Add(p.Name, p.Val); err != nil {
			t.Fatal(err)
		}
		m.pairs = append(m.pairs, p)
	}
	root, levels, err := h.Finish()
	if err != nil || root != m.Root() {
		t.Fatalf("hasher and reference differ: %v", err)
	}
	return m, treeVector{Count: n, Levels: levels, Root: hex.EncodeToString(root[:])}
}

func makeVectors(t *testing.T) (vs vectors) {
	for i := range 200 {
		p := vectorPair(i)
		d := LeafHash(p.Name, p.Val)
		if i < 3 || Height(d) > 0 {
			vs.Leaves = append(vs.Leaves, leafVector{hex.EncodeToString(p.Name), hex.EncodeToString(p.Val), hex.EncodeToString(d[:]), Height(d)})
		}
	}
	for _, n := range []int{0, 1, 2, 3, 7, 200, 10000} {
		m, v := vectorTree(t, n)
		for _, name := range []string{"name/00000", "name/00001", "a", "z"} {
			v.Proofs = append(v.Proofs, proofVector{Name: hex.EncodeToString([]byte(name)), Proof: hex.EncodeToString(m.Prove([]byte(name)))})
		}
		for _, r := range []proofVector{{Name: "name/00002", To: "name/00007", Limit: 9}, {Name: "name/00001", Limit: 2}} {
			p := m.ProveRange([]byte(r.Name), bound(r.To), r.Limit)
			v.Proofs = append(v.Proofs, proofVector{hex.EncodeToString([]byte(r.Name)), hex.EncodeToString([]byte(r.To)), r.Limit, hex.EncodeToString(p)})
		}
		vs.Trees = append(vs.Trees, v)
	}
	return vs
}

func bound(to string) []byte {
	if to == "" {
		return nil
	}
	return []byte(to)
}

// TestVectors makes the vectors anew and compares.
func TestVectors(t *testing.T) {
	got, err := json.MarshalIndent(makeVectors(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const file = "testdata/vectors.json"
	if *update {
		if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(got, '\n'), want) {
		t.Error("the code no longer makes the vectors of " + file)
	}
}

// TestVectorsVerify checks the proofs in the file against the roots in it.
func TestVectorsVerify(t *testing.T) {
	text, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vs vectors
	if err := json.Unmarshal(text, &vs); err != nil {
		t.Fatal(err)
	}
	for _, tr := range vs.Trees {
		m, _ := vectorTree(t, tr.Count)
		for _, p := range tr.Proofs {
			v, err := Verify(Hash(unhex(t, tr.Root)), unhex(t, p.Proof))
			if err != nil {
				t.Fatalf("%d pairs, %s: %v", tr.Count, p.Name, err)
			}
			if p.Limit == 0 {
				checkLookup(t, m, v, unhex(t, p.Name), true)
			} else if _, err := checkPage(t, m, v, unhex(t, p.Name), bound(string(unhex(t, p.To)))); err != nil {
				t.Error(err)
			}
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
