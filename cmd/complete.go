package cmd

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bonafide-archive/bonafide/archive"
)

const (
	// completions bounds how many words are offered, and completeNames how many
	// names are looked at for them.
	completions   = 200
	completeNames = 5000
	// completeTime is how long a shell waits for them.
	completeTime = 2 * time.Second
)

// completeName completes names from the archive, up to the next slash, where the
// argument at i and those after it are names; before and after them, files.
func (a *app) completeName(is func(i int) bool) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if !is(len(args)) {
			return nil, cobra.ShellCompDirectiveDefault
		}
		ctx, cancel := context.WithTimeout(c.Context(), completeTime)
		defer cancel()
		words, err := a.namesFrom(ctx, c, word)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		directive := cobra.ShellCompDirectiveNoFileComp
		if len(words) == 1 && strings.HasSuffix(words[0], "/") {
			directive |= cobra.ShellCompDirectiveNoSpace
		}
		return words, directive
	}
}

// namesFrom returns what names that begin with word have up to the next slash.
func (a *app) namesFrom(ctx context.Context, c *cobra.Command, word string) (words []cobra.Completion, err error) {
	if err := a.configure(c); err != nil {
		return nil, err
	}
	a.quiet = true
	client, err := a.connect(ctx, false)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	enough, seen := errors.New("enough"), 0
	_, err = client.List(ctx, word, func(n archive.Name, _ archive.Entry) error {
		next := string(n)
		if slash := strings.IndexByte(next[len(word):], '/'); slash >= 0 {
			next = next[:len(word)+slash+1]
		}
		if plain(next) == next && (len(words) == 0 || words[len(words)-1] != next) { // others would be typed wrongly
			words = append(words, next)
		}
		if seen++; seen == completeNames || len(words) == completions {
			return enough
		}
		return nil
	})
	if len(words) > 0 { // right, if not all
		err = nil
	}
	return words, err
}

// every argument is a name.
func every(int) bool { return true }

// theFirst argument is a name.
func theFirst(i int) bool { return i == 0 }
