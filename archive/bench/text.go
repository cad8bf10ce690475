package bench

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// Table is a table with a title and, below it, what a reader must know.
type Table struct {
	Title string
	Rows  [][]string // the first is the head
	Notes []string
}

// Tables are the result in the form of the talk's tables.
func (res Result) Tables() []Table {
	return []Table{res.operationTable(), res.repairTable(), res.phaseTable()}
}

func (res Result) operationTable() Table {
	o := res.Ops
	row := func(name string, s Stat) []string {
		return []string{name, s.String(), Figure(s.Quantile(0.5)), Figure(s.Quantile(0.99))}
	}
	return Table{
		Title: "Get and Add, in milliseconds",
		Rows: [][]string{
			{"Operation", "Mean (std)", "p50", "p99"},
			row("Get: a name proven by f+1 replicas", o.Get), row("Get and its content", o.Content), row("Add: on the disks of 2f+1 replicas", o.Add),
		},
		Notes: []string{
			fmt.Sprintf("%d of each, one after the other; a session proves %s names a second; bulk Adds take %s names a second", o.Get.N(), Figure(o.Session.Mean()), Figure(res.Fill.Rate())),
			fmt.Sprintf("a proof has %s bytes, a receipt %s", Figure(o.Proof.Mean()), Figure(o.Receipt.Mean())),
		},
	}
}

func (res Result) repairTable() Table {
	t := Table{
		Title: "Audit and repair of one replica, in seconds",
		Rows:  [][]string{{"Data loss (%)", "Mean (std)", "Bytes lost", "Damages found"}},
		Notes: []string{"lost are pages of 4 KiB of tree and contents, drawn at random and zeroed on the disk; a second audit, not timed, finds the replica sound"},
	}
	for _, x := range res.Repairs {
		t.Rows = append(t.Rows, []string{fmt.Sprint(x.Loss), x.Took.String(), fmt.Sprintf("%.0f", x.Lost.Mean()), Figure(x.Found.Mean())})
	}
	return t
}

func (res Result) phaseTable() Table {
	t := Table{Title: "Duration of the update phase by action, in seconds, mean (std)", Rows: [][]string{{"Action"}}}
	for _, row := range res.Phases {
		t.Rows[0] = append(t.Rows[0], fmt.Sprintf("%d Adds", row.Adds))
	}
	if len(res.Phases) == 0 {
		return t
	}
	line := func(name string, of func(Row) string) {
		cells := []string{name}
		for _, row := range res.Phases {
			cells = append(cells, of(row))
		}
		t.Rows = append(t.Rows, cells)
	}
	for i, p := range res.Phases[0].Parts {
		line(p.Name, func(row Row) string { return row.Parts[i].Took.String() })
	}
	line("Total", func(row Row) string { return row.Total.String() })
	if res.Phases[0].Memory.N() > 0 { // a run of before did not look
		line("Most memory of a process, MiB", func(row Row) string { return Figure(row.Memory.Quantile(1)) })
	}
	line("Names before the first", func(row Row) string { return fmt.Sprint(row.Before) })
	t.Notes = []string{
		"each part is the mean over the replicas; the total ends when a client's Get is answered in the new epoch",
		"reset is that of a " + res.MAS + " device; where a machine reboots for it, its boot comes on top (2009: 86.6 s)",
	}
	return t
}

// Text is the whole result for a terminal.
func (res Result) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d replicas on one machine, MAS %s, %d names; %s\n%s\n", res.Replicas, res.MAS, res.Names, count(res.Runs, "run"), res.Machine)
	fmt.Fprintf(&b, "filled by Adds (%s s) and %s (%s s), as any archive; %d names share a content\n",
		Figure(res.Fill.Add), count(res.Fill.Phases, "update phase"), Figure(res.Fill.Update), perContent)
	for _, t := range res.Tables() {
		b.WriteString("\n" + t.Text())
	}
	return b.String()
}

// Text is the table for a terminal.
func (t Table) Text() string {
	var b strings.Builder
	fmt.Fprintln(&b, t.Title)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range t.Rows {
		fmt.Fprintln(w, "  "+strings.Join(row, "\t"))
	}
	w.Flush() // a strings.Builder takes all
	for _, n := range t.Notes {
		fmt.Fprintln(&b, "  ("+n+")")
	}
	return b.String()
}

// Markdown is the table for a document.
func (t Table) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "**%s**\n\n", t.Title)
	for i, row := range t.Rows {
		fmt.Fprintln(&b, "| "+strings.Join(row, " | ")+" |")
		if i == 0 {
			fmt.Fprintln(&b, "|"+strings.Repeat("---|", len(row)))
		}
	}
	for _, n := range t.Notes {
		fmt.Fprintf(&b, "\n%s.\n", n)
	}
	return b.String()
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
