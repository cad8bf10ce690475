package bench

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
)

// Stat is a series of measurements.
type Stat struct{ all []float64 }

// Of returns the series of what is given.
func Of(all ...float64) Stat { return Stat{all} }

func (s *Stat) add(v float64) { s.all = append(s.all, v) }

// N is how many there are.
func (s Stat) N() int { return len(s.all) }

// Values returns the measurements in the order in which they were made.
func (s Stat) Values() []float64 { return slices.Clone(s.all) }

// Mean returns the arithmetic mean, 0 of none.
func (s Stat) Mean() float64 {
	sum := 0.0
	for _, v := range s.all {
		sum += v
	}
	return sum / float64(max(1, len(s.all)))
}

// SD returns the sample's standard deviation, 0 of fewer than two.
func (s Stat) SD() float64 {
	sum, m := 0.0, s.Mean()
	for _, v := range s.all {
		sum += (v - m) * (v - m)
	}
	return math.Sqrt(sum / float64(max(1, len(s.all)-1)))
}

// Quantile returns the least value that a share q of the series does not exceed.
func (s Stat) Quantile(q float64) float64 {
	if len(s.all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s.all))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// String returns "mean (standard deviation)", as the talk's tables have it.
func (s Stat) String() string { return fmt.Sprintf("%s (%s)", Figure(s.Mean()), Figure(s.SD())) }

// Figure writes a number with about three digits.
func Figure(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1 || a == 0:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// statJSON is what a series comes to.
type statJSON struct {
	Mean float64 `json:"mean"`
	SD   float64 `json:"sd"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	// Values are there where they are few.
	Values []float64 `json:"values,omitempty"`
	N      int       `json:"n"`
}

const fewValues = 2000

// MarshalJSON implements json.Marshaler.
func (s Stat) MarshalJSON() ([]byte, error) {
	j := statJSON{Mean: s.Mean(), SD: s.SD(), P50: s.Quantile(0.5), P99: s.Quantile(0.99), N: s.N()}
	if s.N() <= fewValues {
		j.Values = s.all
	}
	return json.Marshal(j)
}

// UnmarshalJSON takes what MarshalJSON returns, provided that it has the values.
func (s *Stat) UnmarshalJSON(b []byte) error {
	var j statJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	if len(j.Values) != j.N {
		return fmt.Errorf("a series of %d values has %d", j.N, len(j.Values))
	}
	s.all = j.Values
	return nil
}
