package cmd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"
)

// TestEachExitStatusIsRecorded finds, for each command, a session that ends with each
// status that its help lists. That of an interrupt and of a failed disk is asked of
// some command only.
func TestEachExitStatusIsRecorded(t *testing.T) {
	a := &app{printer: newPrinter(os.Stdout, os.Stderr), stdin: os.Stdin, v: viper.New()}
	commands := make(map[string]*cobra.Command)
	collect(a.rootCommand(), commands)
	seen := recorded(t, commands)
	for path, c := range commands {
		want := append([]int{exitDone, exitUsage}, exits[path]...)
		for _, status := range want {
			if !seen[path][status] {
				t.Errorf("no session shows that %s ends with %d", path, status)
			}
		}
		_, table, ok := strings.Cut(c.Long, "Exit status:\n\n")
		if !ok || len(strings.Split(table, "\n")) != len(want)+2 {
			t.Errorf("help of %s lists\n%s", path, table)
		}
		for status := range seen[path] {
			plugin := path == "status" && status <= checkUnknown
			if !plugin && status != exitFailure && status != exitInterrupted && !slices.Contains(want, status) {
				t.Errorf("%s ends with %d in a session, and its help does not say so", path, status)
			}
		}
	}
	for path := range exits {
		if commands[path] == nil {
			t.Errorf("exits lists %s, which is no command", path)
		}
	}
	for _, status := range []int{exitFailure, exitInterrupted} {
		if !slices.ContainsFunc(paths(commands), func(path string) bool { return seen[path][status] }) {
			t.Errorf("no session ends with %d", status)
		}
	}
	for status := range checkStates {
		if !seen["status"][status] {
			t.Errorf("no session shows that status --check ends with %d", status)
		}
	}
}

// collect collects the commands that do something, by path.
func collect(c *cobra.Command, into map[string]*cobra.Command) {
	_, path, _ := strings.Cut(c.CommandPath(), " ")
	if c.Runnable() && !c.Hidden && path != "" && !c.HasSubCommands() {
		into[path] = c
	}
	for _, sub := range c.Commands() {
		collect(sub, into)
	}
}

func paths(commands map[string]*cobra.Command) (all []string) {
	for path := range commands {
		all = append(all, path)
	}
	return all
}

// recorded returns the statuses that sessions assert, by command.
func recorded(t *testing.T, commands map[string]*cobra.Command) map[string]map[int]bool {
	t.Helper()
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	seen := make(map[string]map[int]bool)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		script, _, _ := strings.Cut(string(b), "\n-- ")
		for line := range strings.SplitSeq(script, "\n") {
			status, path := asserted(strings.Fields(line), commands)
			if seen[path] == nil {
				seen[path] = make(map[int]bool)
			}
			seen[path][status] = true
		}
	}
	return seen
}

// asserted returns which command a line runs, and the status that it expects; no path
// if it is another line.
func asserted(words []string, commands map[string]*cobra.Command) (status int, path string) {
	if len(words) > 0 && strings.HasPrefix(words[0], "[") { // a condition
		words = words[1:]
	}
	line := strings.Join(words, " ")
	switch {
	case strings.HasPrefix(line, "interrupt "):
		status = exitInterrupted
	case strings.HasPrefix(line, "exec bonafide "):
	case strings.HasPrefix(line, "status "), strings.HasPrefix(line, "eventually "):
		n, err := strconv.Atoi(words[1])
		if err != nil {
			panic(fmt.Sprintf("line %q", line))
		}
		status = n
	default:
		return 0, ""
	}
	for i := range words[1:] {
		for _, n := range []int{2, 1} {
			if at := 1 + i; at+n <= len(words) && commands[strings.Join(words[at:at+n], " ")] != nil {
				return status, strings.Join(words[at:at+n], " ")
			}
		}
	}
	return 0, ""
}
