package cmd

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is the release; it changes with the CHANGELOG.
const version = "0.1.0"

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			rev := revision()
			return a.result(struct {
				Kind     string `json:"kind"`
				Version  string `json:"version"`
				Revision string `json:"revision"`
				Go       string `json:"go"`
			}{"version", version, rev, runtime.Version()}, "bonafide %s (%s, %s)", version, rev, runtime.Version())
		},
	}
}

// revision is what the build knows of its source.
func revision() string {
	info, _ := debug.ReadBuildInfo()
	rev, dirty := "unknown revision", ""
	if info == nil {
		return rev
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			rev = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = ", modified"
		}
	}
	return rev + dirty
}
