package trusttest

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/bonafide-archive/bonafide/trust"
)

// A Vector is one attestation and what a verifier must make of it: Statement,
// or a refusal if that is nil.
type Vector struct {
	Name        string         `json:"name"`
	Identity    trust.Identity `json:"identity"`
	Nonce       Hex            `json:"nonce"`
	Attestation Hex            `json:"attestation"`
	Statement   *Statement     `json:"statement,omitempty"`
}

// A Statement is a trust.Statement as vectors write it.
type Statement struct {
	Mode    string `json:"mode"`
	Slots   Hex    `json:"slots"`
	Counter uint64 `json:"counter"`
	Clock   uint64 `json:"clock"`
	Counts  string `json:"counts"`
	Safe    bool   `json:"safe"`
}

// Describe returns s as vectors write it.
func Describe(s trust.Statement) *Statement {
	return &Statement{
		Mode: s.Mode.String(), Slots: s.Slots.Bytes(), Counter: s.Counter,
		Clock: s.Clock, Counts: s.Counts.String(), Safe: s.Safe,
	}
}

// Hex is a byte string that JSON shows in hexadecimal digits.
type Hex []byte

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// NewVector verifies a and returns it as a vector.
func NewVector(t *testing.T, name string, id trust.Identity, n trust.Nonce, a trust.Attestation) Vector {
	t.Helper()
	v := Vector{Name: name, Identity: id, Nonce: n[:], Attestation: Hex(a)}
	if s, err := id.Verify(a, n); err == nil {
		v.Statement = Describe(s)
	}
	return v
}

// WriteVectors writes a file that ReadVectors reads.
func WriteVectors(t *testing.T, name string, vs []Vector) {
	t.Helper()
	b, err := json.MarshalIndent(vs, "", "  ")
	must(t, err)
	must(t, os.WriteFile(name, append(b, '\n'), 0o644))
}

// ReadVectors returns the vectors of all files that match pattern.
func ReadVectors(t testing.TB, pattern string) (vs []Vector) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors %s (%v)", pattern, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var some []Vector
		if err := json.Unmarshal(b, &some); err != nil {
			t.Fatal(err)
		}
		vs = append(vs, some...)
	}
	return vs
}
