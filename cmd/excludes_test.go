package cmd

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestExcludes compares patterns with git, which they are named after.
func TestExcludes(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		if os.Getenv("BONAFIDE_REQUIRE_GUARDED") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("git", "init", "-q", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Letters of one byte: others are one character here, and several in git.
	paths := []string{"a", "a.o", "b/a", "b/a.o", "a/b/c", "a/b/x/b/c", "a/x/b/c", "x/a/b", "{a}", "b/{a,b}", " ", "a ", "#a", "!a", `a\b`, "[a", "build/x", "src/build/y", "b**", "a/***/e"}
	for _, patterns := range [][]string{
		{"*.o"}, {"*.o", "!b/*.o"}, {"a"}, {"/a"}, {"a/"}, {"b/*"}, {"a/**"}, {"**/b"}, {"a/**/c"}, {"a/**/b/c"}, {"a**c"}, {"**"},
		{"{a,b}"}, {"{a}"}, {"b/{a,b}"}, {`\#a`}, {`\!a`}, {"a  "}, {`a\ `}, {`\ `}, {"[!b]"}, {"[^b]o"}, {"?"}, {"a/*/b"}, {`a\\b`}, {`\[a`},
		{"build/", "!build/x"}, {"/build"}, {"*", "!a.o"}, {"/*", "!/b"}, {"a", "!a", "b"}, {"", "a"}, {"[a-c]/"}, {"*/"}, {"/**/c"}, {"x/**/"}, {"?o"}, {"a/?/b"}, {"b***"}, {"a/***"}, {"**[!a][ab]**"}, {"[!a][!a][!a]"}, {`b\**`},
	} {
		compareWithGit(t, dir, patterns, paths)
	}
	atoms := []string{"a", "b", "*", "**", "/", "?", ".o", "[ab]", "[!a]", "!"}
	src := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var patterns []string
		for range 1 + src.IntN(3) {
			var p strings.Builder
			for range 1 + src.IntN(6) {
				p.WriteString(atoms[src.IntN(len(atoms))])
			}
			patterns = append(patterns, p.String())
		}
		compareWithGit(t, dir, patterns, paths)
	}
}

// compareWithGit wants the same of each path as git check-ignore says.
func compareWithGit(t *testing.T, dir string, patterns, paths []string) {
	t.Helper()
	x, err := excluding{patterns: patterns}.excludes()
	if err != nil {
		t.Errorf("%q: %v", patterns, err)
		return
	}
	want := ignoredByGit(t, dir, patterns, paths)
	for _, p := range paths {
		if got := x.leaveOut(p); got != want[p] {
			t.Errorf("%q leaves out %q: %v, git: %v", patterns, p, got, want[p])
		}
	}
}

func ignoredByGit(t *testing.T, dir string, patterns, paths []string) map[string]bool {
	t.Helper()
	file := filepath.Join(dir, "patterns")
	if err := os.WriteFile(file, []byte(strings.Join(patterns, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("git", "-c", "core.excludesFile="+file, "check-ignore", "-z", "--no-index", "--stdin")
	c.Dir, c.Stdin = dir, strings.NewReader(strings.Join(paths, "\x00")+"\x00")
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	out, err := c.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) { // 1: none is ignored
		t.Fatal(err)
	}
	ignored := make(map[string]bool)
	for p := range bytes.SplitSeq(bytes.TrimSuffix(out, []byte{0}), []byte{0}) {
		ignored[string(p)] = true
	}
	return ignored
}
