package main

import (
	"fmt"
	"strings"

	"github.com/bonafide-archive/bonafide/archive/bench"
	"github.com/bonafide-archive/bonafide/archive/bench/cost"
)

// parts are the tables of archive/COST.md.
func (c costs) parts() map[string]string {
	return map[string]string{
		"points": c.pointsText(), "proof": c.proofText(), "audit": c.auditText(), "phase": c.phaseText(),
		"repair": c.repairText(), "messages": c.messagesText(), "names": c.namesText(), "replicas": c.replicasText(),
	}
}

// pointsText says how each point was measured.
func (c costs) pointsText() string {
	var b strings.Builder
	for _, all := range []map[int]benchmark{c.prove, c.tree, c.repair, {0: c.messages}} {
		for _, n := range append([]int{0}, sizes...) {
			if x, ok := all[n]; ok {
				fmt.Fprintf(&b, "    %s  %s\n", x.date, x.command)
			}
		}
	}
	for _, n := range sizes {
		if res, ok := c.runs[n]; ok {
			fmt.Fprintf(&b, "    %s  %s --json\n", res.Date.Format("2006-01-02"), res.Command)
		}
	}
	return b.String() + "\nOn " + c.runs[1_000_000].Machine.String() + ".\n"
}

const notRun = "not run"

func (c costs) proofText() string {
	rows := [][]string{{"names", "name and value, B", "measured, B", "model, B", "measured / model"}}
	for _, n := range sizes {
		rows = append(rows, proofRow(n, treeName, treeValue, c.prove[n].values["Prove"]["B/proof"]))
	}
	for _, n := range sizes {
		rows = append(rows, proofRow(n, benchName, benchEntry, c.runs[n].Ops.Proof.Mean()))
	}
	return markdown(rows...)
}

func proofRow(n int, name, value, measured float64) []string {
	model := cost.ProofBytes(float64(n), name, value)
	row := []string{thousands(n), fmt.Sprintf("%g + %g", name, value), notRun, fmt.Sprintf("%.0f", model), ""}
	if measured > 0 {
		row[2], row[4] = fmt.Sprintf("%.0f", measured), ratio(measured, model)
	}
	return row
}

// checked is a row with what was measured at each size, the model, and their ratio.
func checked(label string, m cost.Model, samples []cost.Sample, scale float64) (row []string) {
	row = append(row, label)
	for _, n := range sizes {
		cell := notRun
		for _, s := range samples {
			if s.Names == float64(n) {
				model := m.At(s.Point)
				cell = fmt.Sprintf("%s / %s = %s", round(s.Value*scale), round(model*scale), ratio(s.Value, model))
			}
		}
		row = append(row, cell)
	}
	return row
}

func sizesHead(label string) []string {
	row := []string{label}
	for _, n := range sizes {
		row = append(row, thousands(n)+" names")
	}
	return row
}

func (c costs) auditText() string {
	return markdown([]string{"", "constants"},
		[]string{"audit", formula(c.audit, "s")}, []string{"rehash", formula(c.rehash, "s")}, []string{"Adds of a hundredth of the names", formula(c.apply, "s")}, []string{"file of a tree", formula(c.file, "B")}) + "\n" +
		markdown(sizesHead("measured / model"),
			checked("audit, ms", c.audit, c.treeTimes("Audit"), 1e3),
			checked("rehash, ms", c.rehash, c.treeTimes("Rehash"), 1e3),
			checked("Adds of a hundredth of the names, ms", c.apply, c.treeTimes("Apply"), 1e3),
			checked("file of a tree, MB", c.file, c.files(), 1e-6))
}

func (c costs) phaseText() string {
	constants := [][]string{{"action", "s"}}
	for _, name := range phaseParts {
		constants = append(constants, []string{name, formula(c.phases[name], "s")})
	}
	head := []string{"names before", "Adds"}
	for _, name := range phaseParts {
		short, _, _ := strings.Cut(name, ":")
		head = append(head, short)
	}
	rows := [][]string{append(head, "total measured, s", "model, s", "measured / model")}
	for _, n := range sizes {
		if _, ok := c.runs[n]; !ok {
			rows = append(rows, []string{thousands(n), notRun, "", "", "", "", "", "", "", "", "", ""})
		}
		for _, row := range c.runs[n].Phases {
			rows = append(rows, c.phaseRow(row))
		}
	}
	return markdown(constants...) + "\n" + markdown(rows...)
}

func (c costs) phaseRow(row bench.Row) []string {
	at := pointOf(row)
	cells := []string{thousands(int(at.Names)), thousands(row.Adds)}
	for _, name := range phaseParts {
		cells = append(cells, ratio(took(row, name).Mean(), c.phases[name].At(at)))
	}
	total, model := row.Total.Mean(), c.phase(at)
	return append(cells, fmt.Sprintf("%.1f", total), fmt.Sprintf("%.1f", model), ratio(total, model))
}

