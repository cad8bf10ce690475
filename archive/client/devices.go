package client

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/bonafide-archive/bonafide/archive"
)

const devicesHeader = "bonafide/devices/v1"

// A Sighting is the highest that a replica's device was ever seen to attest, by
// Status calls of clients that share their state. None of it ever falls while the
// device is what it was.
type Sighting struct {
	Epoch   archive.Epoch
	Counter uint64
	Clock   uint64 // milliseconds
}

func (s Sighting) with(o Sighting) Sighting {
	return Sighting{max(s.Epoch, o.Epoch), max(s.Counter, o.Counter), max(s.Clock, o.Clock)}
}

func (s *seen) devicesPath() string { return filepath.Join(s.dir, s.archive.String()+".devices") }

// sight adds what devices attest now and returns what was known before, both by
// the order of replicas. A zero Sighting is none.
func (s *seen) sight(now []Sighting) (before []Sighting, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		before, s.devices = s.devices, merged(s.devices, now)
		return padded(before, len(now)), nil
	}
	err = s.locked(func() error {
		b, err := readSmall(s.devicesPath())
		if err != nil {
			return err
		}
		if before, err = s.parseDevices(string(b), len(now)); err != nil {
			return err
		}
		text := s.encodeDevices(merged(before, now))
		if text == string(b) {
			return nil
		}
		return s.replace(s.devicesPath(), text)
	})
	return padded(before, len(now)), err
}

func padded(s []Sighting, n int) []Sighting { return append(s, make([]Sighting, max(0, n-len(s)))...) }

func merged(before, now []Sighting) []Sighting {
	all := padded(nil, len(now))
	for i, b := range padded(before, len(now))[:len(now)] {
		all[i] = b.with(now[i])
	}
	return all
}

func (s *seen) encodeDevices(all []Sighting) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\narchive %s\n", devicesHeader, s.archive)
	for _, d := range all {
		fmt.Fprintf(&b, "epoch %d counter %d clock %d\n", d.Epoch, d.Counter, d.Clock)
	}
	return b.String()
}

// parseDevices parses what encodeDevices makes of n devices, and nothing else but
// an empty text, which is none.
func (s *seen) parseDevices(text string, n int) ([]Sighting, error) {
	if text == "" {
		return nil, nil
	}
	all := make([]Sighting, n)
	lines := strings.Split(text, "\n")
	for i := range min(n, max(0, len(lines)-3)) {
		fmt.Sscanf(lines[i+2], "epoch %d counter %d clock %d", &all[i].Epoch, &all[i].Counter, &all[i].Clock)
	}
	if s.encodeDevices(all) != text {
		return nil, fmt.Errorf("client state: %s is damaged", s.devicesPath())
	}
	return all, nil
}
