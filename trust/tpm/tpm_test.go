package tpm_test

import (
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/bonafide-archive/bonafide/trust"
	"github.com/bonafide-archive/bonafide/trust/tpm"
	"github.com/bonafide-archive/bonafide/trust/trusttest"
)

// needSwtpm skips where there is no swtpm, unless the environment forbids it.
func needSwtpm(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err == nil {
		return
	}
	if os.Getenv("BONAFIDE_REQUIRE_SWTPM") == "1" {
		t.Fatal("swtpm is not installed, and BONAFIDE_REQUIRE_SWTPM=1")
	}
	t.Skip("swtpm is not installed (apt install swtpm)")
}

func startSwtpm(t testing.TB) (s *tpm.Swtpm, dir string) {
	t.Helper()
	needSwtpm(t)
	dir = t.TempDir()
	s, err := tpm.StartSwtpm(t.Context(), filepath.Join(dir, "mas"), filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s, dir
}

func open(t testing.TB, target tpm.Target) *tpm.MAS {
	t.Helper()
	m, err := tpm.Open(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func cycle(t *testing.T, s *tpm.Swtpm) {
	t.Helper()
	if err := s.PowerCycle(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func provision(t testing.TB) (*tpm.Swtpm, trusttest.Device) {
	t.Helper()
	s, _ := startSwtpm(t)
	id, key, err := tpm.Provision(t.Context(), s.Target(), tpm.Setup{}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s, trusttest.Device{
		Identity: id, Agreement: key,
		Open:  func(t *testing.T) trust.MAS { return open(t, s.Target()) },
		Reset: func(t *testing.T) { cycle(t, s) },
	}
}

func TestConformance(t *testing.T) {
	trusttest.Run(t, func(t *testing.T) trusttest.Device {
		_, d := provision(t)
		return d
	})
}
