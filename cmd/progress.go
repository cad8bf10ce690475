package cmd

import (
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// progress shows how far uploads and downloads are, on a terminal only.
func (a *app) progress() func(client.Progress) {
	if !a.shows() {
		return nil
	}
	return (&bars{a: a}).show
}

// shows reports whether progress is shown.
func (a *app) shows() bool { return !a.quiet && !a.json && isTerminal(a.err) }

// treeProgress shows how much of many files has been read or fetched, on a terminal
// only. Reading waits for the replicas, so that it says how far all is.
func (a *app) treeProgress(what, stage string, total uint64) func(client.Progress) {
	if !a.shows() || total == 0 {
		return nil
	}
	bar := a.bar(plain(what), total)
	var mu sync.Mutex
	type item struct {
		n archive.Name
		d archive.Digest
	}
	under := make(map[item]uint64) // bytes of files that are under way
	return func(p client.Progress) {
		mu.Lock()
		defer mu.Unlock()
		it := item{p.Name, p.Digest}
		if p.Stage != stage || p.Done < under[it] {
			return
		}
		_ = bar.Add64(int64(p.Done - under[it]))
		under[it] = p.Done
		if p.Done == p.Total {
			delete(under, it)
		}
	}
}

// reading shows how many of so many bytes have been read, on a terminal only; nil: it
// does not. end takes it off the screen.
func (a *app) reading(what string, total uint64) (show func(n int), end func()) {
	if !a.shows() || total == 0 {
		return nil, func() {}
	}
	bar := a.bar(plain(what), total)
	return func(n int) { _ = bar.Add(n) }, func() { _ = bar.Finish() }
}

// counting shows how many of so many things are done, on a terminal only. end
// takes it off the screen.
func (a *app) counting(what string) (show func(done, total uint64), end func()) {
	if !a.shows() {
		return func(_, _ uint64) {}, func() {}
	}
	var bar *progressbar.ProgressBar
	show = func(done, total uint64) {
		if bar == nil {
			bar = a.bar(what, total, progressbar.OptionShowBytes(false))
		}
		_ = bar.Set64(int64(done))
	}
	return show, func() {
		if bar != nil {
			_ = bar.Finish()
			bar = nil
		}
	}
}

// bars is the one bar on the screen. Uploads of a content to several replicas
// show as one: that of the replica which leads.
type bars struct {
	a    *app
	bar  *progressbar.ProgressBar // nil: none on the screen
	what string
	done uint64
}

func (b *bars) show(p client.Progress) {
	if p.Total == 0 { // nothing to measure by
		return
	}
	if what := p.Stage + " " + string(p.Name); what != b.what {
		b.end()
		b.what, b.done, b.bar = what, 0, b.a.bar(plain(what), p.Total)
	}
	if b.bar == nil || p.Done <= b.done {
		return
	}
	b.done = p.Done
	_ = b.bar.Set64(int64(p.Done))
	if p.Done >= p.Total {
		b.end()
	}
}

func (b *bars) end() {
	if b.bar != nil {
		_ = b.bar.Finish()
		b.bar = nil
	}
}

func (a *app) bar(what string, total uint64, more ...progressbar.Option) *progressbar.ProgressBar {
	what, options := fit(what, terminalWidth(a.err))
	return progressbar.NewOptions64(int64(total), append(append(options,
		progressbar.OptionSetWriter(barWriter{a.printer}),
		progressbar.OptionSetDescription(what),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	), more...)...)
}

// fit returns what of a description there is room for beside a bar on a terminal of so
// many columns, and the options with which the bar fits. Where it is narrow, the rate
// is left out.
func fit(what string, columns int) (string, []progressbar.Option) {
	const narrow = 60
	rest, rate := 38, true // beside the two: percentage, rate, times
	if columns < narrow {
		rest, rate = 24, false
	}
	room := max(columns-rest, 12)
	text := []rune(what)
	text = text[:min(len(text), 40, room*2/3)]
	return string(text), []progressbar.Option{progressbar.OptionShowBytes(rate), progressbar.OptionSetWidth(min(room-len(text), 40))}
}
