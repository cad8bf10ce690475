package cmd

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// progress shows how far uploads and downloads are, on a terminal only.
func (a *app) progress(r *archive.Roster) func(client.Progress) {
	if !a.shows() {
		return nil
	}
	return (&bars{a: a, roster: r}).show
}

// shows reports whether progress is shown.
func (a *app) shows() bool { return !a.quiet && !a.json && isTerminal(a.err) }

// treeProgress shows how much of many files has been read or fetched, on a terminal
// only. Reading waits for the replicas, so that it says how far all is.
func (a *app) treeProgress(r *archive.Roster, what, stage string, total uint64) func(client.Progress) {
	if !a.shows() || total == 0 {
		return nil
	}
	b := &treeBar{what: plain(what), stage: stage, total: total, under: make(map[item]uint64), each: newShares(r)}
	b.bar = a.bar(b.what, total)
	columns := terminalWidth(a.err)
	return func(p client.Progress) {
		b.take(p)
		if p.Stage == "hold" {
			b.bar.Describe(fitting(b.what, b.each.percents(total), columns))
		}
	}
}

// treeBar is the bar of many files that are read for an upload, with how many
// percent each replica has, or fetched.
type treeBar struct {
	what, stage string
	total       uint64
	bar         *progressbar.ProgressBar
	under       map[item]uint64 // bytes of files that are under way
	each        shares
}

type item struct {
	n archive.Name
	d archive.Digest
}

func (b *treeBar) take(p client.Progress) {
	it := item{p.Name, p.Digest}
	switch {
	case p.Stage == "hold":
		b.each.of[p.Replica] += p.Done
		return
	case p.Stage != b.stage || p.Done < b.under[it]:
		return
	}
	_ = b.bar.Add64(int64(p.Done - b.under[it]))
	b.under[it] = p.Done
	if p.Done == p.Total {
		delete(b.under, it)
	}
}

// shares are how many bytes each replica has.
type shares struct {
	roster *archive.Roster
	of     map[uint32]uint64
}

func newShares(r *archive.Roster) shares { return shares{r, make(map[uint32]uint64)} }

// percents returns the replicas' percents of total, in the order of the roster; -
// stands for none yet.
func (s shares) percents(total uint64) string {
	var all []string
	for _, r := range s.roster.Replicas {
		has := "-"
		if done, ok := s.of[r.ID]; ok {
			has = fmt.Sprint(100 * min(done, total) / total)
		}
		all = append(all, has)
	}
	return "[" + strings.Join(all, " ") + "%]"
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
// show as one: that of the slowest of the quorum that is furthest, as with it all
// are acknowledged, and beside it how many percent each replica has, in the order of
// the roster; - stands for none yet.
type bars struct {
	a      *app
	roster *archive.Roster
	bar    *progressbar.ProgressBar // nil: none on the screen
	what   string
	done   uint64
	each   shares
}

func (b *bars) show(p client.Progress) {
	if p.Total == 0 { // nothing to measure by
		return
	}
	if what := p.Stage + " " + string(p.Name); what != b.what {
		b.end()
		b.what, b.done, b.bar = what, 0, b.a.bar(plain(what), p.Total)
		b.each = newShares(b.roster)
	}
	if b.bar == nil {
		return
	}
	done := p.Done
	if p.Stage == "upload" {
		done = b.reached(p)
		b.bar.Describe(fitting(plain(b.what), b.each.percents(p.Total), terminalWidth(b.a.err)))
	}
	if done <= b.done {
		return
	}
	b.done = done
	_ = b.bar.Set64(int64(done))
	if done >= p.Total {
		b.end()
	}
}

// reached notes an upload's progress and returns how much of the content a quorum
// has, or, before a quorum has begun, all that have.
func (b *bars) reached(p client.Progress) uint64 {
	b.each.of[p.Replica] = p.Done
	had := slices.Sorted(maps.Values(b.each.of))
	return had[max(len(had)-b.roster.Quorum(), 0)]
}

func (b *bars) end() {
	if b.bar != nil {
		_ = b.bar.Finish()
		b.bar = nil
	}
}

func (a *app) bar(what string, total uint64, more ...progressbar.Option) *progressbar.ProgressBar {
	columns := terminalWidth(a.err)
	text, wide := textRoom(columns)
	return progressbar.NewOptions64(int64(total), append([]progressbar.Option{
		progressbar.OptionShowBytes(columns >= narrow), // with the rate
		progressbar.OptionSetWidth(wide - text),
		progressbar.OptionSetWriter(barWriter{a.printer}),
		progressbar.OptionSetDescription(fitting(what, "", columns)),
		progressbar.OptionThrottle(100 * time.Millisecond),
		progressbar.OptionClearOnFinish(),
	}, more...)...)
}

// narrow is how many columns a terminal must have for a bar with its rate.
const narrow = 60

// textRoom returns how many columns there are for a description and for it and the
// bar together, beside percentage, rate and times.
func textRoom(columns int) (text, both int) {
	rest := 38
	if columns < narrow {
		rest = 24
	}
	both = max(columns-rest, 12)
	text = min(both*2/3, 40)
	return text, min(both, text+40)
}

// fitting returns a description that is as long as there is room for: what, cut
// short, and a state, if there is room for it and a little of what.
func fitting(what, state string, columns int) string {
	room, _ := textRoom(columns)
	text := []rune(what)
	const little = 9 // upload and a letter
	if room < little+1+len(state) {
		state = ""
	}
	if state != "" {
		room -= 1 + len(state)
		state = " " + state
	}
	text = text[:min(len(text), room)]
	return string(text) + state
}
