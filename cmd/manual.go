package cmd

import (
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra/doc"
	"github.com/spf13/viper"
)

// WriteManual writes the manual pages of all commands and topics into dir, which holds
// nothing else of the kind.
func WriteManual(dir string) error {
	a := &app{printer: newPrinter(os.Stdout, os.Stderr), stdin: os.Stdin, v: viper.New()}
	root := a.rootCommand()
	root.DisableAutoGenTag = true
	old, err := filepath.Glob(filepath.Join(dir, "*.[157]"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	err = doc.GenManTreeFromOpts(root, doc.GenManTreeOptions{
		Header: manualHeader(), Path: dir, CommandSeparator: "-",
	})
	if err != nil {
		return err
	}
	return writeTopicPages(dir)
}

func manualHeader() *doc.GenManHeader {
	released := time.Date(2026, time.November, 23, 0, 0, 0, 0, time.UTC)
	return &doc.GenManHeader{Section: "1", Source: "bonafide " + version, Manual: "Bonafide", Date: &released}
}
