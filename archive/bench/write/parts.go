package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bonafide-archive/bonafide/archive/bench"
)

// fill puts each part between its markers, `<!-- NAME -->` and `<!-- /NAME -->`, in
// place of what stands there. All parts must have their markers.
func fill(text string, parts map[string]string) (string, error) {
	for name, part := range parts {
		open, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->\n"
		before, rest, ok := strings.Cut(text, open)
		_, after, closed := strings.Cut(rest, end)
		if !ok || !closed || strings.Count(text, open)+strings.Count(text, end) != 2 {
			return "", fmt.Errorf("want one %s and one %s, in this order", strings.TrimSpace(open), strings.TrimSpace(end))
		}
		text = before + open + "\n" + strings.Trim(part, "\n") + "\n\n" + end + after
	}
	return text, nil
}

// parts are the parts of the text that results fill: the run of a million names,
// others, and update phases alone.
func parts(res bench.Result, others []bench.Result, alone benchmark) map[string]string {
	var all []string
	for _, o := range others {
		all = append(all, run(o))
	}
	return map[string]string{
		"run":          run(res),
		"others":       strings.Join(all, "\n"),
		"phases":       phasesAlone(alone),
		"talk":         talk(res),
		"aims":         aims(res),
		"availability": availability(res),
	}
}

// run is what a terminal showed, with command, date and duration.
func run(res bench.Result) string {
	var b strings.Builder
	took := time.Duration(res.Took) * time.Second
	fmt.Fprintf(&b, "%s, %s:\n\n", res.Date.Format("2006-01-02"), strings.Replace(took.String(), "m", " min ", 1))
	for line := range strings.Lines(res.Command + "\n\n" + res.Text()) {
		if strings.TrimSpace(line) != "" {
			line = "    " + line
		}
		b.WriteString(line)
	}
	return b.String()
}

// markdown is a table; its first row is the head.
func markdown(rows ...[]string) string {
	var b strings.Builder
	for i, row := range rows {
		fmt.Fprintln(&b, "| "+strings.Join(row, " | ")+" |")
		if i == 0 {
			fmt.Fprintln(&b, "|"+strings.Repeat("---|", len(row)))
		}
	}
	return b.String()
}

// compared is the number of Adds whose update phase stands beside the talk's and the
// aims.
const compared = 25_000

// rowOf is the update phase with the compared number of Adds, or else with the most.
func rowOf(res bench.Result) (row bench.Row) {
	for _, r := range res.Phases {
		if r.Adds == compared {
			return r
		}
		if r.Adds >= row.Adds {
			row = r
		}
	}
	return row
}

// took is the sum of parts of a phase, run by run.
func took(row bench.Row, names ...string) bench.Stat {
	sums := make([]float64, row.Total.N())
	for _, p := range row.Parts {
		for _, name := range names {
			if p.Name == name {
				for i, v := range p.Took.Values() {
					sums[i] += v
				}
			}
		}
	}
	return bench.Of(sums...)
}

// talk is the result beside the talk's figures.
func talk(res bench.Result) string {
	o, row := res.Ops, rowOf(res)
	rows := [][]string{
		{"Operation", "2009", "here"},
		{"Get, ms", talkGet, o.Get.String() + ", median " + bench.Figure(o.Get.Quantile(0.5))},
		{"Add, ms", talkAdd, o.Add.String() + ", median " + bench.Figure(o.Add.Quantile(0.5))},
	}
	for _, x := range res.Repairs {
		rows = append(rows, []string{fmt.Sprintf("Audit and repair, %d %% lost, s", x.Loss), talkRepair[x.Loss], x.Took.String()})
	}
	rows = append(rows,
		[]string{"Update phase: reboot, s", talkReboot, "not measured: " + res.MAS + " devices"},
		[]string{"proposal creation", talkProposal, took(row, bench.PartProposal).String()},
		[]string{"agreement", talkAgreement, took(row, bench.PartAgreement).String()},
		[]string{"tree update, votes and store", talkUpdate, took(row, bench.PartUpdate, bench.PartStore).String()},
		[]string{"total", talkTotal, row.Total.String() + ", without reboot"})
	return markdown(rows...) + fmt.Sprintf("\nThe update phase here is that of %s Adds.\n", thousands(row.Adds))
}

