package trust_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestThreats holds the table of DESIGN.md against the tests that it names.
func TestThreats(t *testing.T) {
	b, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(b), "\n## Threats\n")
	table, _, _ = strings.Cut(table, "\n## ")
	last := regexp.MustCompile("\\| `([a-z/]+)\\.((?:Test|Fuzz)[A-Za-z]+)(?:/([^`]+))?` \\|$")
	rows := 0
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| threat ") {
			continue
		}
		rows++
		m := last.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("no test in %s", line)
		} else if !exists(t, m[1], m[2], m[3]) {
			t.Errorf("no test %s in %s", m[2], m[1])
		}
	}
	if rows < 40 {
		t.Errorf("%d rows", rows)
	}
}

// exists says whether a package has a test and, in its file, a row of that name.
func exists(t *testing.T, dir, test, row string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "func "+test+"(") {
			return row == "" || strings.Contains(string(b), "{"+strconv.Quote(row)+",")
		}
	}
	return false
}
