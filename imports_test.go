package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/bonafide-archive/bonafide"

// imports is the import graph of the module: each package and what it may
// import of the others. Arrows point one way; a new one is a decision, and so is
// a new package.
var imports = map[string][]string{
	".":   {"cmd"},
	"cmd": {"archive", "archive/bench", "archive/client", "archive/replica", "archive/wire", "tree", "trust", "trust/soft", "trust/tpm", "trust/watchdog"},

	"archive/bench":   {"archive", "archive/client", "archive/replica", "archive/wire"},
	"archive/client":  {"archive", "archive/wire", "tree", "trust"},
	"archive/replica": {"archive", "archive/content", "archive/disk", "archive/wire", "consensus", "tree", "tree/boltstore", "trust"},
	"archive/wire":    {"archive", "tree", "trust"},
	"archive/content": {"archive", "archive/disk"},
	"archive/disk":    {},
	"archive":         {"tree", "trust"},

	"consensus": {},

	"archive/bench/cost":  {},
	"archive/bench/write": {"archive/bench", "archive/bench/cost"}, // a program of its own: bonafide draws nothing

	"man":       {},
	"man/write": {"cmd"}, // the manual pages come from the commands

	"tree":           {},
	"tree/boltstore": {"tree"},

	"trust":          {},
	"trust/soft":     {"trust"},
	"trust/tpm":      {"trust"},
	"trust/watchdog": {},

	// For tests alone, see testOnly.
	"archive/archivetest":       {anything},
	"archive/archivetest/forge": {anything},
	"trust/trusttest":           {anything},
}

const anything = "*"

// testOnly lists the packages that only tests may import.
var testOnly = []string{"archive/archivetest", "archive/archivetest/forge", "trust/trusttest"}

// modules lists the other modules that the program is made of, and the packages
// that may know each. A package stands for itself alone. Tests are free.
var modules = map[string][]string{
	"github.com/spf13/cobra":            {"cmd"},
	"github.com/spf13/viper":            {"cmd"},
	"github.com/schollz/progressbar":    {"cmd"},
	"golang.org/x/crypto/ssh":           {"cmd"},
	"golang.org/x/term":                 {"cmd"},
	"github.com/bmatcuk/doublestar":     {"cmd"},
	"github.com/cpuguy83/go-md2man":     {"cmd"},
	"github.com/cometbft":               {"consensus"},
	"github.com/google/go-tpm":          {"trust/tpm"},
	"go.etcd.io/bbolt":                  {"tree/boltstore", "archive/replica"},
	"github.com/adhocore/gronx":         {"archive"},
	"golang.org/x/text":                 {"archive"},
	"golang.org/x/sys":                  {anything},
	"gonum.org/v1/plot":                 {"archive/bench/write"},
	"golang.org/x/net":                  {"archive/wire", "archive/replica"},
	"github.com/anishathalye/porcupine": {"archive/archivetest"},
}

// listed is what go list says of one package.
type listed struct {
	ImportPath string
	Imports    []string // not those of tests
}

func TestImports(t *testing.T) {
	var seen []string
	for _, p := range list(t) {
		name := short(p.ImportPath)
		seen = append(seen, name)
		may, known := imports[name]
		if !known {
			t.Errorf("package %s is not in the import graph", name)
			continue
		}
		for _, i := range p.Imports {
			checkImport(t, name, i, may)
		}
	}
	for name := range imports {
		if !slices.Contains(seen, name) {
			t.Errorf("the import graph names %s, which does not exist", name)
		}
	}
}

func checkImport(t *testing.T, from, to string, may []string) {
	t.Helper()
	switch {
	case to == module || strings.HasPrefix(to, module+"/"):
		if slices.Contains(testOnly, short(to)) && !slices.Contains(testOnly, from) {
			t.Errorf("%s imports %s, which is for tests", from, short(to))
		}
		if !allowed(may, short(to)) {
			t.Errorf("%s imports %s, which is no arrow of the import graph", from, short(to))
		}
	case strings.Contains(strings.Split(to, "/")[0], "."):
		if !allowed(knowers(to), from) {
			t.Errorf("%s imports %s, which it may not know", from, to)
		}
	}
}

// knowers returns the packages that may know an import path of another module.
func knowers(to string) []string {
	for p := to; p != "."; p = path.Dir(p) {
		if may, ok := modules[p]; ok {
			return may
		}
	}
	return nil
}

func allowed(may []string, name string) bool {
	return slices.Contains(may, name) || slices.Contains(may, anything)
}

func short(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

// TestArrowsPointOneWay checks the graph itself: no package may come to know
// itself by way of others.
func TestArrowsPointOneWay(t *testing.T) {
	for name := range imports {
		if reaches(name, name, map[string]bool{}) {
			t.Errorf("%s may import itself by way of others", name)
		}
	}
}

func reaches(from, to string, been map[string]bool) bool {
	if been[from] {
		return false
	}
	been[from] = true
	for _, next := range imports[from] {
		if next == to || reaches(next, to, been) {
			return true
		}
	}
	return false
}

func list(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := dec.Decode(&p)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
