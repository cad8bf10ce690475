package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/bonafide-archive/bonafide/archive/bench"
)

// benchmark is what a go benchmark printed, as archive/bench/points keeps it: a line
// with the date, one with the command, then go's own.
type benchmark struct {
	date, command string
	values        map[string]map[string]float64 // by benchmark, without prefix and processors, and unit
}

func parseBenchmark(text string) (b benchmark, err error) {
	b.values = make(map[string]map[string]float64)
	passed := false
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "#":
			b.date = strings.Join(f[1:], " ")
		case f[0] == "$":
			b.command = strings.Join(f[1:], " ")
		case f[0] == "PASS":
			passed = true
		case strings.HasPrefix(f[0], "Benchmark"):
			name := strings.TrimPrefix(f[0][:max(0, strings.LastIndex(f[0], "-"))], "Benchmark")
			if b.values[name], err = parseValues(f[1:]); err != nil {
				return b, fmt.Errorf("%s: %w", f[0], err)
			}
		}
	}
	if !passed || b.date == "" || b.command == "" {
		return b, errors.New("no date, no command, or it did not pass")
	}
	return b, nil
}

// parseValues are the values of a benchmark's line, after how often it ran.
func parseValues(f []string) (map[string]float64, error) {
	if len(f)%2 == 0 {
		return nil, fmt.Errorf("%d fields", len(f))
	}
	values := make(map[string]float64)
	for i := 1; i < len(f); i += 2 {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return nil, err
		}
		values[f[i+1]] = v
	}
	return values, nil
}

// sizes are the numbers of names that are measured, where a machine can.
var sizes = []int{10_000, 100_000, 1_000_000, 10_000_000}

// fitted bounds the names of the points that models are fitted to. What is larger only
// checks them.
const fitted = 2_000_000

// points are all that was measured. Of a size that was not, there is nothing.
type points struct {
	prove, tree, repair map[int]benchmark
	messages, alone     benchmark // alone: update phases by themselves
	runs                map[int]bench.Result
}

func readPoints(dir string) (p points, err error) {
	p.runs = make(map[int]bench.Result)
	for _, x := range []struct {
		kind string
		to   *map[int]benchmark
	}{{"prove", &p.prove}, {"tree", &p.tree}, {"repair", &p.repair}} {
		if *x.to, err = readSizes(dir, x.kind); err != nil {
			return p, err
		}
	}
	if p.messages, err = readBenchmark(filepath.Join(dir, "messages.txt")); err != nil {
		return p, err
	}
	if p.alone, err = readBenchmark(filepath.Join(dir, "phases.txt")); err != nil {
		return p, err
	}
	for _, n := range sizes {
		name := fmt.Sprintf("bench-%d.json", n)
		if n == 1_000_000 {
			name = million
		}
		res, err := stored(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) && name != million {
			continue
		}
		if err != nil {
			return p, err
		}
		p.runs[n] = res
	}
	return p, nil
}

func readSizes(dir, kind string) (map[int]benchmark, error) {
	all := make(map[int]benchmark)
	for _, n := range sizes {
		b, err := readBenchmark(filepath.Join(dir, fmt.Sprintf("%s-%d.txt", kind, n)))
		if errors.Is(err, fs.ErrNotExist) && n > fitted {
			continue
		}
		if err != nil {
			return nil, err
		}
		all[n] = b
	}
	return all, nil
}

func readBenchmark(path string) (benchmark, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return benchmark{}, err
	}
	b, err := parseBenchmark(string(text))
	if err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}
