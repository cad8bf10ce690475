package archive_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// talkNames are the systems, and kinds of systems, that the talk names (slide
// "Related work").
var talkNames = []string{
	"PBFT", "PBFT-PR", "COCA", "BFT-2F", "A2M-PBFT", "TrInc", "wormholes", "hybrid fault models", "thresholds by site",
	"BFT erasure-coded storage", "Antiquity", "OceanStore", "Pergamum", "Glacier", "LOCKSS", "POTSHARDS", "CATS",
}

// TestRelated holds the tables of RELATED.md against the talk's list, and against
// the tests and the papers that they name.
func TestRelated(t *testing.T) {
	b, err := os.ReadFile("RELATED.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(b), "\n## ")
	if len(parts) != 4 {
		t.Fatalf("%d sections", len(parts)-1)
	}
	var defends, here []string
	for _, row := range rows(parts[1]) {
		name, cited, _ := strings.Cut(strings.TrimSuffix(row[0], "]"), " [")
		defends = append(defends, name)
		for n := range strings.SplitSeq(cited, ", ") {
			if !strings.Contains(parts[3], "\n"+n+". ") {
				t.Errorf("%s: no paper %q", name, n)
			}
		}
	}
	for _, row := range rows(parts[2]) {
		here = append(here, row[0])
		checkTests(t, row[0], row[1])
	}
	if !slices.Equal(defends, talkNames) || !slices.Equal(here, talkNames) {
		t.Errorf("tables of %q and %q, want both of %q", defends, here, talkNames)
	}
}

// rows returns the cells of a section's table, three a row, without its head.
func rows(section string) (all [][]string) {
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) == 3 && !strings.HasPrefix(line, "|--") && !strings.HasPrefix(line, "| system |") {
			all = append(all, []string{strings.TrimSpace(cells[0]), strings.TrimSpace(cells[1]), strings.TrimSpace(cells[2])})
		}
	}
	return all
}

var testName = regexp.MustCompile("`([a-z/]+)\\.(Test[A-Za-z0-9]+)(?:/([^`]+))?`")

// checkTests wants a cell to be names of tests that exist and nothing else, or
// "none".
func checkTests(t *testing.T, system, cell string) {
	t.Helper()
	if rest := strings.TrimSpace(testName.ReplaceAllString(cell, "")); rest != "" && cell != "none" {
		t.Errorf("%s: not the name of a test: %s", system, rest)
	}
	if cell == "" {
		t.Errorf("%s: no test", system)
	}
	for _, m := range testName.FindAllStringSubmatch(cell, -1) {
		if !hasTest(t, m[1], m[2], m[3]) {
			t.Errorf("%s: there is no %s", system, m[0])
		}
	}
}

// hasTest says whether a package has a test and, if row is not empty, a row of
// some table of that name.
func hasTest(t *testing.T, dir, test, row string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var found, listed bool
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		found = found || strings.Contains(string(b), "\nfunc "+test+"(t *testing.T) {")
		listed = listed || strings.Contains(string(b), "{"+strconv.Quote(row)+",") || strings.Contains(string(b), "{name: "+strconv.Quote(row)+",")
	}
	return found && (row == "" || listed)
}
