package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
)

const unitsDir = "configs/systemd"

// exposure is the most that systemd-analyze security may find, in tenths.
const exposure = "16"

// units copies the units to where the program that they run exists, and returns
// their paths.
func units(t *testing.T) []string {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		if os.Getenv("BONAFIDE_REQUIRE_SYSTEMD") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "bonafide")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, name := range []string{"bonafide.service", "bonafide-update.service", "bonafide-reboot.service", "bonafide-reboot.timer"} {
		b, err := os.ReadFile(filepath.Join(unitsDir, name))
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(dir, name)
		b = []byte(strings.ReplaceAll(string(b), "/usr/bin/bonafide", program))
		if err := os.WriteFile(unit, b, 0o644); err != nil {
			t.Fatal(err)
		}
		all = append(all, unit)
	}
	return all
}

func TestUnitsVerify(t *testing.T) {
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, units(t)...)...).CombinedOutput()
	if err != nil || len(out) != 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestUnitsAreHardened(t *testing.T) {
	for _, unit := range units(t) {
		if filepath.Ext(unit) != ".service" {
			continue
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold="+exposure, unit).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", filepath.Base(unit), err, out)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Log(lines[len(lines)-1])
	}
}

// The timer stands for the schedule that the guide proposes.
func TestTimerIsTheSchedule(t *testing.T) {
	units(t)
	timer, err := os.ReadFile(filepath.Join(unitsDir, "bonafide-reboot.timer"))
	if err != nil {
		t.Fatal(err)
	}
	guide, err := os.ReadFile("configs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	schedule := regexp.MustCompile(`--schedule '(.*)'`).FindSubmatch(guide)
	calendar := regexp.MustCompile(`(?m)^OnCalendar=(.*)$`).FindSubmatch(timer)
	if schedule == nil || calendar == nil {
		t.Fatal("no schedule")
	}
	cmd := exec.Command("systemd-analyze", "calendar", "--base-time=2026-11-25 05:59:59 UTC", "--iterations=9", string(calendar[1]))
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	times := regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC`).FindAllString(string(out), -1)
	want := time.Date(2026, 11, 25, 5, 59, 59, 0, time.UTC)
	if len(times) != 9 {
		t.Fatalf("%d times in %s", len(times), out)
	}
	for _, got := range times {
		want = archive.Schedule(schedule[1]).Next(want)
		if got != want.UTC().Format("2006-01-02 15:04:05 MST") {
			t.Errorf("timer at %s, schedule at %s", got, want)
		}
	}
}

// The lock is named in both units that could leave update mode open.
func TestUnitsLock(t *testing.T) {
	for name, line := range map[string]string{
		"bonafide-update.service": "ExecStopPost=/usr/bin/bonafide update --dir /var/lib/bonafide --lock",
		"bonafide.service":        "ExecStartPre=/usr/bin/bonafide update --dir /var/lib/bonafide --lock",
	} {
		b, err := os.ReadFile(filepath.Join(unitsDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "\n"+line+"\n") {
			t.Errorf("%s: no line %s", name, line)
		}
	}
}
