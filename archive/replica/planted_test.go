package replica

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every bug that planted/run plants can still be planted: its patch fits the
// sources as they are, and the tests that must catch it are there.
func TestPlantedBugsFit(t *testing.T) {
	patches, err := filepath.Glob("planted/*.patch")
	must(t, err)
	if len(patches) < 15 {
		t.Errorf("%d patches", len(patches))
	}
	for _, path := range patches {
		b, err := os.ReadFile(path)
		must(t, err)
		header, diff, _ := strings.Cut(string(b), "\ndiff --git ")
		if err := fits(diff); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if err := named(header); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// fits returns an error unless each hunk of a diff changes something that stands
// in its file.
func fits(diff string) error {
	for _, file := range strings.Split(diff, "\ndiff --git ") {
		hunks := strings.Split(file, "\n@@ ")
		_, name, _ := strings.Cut(hunks[0], "\n--- a/")
		name, _, _ = strings.Cut(name, "\n")
		b, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			return err
		}
		for i, h := range hunks[1:] {
			before, after := sides(h)
			if before == after || !strings.Contains("\n"+string(b), "\n"+before) {
				return fmt.Errorf("%s: hunk %d does not fit", name, i+1)
			}
		}
		if len(hunks) == 1 {
			return fmt.Errorf("%q: no hunks", name)
		}
	}
	return nil
}

// sides returns what a hunk, without the "@@ " it begins with, finds and what it
// leaves.
func sides(hunk string) (before, after string) {
	_, body, _ := strings.Cut(hunk, "\n")
	for line := range strings.Lines(body + "\n") {
		switch line[0] {
		case '-':
			before += line[1:]
		case '+':
			after += line[1:]
		case ' ':
			before, after = before+line[1:], after+line[1:]
		}
	}
	return before, after
}

// named returns an error unless the header of a patch says what the bug is, and
// names tests that exist.
func named(header string) error {
	bug, tests, ok := strings.Cut(header, "\nTest: ")
	if !ok || !strings.HasPrefix(bug, "Bug: ") {
		return fmt.Errorf("header %q", header)
	}
	for _, line := range strings.Split(strings.TrimSpace(tests), "\nTest: ") {
		dir, pattern, _ := strings.Cut(line, " ")
		files, err := filepath.Glob(filepath.Join("../..", dir, "*_test.go"))
		if err != nil {
			return err
		}
		var all strings.Builder
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			all.Write(b)
		}
		for _, one := range strings.Split(pattern, "|") {
			name, _, _ := strings.Cut(one, "/")
			if !strings.Contains(all.String(), "\nfunc "+name+"(t *testing.T)") {
				return fmt.Errorf("%s: no test %q", dir, name)
			}
		}
	}
	return nil
}
