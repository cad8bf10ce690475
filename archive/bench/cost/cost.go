// Package cost is a model of what an archive costs: proofs, audit, update phase,
// repair and the messages of agreement, by names, Adds and replicas. What can be
// derived from the formats is derived; the rest are sums of terms whose constants are
// fitted to measured points. archive/COST.md explains each term.
package cost

import (
	"fmt"
	"math"
	"slices"
)

// Point is a size at which something was measured, or is to be foretold.
type Point struct {
	Names    float64
	Adds     float64 // of an update phase
	Replicas float64
	Lost     float64 // bytes of a tree
}

// Sample is what was measured at a point.
type Sample struct {
	Point
	Value float64
}

// Term is a part of a cost that grows as Of does.
type Term struct {
	Name string // as a formula has it
	Of   func(Point) float64
}

// Model is a cost: what is derived, and terms with a constant each.
type Model struct {
	Derived func(Point) float64 // nil: nothing
	Terms   []Term
	Consts  []float64 // one for each term, from Fit
}

// Fit returns the model with the constants, none negative, that make the sum of the
// squares of its relative errors least. It wants as many samples as terms at least,
// each of a value above zero.
func (m Model) Fit(samples []Sample) (Model, error) {
	if len(samples) < len(m.Terms) {
		return m, fmt.Errorf("%d samples for %d terms", len(samples), len(m.Terms))
	}
	rows, left := make([][]float64, len(samples)), make([]float64, len(samples))
	for i, s := range samples {
		if !(s.Value > 0) {
			return m, fmt.Errorf("a sample of %v", s.Value)
		}
		left[i] = 1 - m.derived(s.Point)/s.Value
		for _, t := range m.Terms {
			rows[i] = append(rows[i], t.Of(s.Point)/s.Value)
		}
	}
	m.Consts = leastSquares(rows, left, len(m.Terms))
	return m, nil
}

// leastSquares finds c >= 0 for which rows·c is nearest to the wanted values, one
// constant after the other until none moves.
func leastSquares(rows [][]float64, left []float64, terms int) []float64 {
	c, left := make([]float64, terms), slices.Clone(left)
	for range 1_000_000 {
		moved := 0.0
		for j := range c {
			dot, square := 0.0, 0.0
			for i, row := range rows {
				dot, square = dot+row[j]*left[i], square+row[j]*row[j]
			}
			if square == 0 {
				continue
			}
			step := max(0, c[j]+dot/square) - c[j]
			for i, row := range rows {
				left[i] -= step * row[j]
			}
			c[j] += step
			moved = max(moved, math.Abs(step)*math.Sqrt(square))
		}
		if moved < 1e-12 {
			break
		}
	}
	return c
}

func (m Model) derived(p Point) float64 {
	if m.Derived == nil {
		return 0
	}
	return m.Derived(p)
}

// At is what the model says of a point.
func (m Model) At(p Point) float64 {
	v := m.derived(p)
	for i, t := range m.Terms {
		v += m.Consts[i] * t.Of(p)
	}
	return v
}

// PageSize is that of a tree's file.
const PageSize = 4096

// Touched is how many of the pages of a tree, with so many bytes a name, the Adds of
// a phase lie on, if they lie anywhere: P·(1 − e^(−adds/P)) of P pages.
func Touched(p Point, bytesPerName float64) float64 {
	pages := p.Names * bytesPerName / PageSize
	if pages == 0 {
		return 0
	}
	return -pages * math.Expm1(-p.Adds/pages)
}

// Faulty is f, Quorum is 2f+1, of 3f+1 replicas.
func Faulty(replicas float64) float64 { return math.Floor((replicas - 1) / 3) }
func Quorum(replicas float64) float64 { return 2*Faulty(replicas) + 1 }
