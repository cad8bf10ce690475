// Command write makes, from the stored results of runs, what archive/EVALUATION.md says
// in figures: the parts between its markers, and the drawing. It is run in
// archive/bench, by go generate. It is a program of its own, so that bonafide needs
// nothing to draw with.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/bonafide-archive/bonafide/archive/bench"
)

func main() {
	files, err := written(".")
	if err != nil {
		log.Fatal(err)
	}
	for path, b := range files {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// million is the run of archive/EVALUATION.md.
const million = "million.json"

// written are the files that the results in a directory come to, by path.
func written(dir string) (map[string][]byte, error) {
	p, err := readPoints(filepath.Join(dir, "testdata"))
	if err != nil {
		return nil, err
	}
	c, err := fitAll(p)
	if err != nil {
		return nil, err
	}
	others, err := otherRuns(filepath.Join(dir, "testdata"))
	if err != nil {
		return nil, err
	}
	res, files := p.runs[1_000_000], make(map[string][]byte)
	for name, parts := range map[string]map[string]string{"EVALUATION.md": parts(res, others, p.alone), "COST.md": c.parts()} {
		path := filepath.Join(dir, "..", name)
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		filled, err := fill(string(text), parts)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		files[path] = []byte(filled)
	}
	for name, as := range map[string]func(bench.Result) ([]byte, error){"availability.svg": svg, "availability.png": png} {
		if files[filepath.Join(dir, "..", name)], err = as(res); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// otherRuns are the results beside the run of a million names, in the order of their
// files.
func otherRuns(dir string) (all []bench.Result, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "other-*.json")) // sorted
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		res, err := stored(path)
		if err != nil {
			return nil, err
		}
		all = append(all, res)
	}
	return all, nil
}

// stored is a result as bench --json printed it.
func stored(path string) (res bench.Result, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return res, err
	}
	if err := json.Unmarshal(b, &res); err != nil {
		return res, fmt.Errorf("%s: %w", path, err)
	}
	return res, nil
}
