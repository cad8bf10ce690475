package boltstore

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

var checks = flag.Int("checks", 20, "damaged files that TestCheckBeside gives to the audit and to bbolt's Check")

// bbolt's Check, in a child process, since it may panic where nothing can
// recover it, or never end, finds no damage that the audit does not find, but
// for pages that nothing uses and no list has: room lost, not data.
func TestCheckBeside(t *testing.T) {
	if file := os.Getenv("BONAFIDE_TEST_CHECK"); file != "" {
		check(t, file)
		return
	}
	path := filepath.Join(t.TempDir(), "tree")
	m := reference(t, pairsOf(0, 3000))
	if _, _, err := Build(t.Context(), path, seq(m.Pairs()), nil); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	root := apply1(t, s, pairsOf(3000, 3100))
	s.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	kinds := slices.Sorted(maps.Keys(damages))
	tally := make(map[string]int)
	for i := range *checks {
		rnd := rand.New(rand.NewPCG(uint64(i), 11))
		kind := kinds[i%len(kinds)]
		if err := os.WriteFile(path, damages[kind](rnd, bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		byAudit := true
		if s, err := Open(path, Options{ReadOnly: true}); err == nil {
			found, err := s.Audit(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			byAudit = len(found) > 0
			s.Close()
		}
		said := checkInChild(t, path)
		tally[fmt.Sprintf("audit %t, check %t", byAudit, said != "")]++
		if said != "" && !byAudit && !strings.Contains(said, "unreachable unfreed") {
			t.Errorf("%s, seed %d: only Check finds: %s", kind, i, said)
		}
	}
	t.Log(tally)
}

// checkInChild returns what Check says of a file, or how it ended.
func checkInChild(t *testing.T, path string) string {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestCheckBeside$", "-test.v")
	cmd.Env = append(os.Environ(), "BONAFIDE_TEST_CHECK="+path, "GOMEMLIMIT=256MiB")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return ""
	}
	return fmt.Sprintf("%v: %.400s", err, out)
}

// check runs Check over a file.
func check(t *testing.T, file string) {
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second, PreLoadFreelist: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		var first error
		for err := range tx.Check() {
			if first == nil || strings.Contains(first.Error(), "unreachable unfreed") {
				first = err
			}
		}
		return first
	})
	if err != nil {
		t.Fatal(err)
	}
}