// aims is the result beside what is wanted of a million names.
func aims(res bench.Result) string {
	o, row := res.Ops, rowOf(res)
	phase := row.Total.Mean() - took(row, bench.PartReset, bench.PartProcesses).Mean()
	line := func(what, aim string, is float64, met bool) []string {
		return []string{what, aim, bench.Figure(is), map[bool]string{true: "yes", false: "no"}[met]}
	}
	agreement := took(row, bench.PartAgreement).Mean()
	return markdown(
		[]string{"", "aim", "here", "met"},
		line("Get of a name, median, ms", "≤ 2", o.Get.Quantile(0.5), o.Get.Quantile(0.5) <= 2),
		line("names a second that a session proves", "≥ 10,000", o.Session.Mean(), o.Session.Mean() >= 10_000),
		line("names a second of bulk Adds", "≥ 20,000", res.Fill.Rate(), res.Fill.Rate() >= 20_000),
		line(fmt.Sprintf("update phase of %s Adds without reset and processes, s", thousands(row.Adds)), "≤ 4", phase, phase <= 4),
		line("its agreement, s", "≤ 1.3", agreement, agreement <= 1.3),
	)
}

// availability is the drawing's figures.
func availability(res bench.Result) string {
	row := func(what string, seconds float64) []string {
		cells := []string{what, fmt.Sprintf("%.1f", seconds)}
		for _, hours := range talkPeriods {
			cells = append(cells, fmt.Sprintf("%.3f %%", 100*available(seconds, hours)))
		}
		return cells
	}
	head := []string{"Update phase", "s"}
	for _, hours := range talkPeriods {
		head = append(head, fmt.Sprintf("every %d hours", hours))
	}
	rows := [][]string{head}
	for _, ph := range phasesOf(res) {
		rows = append(rows, row(thousands(ph.adds)+" Adds", ph.seconds))
	}
	for _, ph := range phasesOf(res) {
		rows = append(rows, row(fmt.Sprintf("%s Adds, and a reboot of %.1f s", thousands(ph.adds), talkBoot), ph.seconds+talkBoot))
	}
	return markdown(append(rows, row("2009, computed from the talk", talkPhase))...)
}

// phasesAlone is a table of update phases that were measured by themselves, without
// devices, services and processes that start and stop.
func phasesAlone(b benchmark) string {
	rows := [][]string{{"N", "Adds", "wall, s", "processor of a replica, s"}}
	units := []string{"s", "s-cpu/replica"}
	for _, part := range []string{"open", "join", "vouch", "agree", "apply", "votes", "store", "linger"} {
		rows[0], units = append(rows[0], part), append(units, "s-"+part)
	}
	for _, k := range slices.SortedFunc(maps.Keys(b.values), bySize) {
		n, adds := sizeOf(k)
		row := []string{fmt.Sprint(n), thousands(adds)}
		for _, u := range units {
			row = append(row, fmt.Sprintf("%.2f", b.values[k][u]))
		}
		rows = append(rows, row)
	}
	return b.date + ":\n\n    " + b.command + "\n\n" + markdown(rows...)
}

// sizeOf are the numbers of replicas and Adds that a benchmark of the update phase
// names.
func sizeOf(name string) (replicas, adds int) {
	fmt.Sscanf(name, "Phase/N=%d/adds=%d", &replicas, &adds)
	return replicas, adds
}

func bySize(a, b string) int {
	an, aa := sizeOf(a)
	bn, ba := sizeOf(b)
	return cmp.Or(cmp.Compare(an, bn), cmp.Compare(aa, ba))
}

// thousands writes a number as the text does, 25,000.
func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
