package cmd

import (
	"strings"
	"testing"

	"github.com/schollz/progressbar/v3"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/client"
)

// A description and its bar fit their terminal, and what each replica has is beside
// the name where there is room for both.
func TestFitting(t *testing.T) {
	const state = "[62 60 - 0%]"
	for columns := 20; columns <= 200; columns++ {
		text, both := textRoom(columns)
		if text > both || columns >= 40 && both+24 > columns {
			t.Errorf("%d columns: %d for a description, %d with the bar", columns, text, both)
		}
		for _, what := range []string{"upload a", "upload " + strings.Repeat("\u00fc", 100)} {
			got := fitting(what, state, columns)
			if n := len([]rune(got)); n > text || n > len(what)+1+len(state) {
				t.Errorf("%d columns: %q", columns, got)
			}
			if shown := strings.HasSuffix(got, " "+state); shown != (text >= 22) || columns == 80 && !shown {
				t.Errorf("%d columns: %q", columns, got)
			}
		}
	}
}

// The bar of an upload is that of the slowest of the quorum that is furthest.
func TestUploadReached(t *testing.T) {
	r := &archive.Roster{F: 1, Replicas: []archive.Replica{{ID: 1}, {ID: 2}, {ID: 3}, {ID: 4}}}
	b := &bars{roster: r, each: newShares(r)}
	for _, step := range []struct {
		id         uint32
		done, want uint64
		state      string
	}{
		{2, 50, 50, "[- 50 - -%]"}, {3, 10, 10, "[- 50 10 -%]"}, {4, 20, 10, "[- 50 10 20%]"},
		{1, 30, 20, "[30 50 10 20%]"}, {2, 100, 20, "[30 100 10 20%]"}, {1, 100, 20, "[100 100 10 20%]"},
		{4, 100, 100, "[100 100 10 100%]"},
	} {
		got := b.reached(client.Progress{Stage: "upload", Replica: step.id, Done: step.done, Total: 100})
		if state := b.each.percents(100); got != step.want || state != step.state {
			t.Errorf("replica %d at %d: %d %s, want %d %s", step.id, step.done, got, state, step.want, step.state)
		}
	}
}

// The bar of many files counts each file once, however often its bytes are told of,
// and says of each replica what it has.
func TestTreeBar(t *testing.T) {
	r := &archive.Roster{F: 1, Replicas: []archive.Replica{{ID: 1}, {ID: 2}, {ID: 3}, {ID: 4}}}
	b := &treeBar{stage: "read", total: 200, bar: progressbar.DefaultSilent(200), under: make(map[item]uint64), each: newShares(r)}
	for _, p := range []client.Progress{
		{Stage: "read", Name: "a", Done: 30, Total: 50}, {Stage: "read", Name: "a", Done: 50, Total: 50},
		{Stage: "read", Name: "b", Done: 100, Total: 150}, {Stage: "read", Name: "b", Done: 80, Total: 150},
		{Stage: "upload", Name: "a", Replica: 1, Done: 50, Total: 50},
		{Stage: "hold", Replica: 2, Done: 50}, {Stage: "hold", Replica: 2, Done: 50}, {Stage: "hold", Replica: 4, Done: 20},
	} {
		b.take(p)
	}
	if got, want := b.bar.State().CurrentNum, int64(150); got != want {
		t.Errorf("%d bytes read, want %d", got, want)
	}
	if got, want := b.each.percents(b.total), "[- 50 - 10%]"; got != want {
		t.Errorf("replicas have %s, want %s", got, want)
	}
}
