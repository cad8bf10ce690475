package cmd

import (
	"fmt"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/bonafide-archive/bonafide/archive/client"
)

// progress shows how far hashing, uploads and downloads are, on a terminal
// only.
func (a *app) progress() func(client.Progress) {
	if a.quiet || a.json || !isTerminal(a.err) {
		return nil
	}
	b := &bars{a: a}
	return b.show
}

// bars is the one bar on the screen. Uploads show as one, the replica that is
// furthest leading.
type bars struct {
	a    *app
	bar  *progressbar.ProgressBar
	what string
	done uint64
}

func (b *bars) show(p client.Progress) {
	what := p.Stage + " " + quote(p.Name)
	if what != b.what {
		b.clear()
		b.what, b.done = what, 0
		b.bar = b.a.bar(what, p.Total)
	}
	if p.Done > b.done {
		b.done = p.Done
		_ = b.bar.Set64(int64(p.Done))
	}
	if p.Total > 0 && p.Done >= p.Total {
		b.clear()
	}
}

func (b *bars) clear() {
	if b.bar != nil {
		_ = b.bar.Clear()
		b.bar = nil
	}
	if b.what != "" {
		b.bar = progressbar.DefaultSilent(-1)
	}
}

func (a *app) bar(what string, total uint64) *progressbar.ProgressBar {
	size := int64(total)
	if total == 0 {
		size = -1
	}
	return progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(a.stderr()),
		progressbar.OptionSetDescription(fmt.Sprintf("%.40s", what)),
		progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish())
}
