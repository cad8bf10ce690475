package boltstore

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

var memory = flag.Int("memory", 0, "names of a batch whose peak of memory is tested")

// TestApplyMemory: a batch of a million random names onto a million needs less
// than 1.5 GiB, pages of the file and the batch itself included.
//
//	go test ./tree/boltstore -run ApplyMemory -v -args -memory 1000000
func TestApplyMemory(t *testing.T) {
	if *memory == 0 {
		t.Skip("run with -args -memory 1000000, alone")
	}
	path := filepath.Join(t.TempDir(), "tree")
	if _, _, err := Build(t.Context(), path, seq(benchPairs(0, *memory)), nil); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := peak(t)
	if _, n, err := s.Apply(t.Context(), benchPairs(*memory, *memory)); err != nil || n != uint64(2**memory) {
		t.Fatal(n, err)
	}
	after := peak(t)
	t.Logf("peak %d MB, %d MB before the batch", after>>10, before>>10)
	if after > 3<<19 { // 1.5 GiB in KiB
		t.Errorf("peak of %d KiB", after)
	}
}

// peak is the most memory that the process has had, in KiB.
func peak(t *testing.T) (kib int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := bytes.Cut(b, []byte("VmHWM:"))
	if _, err := fmt.Sscan(string(line), &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
