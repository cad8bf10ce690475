package cmd

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The script that checks a receipt by hand is one, in the specification, in the
// topic and in the manual page.
func TestByHandIsTheSameEverywhere(t *testing.T) {
	read := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	find := func(text, pattern string) string {
		m := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s", pattern)
		}
		return m[1]
	}
	want := find(read("../archive/SPEC.md"), "(?s)```sh\n(# usage: sh check.sh.*?)```")
	topic := find(topicFormats, "(?s)\n(    # usage: sh check.sh.*)")
	if got := regexp.MustCompile("(?m)^    ").ReplaceAllString(topic, ""); got != want {
		t.Error("help formats has another script than archive/SPEC.md")
	}
	page := find(read("../man/bonafide-formats.5"), `(?s)\n(# usage: sh check.sh.*?)\.EE`)
	page = strings.NewReplacer(`\\`, `\`, `\-`, `-`, `\&`, ``, `\e`, `\`, `\(aq`, `'`).Replace(page)
	if page != want {
		t.Errorf("bonafide-formats(5) has another script than archive/SPEC.md:\n%s", page)
	}
}
