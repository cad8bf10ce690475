package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/bonafide-archive/bonafide/archive/bench"
	"github.com/bonafide-archive/bonafide/archive/bench/cost"
)

// Lengths of the names and values of the measured trees: those of boltstore's
// benchmarks, and those of bench.
const (
	treeName, treeValue   = 39, 48
	benchName, benchEntry = 38, 114
)

// Terms of models.
var (
	always   = cost.Term{Name: "1", Of: func(cost.Point) float64 { return 1 }}
	perName  = cost.Term{Name: "n", Of: func(p cost.Point) float64 { return p.Names }}
	perAfter = cost.Term{Name: "(n + a)", Of: func(p cost.Point) float64 { return p.Names + p.Adds }}
	perAdd   = cost.Term{Name: "a", Of: func(p cost.Point) float64 { return p.Adds }}
	perLost  = cost.Term{Name: "lost", Of: func(p cost.Point) float64 { return p.Lost }}
	perPair  = cost.Term{Name: "N(N−1)", Of: func(p cost.Point) float64 { return cost.Pairs(p.Replicas) }}
	perGroup = cost.Term{Name: "N²(N−1)", Of: func(p cost.Point) float64 { return p.Replicas * cost.Pairs(p.Replicas) }}
	perBlock = cost.Term{Name: "N(N−1) · block", Of: func(p cost.Point) float64 { return cost.Pairs(p.Replicas) * cost.Block(p.Replicas) }}
)

// perPage is a page of the tree that Adds lie on.
func perPage(bytesPerName float64) cost.Term {
	return cost.Term{Name: "pages", Of: func(p cost.Point) float64 { return cost.Touched(p, bytesPerName) }}
}

// costs are the parts of archive/COST.md, and the models behind them.
type costs struct {
	points
	file                  cost.Model // bytes of a tree's file, after Adds anywhere
	bytesPerName          float64
	rehash, audit, apply  cost.Model // seconds
	phases                map[string]cost.Model
	tookNone              cost.Model // a repair of a sound tree: seconds
	fetchedPart, tookPart cost.Model // of a tree of which a part is lost: bytes, seconds
	fetchedAll, tookAll   cost.Model
	segments, octets      cost.Model
}

// fitAll fits all models to the points up to the fitted size.
func fitAll(p points) (c costs, err error) {
	c = costs{points: p, phases: make(map[string]cost.Model)}
	do := func(m *cost.Model, samples []cost.Sample, derived func(cost.Point) float64, terms ...cost.Term) {
		samples = slices.DeleteFunc(samples, func(s cost.Sample) bool { return s.Names > fitted })
		var failed error
		*m, failed = cost.Model{Derived: derived, Terms: terms}.Fit(samples)
		if err == nil {
			err = failed
		}
	}
	do(&c.file, c.files(), nil, always, perName)
	if err != nil {
		return c, err
	}
	c.bytesPerName = c.file.Consts[1]
	do(&c.rehash, c.treeTimes("Rehash"), nil, always, perName)
	do(&c.audit, c.treeTimes("Audit"), nil, always, perName)
	do(&c.apply, c.treeTimes("Apply"), nil, always, perName)
	do(&c.fetchedPart, c.repairs("MB-fetched", 1e6, "1%spread", "10%spread"), nil, perLost)
	do(&c.tookNone, c.repairs("s", 1, "none"), nil, always, perName)
	do(&c.tookPart, c.repairs("s", 1, "1%spread", "10%spread"), nil, always, perName, perLost)
	do(&c.fetchedAll, c.repairs("MB-fetched", 1e6, "all"), nil, always, perName)
	do(&c.tookAll, c.repairs("s", 1, "all"), nil, always, perName)
	do(&c.segments, c.sent("segments"), nil, perPair, perGroup)
	do(&c.octets, c.sent("B-sent"), func(p cost.Point) float64 { return cost.Pairs(p.Replicas) * cost.Board(p.Replicas) }, perPair, perGroup, perBlock)
	pages := perPage(c.bytesPerName)
	for name, terms := range map[string][]cost.Term{
		bench.PartOpening:   {always, perName},
		bench.PartMeeting:   {always},
		bench.PartProposal:  {always, perAdd},
		bench.PartAgreement: {always},
		bench.PartUpdate:    {always, perAfter, perAdd, pages},
		bench.PartStore:     {always, perAfter, perAdd, pages},
		bench.PartProcesses: {always, perAfter},
	} {
		var m cost.Model
		do(&m, c.partTimes(name), nil, terms...)
		c.phases[name] = m
	}
	return c, err
}

