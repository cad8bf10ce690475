package client

import (
	"os"
	"slices"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
)

func TestSightingsNeverFall(t *testing.T) {
	for name, dir := range map[string]string{"in memory": "", "in a file": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			s, err := openSeen(dir, archive.Digest{1})
			if err != nil {
				t.Fatal(err)
			}
			high, low := Sighting{5, 5, 100}, Sighting{4, 6, 90}
			for _, step := range []struct{ now, before []Sighting }{
				{[]Sighting{{}, high}, []Sighting{{}, {}}},
				{[]Sighting{high, low}, []Sighting{{}, high}},
				{[]Sighting{{}, {}}, []Sighting{high, {5, 6, 100}}}, // nobody answers
				{[]Sighting{{}, {}}, []Sighting{high, {5, 6, 100}}},
			} {
				before, err := s.sight(step.now)
				if err != nil || !slices.Equal(before, step.before) {
					t.Fatalf("before %v: %v, %v, want %v", step.now, before, err, step.before)
				}
			}
		})
	}
}

func TestDamagedSightingsAreRefused(t *testing.T) {
	s, err := openSeen(t.TempDir(), archive.Digest{1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.sight([]Sighting{{1, 2, 3}}); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(s.devicesPath())
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x40
		if _, err := s.parseDevices(string(bad), 1); err == nil {
			t.Errorf("byte %d changed: %q is accepted", i, bad)
		}
	}
	for _, text := range []string{string(good) + "\n", string(good[:len(good)-1]), "\n"} {
		if _, err := s.parseDevices(text, 1); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}
