package cmd

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"
)

// configKeys are the settings that a configuration file may hold. The first
// five are paths, relative to the file.
var configKeys = []string{"roster", "writer-key", "passphrase-file", "state", "dir", "passphrase-command", "reset", "timeout", "json", "quiet"}

const pathKeys = 5

// configure lets flags win over BONAFIDE_*, those over the configuration file,
// and that over the defaults.
func (a *app) configure(c *cobra.Command) error {
	a.v.SetEnvPrefix("bonafide")
	a.v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	a.v.AutomaticEnv()
	if err := a.v.BindPFlags(c.Flags()); err != nil {
		return err
	}
	if err := a.readConfig(); err != nil {
		return err
	}
	return a.checkTimeout()
}

func (a *app) checkTimeout() error {
	if d, err := time.ParseDuration(a.v.GetString("timeout")); err != nil || d <= 0 {
		return usagef("timeout %q: want a duration above zero, as 10s", a.v.GetString("timeout"))
	}
	return nil
}

// readConfig reads the configuration file. Only one that was asked for has to
// exist.
func (a *app) readConfig() error {
	file, asked := a.v.GetString("config"), true
	if file == "" {
		file, asked = filepath.Join(configHome(), "config.yaml"), false
	}
	settings, err := parseConfig(file)
	if errors.Is(err, fs.ErrNotExist) && !asked {
		return nil
	}
	if err != nil {
		return err
	}
	return a.v.MergeConfigMap(settings)
}

func parseConfig(file string) (map[string]any, error) {
	if _, err := os.Stat(file); err != nil {
		return nil, withStatus(exitUsage, fmt.Errorf("configuration: %w", err))
	}
	v := viper.New()
	v.SetConfigFile(file)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		return nil, usagef("configuration %s: %w", quote(file), err)
	}
	settings := v.AllSettings()
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		if !slices.Contains(configKeys, key) {
			return nil, withHint(usagef("configuration %s: unknown setting %q", quote(file), key),
				"did you mean %s? settings are %s", nearest(key, configKeys), strings.Join(configKeys, ", "))
		}
	}
	for _, key := range configKeys[:pathKeys] {
		if p := v.GetString(key); p != "" && !filepath.IsAbs(p) {
			settings[key] = filepath.Join(filepath.Dir(file), p)
		}
	}
	return settings, nil
}

// nearest returns the word that is the fewest changes of a letter away.
func nearest(word string, words []string) string {
	return slices.MinFunc(words, func(a, b string) int { return cmp.Compare(distance(word, a), distance(word, b)) })
}

// distance is the Levenshtein distance of two words, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1) // distances of what of a has been seen to each beginning of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal, row[j+1] = row[j+1], min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// configHome, dataHome and stateHome are our directories by the XDG base
// directory specification.
func configHome() string { return xdg("XDG_CONFIG_HOME", ".config") }
func dataHome() string   { return xdg("XDG_DATA_HOME", ".local/share") }
func stateHome() string  { return xdg("XDG_STATE_HOME", ".local/state") }

func xdg(variable, fallback string) string {
	base := os.Getenv(variable)
	if !filepath.IsAbs(base) { // "All paths must be absolute; ignore others"
		home, err := os.UserHomeDir()
		if err != nil {
			home = "."
		}
		base = filepath.Join(home, fallback)
	}
	return filepath.Join(base, "bonafide")
}
