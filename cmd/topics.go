package cmd

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
)

// The topics of help beside the commands: Markdown whose code blocks are indented,
// so that it reads as plain text too.
var (
	//go:embed topics/config.md
	topicConfig string
	//go:embed topics/environment.md
	topicEnvironment string
	//go:embed topics/exit-codes.md
	topicExitCodes string
	//go:embed topics/formats.md
	topicFormats string
	//go:embed topics/trust.md
	topicTrust string
)

// topic is one of them.
type topic struct{ name, short, text string }

func topics() []topic {
	return []topic{
		{"config", "The configuration file, key by key", topicConfig},
		{"environment", "Environment variables", topicEnvironment},
		{"exit-codes", "Exit statuses and what they mean", strings.Replace(topicExitCodes, "EXITS", exitRows(nil), 1)},
		{"formats", "JSON lines, lists and receipts, and how to check one by hand", topicFormats},
		{"trust", "The ideas: replicas, devices, and what is promised", topicTrust},
	}
}

// topicCommands are the topics as cobra has them: commands that do not run.
func topicCommands() (all []*cobra.Command) {
	for _, t := range topics() {
		all = append(all, &cobra.Command{Use: t.name, Short: t.short, Long: t.text})
	}
	return all
}

// topicPages are the manual pages that come from topics.
var topicPages = []struct {
	name, section, short string
	topics               []string
}{
	{"bonafide-formats", "5", "what bonafide prints for programs, and receipts by hand", []string{"formats"}},
	{"bonafide-config", "5", "configuration and environment of bonafide", []string{"config", "environment"}},
	{"bonafide", "7", "the ideas of bonafide", []string{"trust", "exit-codes"}},
}

// writeTopicPages writes them into dir.
func writeTopicPages(dir string) error {
	texts := make(map[string]string)
	for _, t := range topics() {
		texts[t.name] = t.text
	}
	for _, p := range topicPages {
		var b strings.Builder
		h := manualHeader()
		fmt.Fprintf(&b, "%% \"%s\" \"%s\" \"%s\" \"%s\" \"%s\"\n", strings.ToUpper(p.name), p.section, h.Date.Format("Jan 2006"), h.Source, h.Manual)
		fmt.Fprintf(&b, "# NAME\n%s - %s\n\n", p.name, p.short)
		for _, name := range p.topics {
			b.WriteString(texts[name] + "\n")
		}
		b.WriteString("# SEE ALSO\n**bonafide(1)**\n")
		page := filepath.Join(dir, p.name+"."+p.section)
		if err := os.WriteFile(page, md2man.Render([]byte(b.String())), 0o644); err != nil {
			return err
		}
	}
	return nil
}
