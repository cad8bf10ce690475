package cmd

import (
	"bufio"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/spf13/cobra"
)

// excludes are patterns as gitignore(5) has them: the last that matches decides.
type excludes []exclude

type exclude struct {
	glob    string // of the path below the directory
	dirs    bool   // it is of directories alone
	include bool   // it takes back what those before it exclude
}

// excluding is the flags that say what is left out.
type excluding struct{ patterns, files []string }

func (e *excluding) flags(c *cobra.Command) {
	c.Flags().StringArrayVar(&e.patterns, "exclude", nil, "`pattern`, as in gitignore(5), of what to leave out below a directory; can be given again")
	c.Flags().StringArrayVar(&e.files, "exclude-from", nil, "`file` with such patterns, as .gitignore; can be given again")
}

// excludes parses the patterns, those of files first.
func (e excluding) excludes() (all excludes, err error) {
	for _, file := range e.files {
		if all, err = all.load(file); err != nil {
			return nil, err
		}
	}
	for _, p := range e.patterns {
		if all, err = all.parse(p); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (x excludes) load(file string) (excludes, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, unreadable(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		if x, err = x.parse(lines.Text()); err != nil {
			return nil, err
		}
	}
	return x, lines.Err()
}

// glob returns a pattern as doublestar takes it: braces mean nothing in gitignore(5),
// the complement of a set has no slash, and asterisks are one unless two or more are
// all that stands between slashes.
func glob(p string) string {
	parts := strings.Split(p, "/")
	for i, part := range parts {
		if stars := strings.Trim(part, "*") == ""; stars && len(part) > 1 {
			parts[i] = "**"
			continue
		}
		parts[i] = special.ReplaceAllStringFunc(part, func(m string) string {
			switch {
			case m[0] == '*':
				return "*"
			case m[0] == '[':
				return m + "/"
			case len(m) == 1: // a brace
				return `\` + m
			}
			return m
		})
	}
	return strings.Join(parts, "/")
}

// special is what glob looks at: a character that is escaped, braces, asterisks and
// the beginning of a complement.
var special = regexp.MustCompile(`\\.|[{}]|\*+|\[[!^]`)

// parse adds a pattern. One without a slash, but at its end, is of names at any
// depth; any other of paths below the directory.
func (x excludes) parse(line string) (excludes, error) {
	p := strings.TrimRight(line, " ")
	if strings.HasSuffix(p, `\`) && len(p) < len(line) {
		p += " "
	}
	var e exclude
	p, e.include = strings.CutPrefix(p, "!")
	p, e.dirs = strings.CutSuffix(p, "/")
	if p == "" {
		return x, nil
	}
	e.glob = glob(p)
	switch {
	case strings.HasPrefix(p, "/"):
		e.glob = e.glob[1:]
	case !strings.Contains(p, "/"):
		e.glob = "**/" + e.glob
	}
	if strings.HasSuffix(e.glob, "/**") { // what is in it, not it
		e.glob += "/*"
	}
	if !doublestar.ValidatePattern(e.glob) || strings.Contains(p, "[[:") {
		return nil, usagef("pattern %q: not understood", line)
	}
	return append(x, e), nil
}

// match reports whether a file or directory is left out, if what it is in is not.
func (x excludes) match(rel string, dir bool) bool {
	for i := len(x) - 1; i >= 0; i-- {
		if e := x[i]; (dir || !e.dirs) && doublestar.MatchUnvalidated(e.glob, rel) {
			return !e.include
		}
	}
	return false
}

// leaveOut reports whether a file is left out, or a directory that it is in.
func (x excludes) leaveOut(rel string) bool {
	if len(x) == 0 {
		return false
	}
	for d := path.Dir(rel); d != "."; d = path.Dir(d) {
		if x.match(d, true) {
			return true
		}
	}
	return x.match(rel, false)
}