// files are the files of trees that Adds have filled.
func (c costs) files() (all []cost.Sample) {
	for _, n := range sizes {
		if res, ok := c.runs[n]; ok {
			all = append(all, cost.Sample{Point: cost.Point{Names: float64(n)}, Value: float64(res.Fill.Tree)})
		}
	}
	return all
}

// treeTimes are the seconds of one of boltstore's benchmarks.
func (c costs) treeTimes(name string) (all []cost.Sample) {
	for _, n := range sizes {
		if b, ok := c.tree[n]; ok {
			all = append(all, cost.Sample{Point: cost.Point{Names: float64(n)}, Value: b.values[name]["tree-ms"] / 1e3})
		}
	}
	return all
}

// repairs are what repairs of trees with such losses took or fetched.
func (c costs) repairs(unit string, scale float64, losses ...string) (all []cost.Sample) {
	for _, n := range sizes {
		for _, loss := range losses {
			if v, ok := c.repair[n].values["RepairTree/"+loss]; ok {
				all = append(all, cost.Sample{Point: cost.Point{Names: float64(n), Lost: v["MB-lost"] * 1e6}, Value: v[unit] * scale})
			}
		}
	}
	return all
}

// sent is what replicas sent in an update phase, by their number.
func (c costs) sent(unit string) (all []cost.Sample) {
	for n := 1.0; n <= 16; n++ {
		if v, ok := c.messages.values[fmt.Sprintf("Messages/N=%g", n)]; ok {
			all = append(all, cost.Sample{Point: cost.Point{Replicas: n}, Value: v[unit]})
		}
	}
	return all
}

// partTimes are the seconds of a part of the update phase, or of all of it.
func (c costs) partTimes(name string) (all []cost.Sample) {
	for _, n := range sizes {
		for _, row := range c.runs[n].Phases {
			at := pointOf(row)
			if name == "" {
				all = append(all, cost.Sample{Point: at, Value: row.Total.Mean()})
			} else {
				all = append(all, cost.Sample{Point: at, Value: took(row, name).Mean()})
			}
		}
	}
	return all
}

// pointOf is where a phase was measured: with the names before it in the mean of its
// runs, each of which found those of the last.
func pointOf(row bench.Row) cost.Point {
	return cost.Point{Names: float64(row.Before) + float64(row.Adds)*float64(row.Total.N()-1)/2, Adds: float64(row.Adds), Replicas: 4}
}

// phase is what the models say of a whole update phase.
func (c costs) phase(p cost.Point) (seconds float64) {
	for _, m := range c.phases {
		seconds += m.At(p)
	}
	return seconds
}

// phaseParts are the parts that have a model, in their order.
var phaseParts = []string{bench.PartOpening, bench.PartMeeting, bench.PartProposal, bench.PartAgreement, bench.PartUpdate, bench.PartStore, bench.PartProcesses}

func ratio(measured, model float64) string { return fmt.Sprintf("%.2f", measured/model) }

// formula writes a fitted model out: constants and terms.
func formula(m cost.Model, unit string) string {
	var all []string
	for i, t := range m.Terms {
		k := scaled(m.Consts[i], unit)
		switch {
		case m.Consts[i] == 0:
		case t.Name == "1":
			all = append(all, k)
		case strings.HasSuffix(t.Name, "block"): // bytes themselves
			all = append(all, round(m.Consts[i])+" · "+t.Name)
		default:
			all = append(all, k+" · "+t.Name)
		}
	}
	if len(all) == 0 {
		return "0"
	}
	return strings.Join(all, " + ")
}

// scaled is a constant with its unit: seconds in ms, µs or ns where they are short.
func scaled(v float64, unit string) string {
	if unit != "s" {
		return strings.TrimSpace(round(v) + " " + unit)
	}
	for _, x := range []struct {
		unit string
		in   float64
	}{{"s", 1}, {"ms", 1e3}, {"µs", 1e6}} {
		if v*x.in >= 1 {
			return round(v*x.in) + " " + x.unit
		}
	}
	return round(v*1e9) + " ns"
}

// round writes three digits.
func round(v float64) string {
	if v >= 1000 {
		return thousands(int(math.Round(v)))
	}
	return bench.Figure(v)
}