func (c costs) repairText() string {
	rows := [][]string{sizesHead("measured / model"), checked("nothing lost, s", c.tookNone, c.repairs("s", 1, "none"), 1)}
	for _, loss := range []string{"1%spread", "10%spread"} {
		what := strings.Replace(loss, "%spread", " % lost here and there", 1)
		rows = append(rows,
			checked(what+", MB fetched", c.fetchedPart, c.repairs("MB-fetched", 1e6, loss), 1e-6),
			checked(what+", s", c.tookPart, c.repairs("s", 1, loss), 1))
	}
	rows = append(rows,
		checked("all lost, MB fetched", c.fetchedAll, c.repairs("MB-fetched", 1e6, "all"), 1e-6),
		checked("all lost, s", c.tookAll, c.repairs("s", 1, "all"), 1))
	return markdown([]string{"", "constants"},
		[]string{"nothing lost, time", formula(c.tookNone, "s")},
		[]string{"a part lost, bytes fetched", formula(c.fetchedPart, "B")}, []string{"a part lost, time", formula(c.tookPart, "s")},
		[]string{"all lost, bytes fetched", formula(c.fetchedAll, "B")}, []string{"all lost, time", formula(c.tookAll, "s")}) + "\n" + markdown(rows...)
}

func (c costs) messagesText() string {
	rows := [][]string{{"N", "segments measured", "model", "measured / model", "MB measured", "of which boards, derived", "model", "measured / model"}}
	octets := c.sent("B-sent")
	for i, s := range c.sent("segments") {
		o := octets[i]
		rows = append(rows, []string{
			fmt.Sprint(s.Replicas), round(s.Value), round(c.segments.At(s.Point)), ratio(s.Value, c.segments.At(s.Point)),
			mb(o.Value), mb(c.octets.Derived(o.Point)), mb(c.octets.At(o.Point)), ratio(o.Value, c.octets.At(o.Point)),
		})
	}
	return markdown([]string{"of all replicas", "constants"},
		[]string{"TCP segments", formula(c.segments, "")}, []string{"bytes", "N(N−1) · board + " + formula(c.octets, "B")}) + "\n" + markdown(rows...)
}

func mb(v float64) string { return round(v / 1e6) }

// namesText foretells what more names cost.
func (c costs) namesText() string {
	head := []string{"", "1 million names", "10 million", "100 million", "1 billion"}
	at := []cost.Point{}
	for _, n := range []float64{1e6, 1e7, 1e8, 1e9} {
		at = append(at, cost.Point{Names: n, Adds: compared, Replicas: 4})
	}
	line := func(what string, of func(cost.Point) float64) []string {
		cells := []string{what}
		for _, p := range at {
			cells = append(cells, round(of(p)))
		}
		return cells
	}
	return markdown(head,
		line("proof of an archive's name, B", func(p cost.Point) float64 { return cost.ProofBytes(p.Names, benchName, benchEntry) }),
		line("file of the tree, GB", func(p cost.Point) float64 { return c.file.At(p) / 1e9 }),
		line("audit of the tree by one replica, its file in memory, s", c.audit.At),
		line("rehash of it by one replica, s", c.rehash.At),
		line("repair of a tree that is gone, s", c.tookAll.At),
		line(fmt.Sprintf("update phase with %s Adds, four replicas on this machine, s", thousands(compared)), c.phase),
		line("of which opening: tree rehashed, s", c.phases[bench.PartOpening].At),
		line("of which tree update, votes and store, s", func(p cost.Point) float64 {
			return c.phases[bench.PartUpdate].At(p) + c.phases[bench.PartStore].At(p)
		}))
}

// replicasText foretells what more replicas cost.
func (c costs) replicasText() string {
	rows := [][]string{{"N", "f", "2f+1", "block, MB", "board, MB", "read by one replica, MB", "sent by all, MB", "TCP segments of all", "signatures of a block, checked by each"}}
	for _, n := range []float64{4, 7, 10, 16, 31, 100} {
		p := cost.Point{Replicas: n}
		rows = append(rows, []string{
			fmt.Sprint(n), fmt.Sprint(cost.Faulty(n)), fmt.Sprint(cost.Quorum(n)), mb(cost.Block(n)), mb(cost.Board(n)), mb((n - 1) * cost.Board(n)),
			mb(c.octets.At(p)), round(c.segments.At(p)), thousands(int(n * (cost.Quorum(n) + 1))),
		})
	}
	return markdown(rows...)
}
