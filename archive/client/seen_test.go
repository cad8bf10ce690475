package client

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
)

func headOf(e archive.Epoch) archive.Digest { return archive.DigestOf(fmt.Append(nil, e)) }

func TestSeen(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		s, err := openSeen(dir, archive.Digest{1})
		if err != nil {
			t.Fatal(err)
		}
		if m, err := s.load(); err != nil || m != (mark{}) {
			t.Errorf("at first: %v, %v", m, err)
		}
		for _, tt := range []struct {
			m    mark
			want error
		}{
			{mark{3, headOf(3)}, nil}, {mark{3, headOf(3)}, nil}, {mark{2, headOf(2)}, ErrStale},
			{mark{3, headOf(4)}, ErrIntegrity}, {mark{7, headOf(7)}, nil}, {mark{6, headOf(6)}, ErrStale},
		} {
			if err := s.raise(tt.m); !errors.Is(err, tt.want) {
				t.Errorf("raise to %d: %v, want %v", tt.m.epoch, err, tt.want)
			}
		}
		if m, err := s.load(); err != nil || m != (mark{7, headOf(7)}) {
			t.Errorf("at last: %v, %v", m, err)
		}
	}
}

// Archives that share a directory do not mix, and a process that starts later
// knows what an earlier one has seen.
func TestSeenIsKept(t *testing.T) {
	dir := t.TempDir()
	for i := range byte(3) {
		s, _ := openSeen(dir, archive.Digest{i})
		if err := s.raise(mark{archive.Epoch(i) + 1, headOf(0)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range byte(3) {
		s, _ := openSeen(dir, archive.Digest{i})
		if m, err := s.load(); err != nil || m.epoch != archive.Epoch(i)+1 {
			t.Errorf("archive %d: %v, %v", i, m, err)
		}
	}
}

func TestSeenDamaged(t *testing.T) {
	dir := t.TempDir()
	s, _ := openSeen(dir, archive.Digest{1})
	if err := s.raise(mark{3, headOf(3)}); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(s.path())
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "x", string(good[:len(good)-1]), string(good) + "\n", strings.Replace(string(good), "epoch 3", "epoch 03", 1), strings.ToUpper(string(good))} {
		if err := os.WriteFile(s.path(), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := s.load(); err == nil {
			t.Errorf("%q is read as %v", bad, m)
		}
		if s.raise(mark{9, headOf(9)}) == nil {
			t.Errorf("%q is replaced", bad)
		}
	}
}

const raiser = "BONAFIDE_TEST_RAISE"

// TestMain lets the test binary be one of several processes that share a state
// directory.
func TestMain(m *testing.M) {
	if dir := os.Getenv(raiser); dir != "" {
		os.Exit(raiseAll(dir))
	}
	os.Exit(m.Run())
}

// raiseAll raises the mark through 50 epochs; what others got to first is no
// failure, a mark that went back is.
func raiseAll(dir string) int {
	s, err := openSeen(dir, archive.Digest{1})
	if err != nil {
		return 1
	}
	last := archive.Epoch(0)
	for e := archive.Epoch(1); e <= 50; e++ {
		if err := s.raise(mark{e, headOf(e)}); err != nil && !errors.Is(err, ErrStale) {
			return 2
		}
		m, err := s.load()
		if err != nil || m.epoch < last || m.epoch < e {
			return 3
		}
		last = m.epoch
	}
	return 0
}

func TestSeenBySeveralProcesses(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c := exec.CommandContext(t.Context(), "/proc/self/exe")
			c.Env = append(os.Environ(), raiser+"="+dir)
			if err := c.Run(); err != nil {
				t.Errorf("process: %v", err)
			}
		})
	}
	wg.Wait()
	s, _ := openSeen(dir, archive.Digest{1})
	if m, err := s.load(); err != nil || m.epoch != 50 {
		t.Errorf("at last: %s, %v", strconv.Itoa(int(m.epoch)), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.new")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
