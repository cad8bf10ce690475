package main

import (
	"bytes"
	"image"
	"image/color"
	_ "image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bonafide-archive/bonafide/archive/bench/cost"
)

// TestWritten holds that each figure between the markers of EVALUATION.md, and the
// drawing, is what the stored results come to: go generate ./archive/bench.
func TestWritten(t *testing.T) {
	files, err := written("..")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range files {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		same := bytes.Equal(got, want)
		if filepath.Ext(path) == ".png" {
			same = alike(t, got, want)
		}
		if !same {
			t.Errorf("%s is not what go generate makes of the results", path)
		}
	}
	if len(files) != 4 {
		t.Errorf("%d files, want 4", len(files))
	}
}

// alike reports whether two images show the same, however they are compressed: of
// all pixels 1 in 1000 may differ, as rounding differs between processors.
func alike(t *testing.T, a, b []byte) bool {
	t.Helper()
	x, y := decoded(t, a), decoded(t, b)
	if x.Bounds() != y.Bounds() {
		return false
	}
	differ, r := 0, x.Bounds()
	for j := r.Min.Y; j < r.Max.Y; j++ {
		for i := r.Min.X; i < r.Max.X; i++ {
			if color.GrayModel.Convert(x.At(i, j)) != color.GrayModel.Convert(y.At(i, j)) {
				differ++
			}
		}
	}
	return differ*1000 <= r.Dx()*r.Dy()
}

func decoded(t *testing.T, b []byte) image.Image {
	t.Helper()
	m, _, err := image.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestParseBenchmark(t *testing.T) {
	const text = "# 2026-01-02\n$ go test x\ngoos: linux\nBenchmarkX/10%spread-2   \t 3\t 1.5 s\t 2e3 MB-lost\nPASS\nok x\n"
	b, err := parseBenchmark(text)
	if err != nil || b.date != "2026-01-02" || b.command != "go test x" {
		t.Errorf("got %+v, %v", b, err)
	}
	if v := b.values["X/10%spread"]; v["s"] != 1.5 || v["MB-lost"] != 2000 || len(v) != 2 {
		t.Errorf("got %v", b.values)
	}
	for _, bad := range []string{
		"", strings.Replace(text, "PASS", "FAIL", 1), strings.Replace(text, "#", "//", 1), strings.Replace(text, "$", "", 1),
		strings.Replace(text, "1.5 s", "1.5", 1), strings.Replace(text, "1.5", "x", 1),
	} {
		if b, err := parseBenchmark(bad); err == nil {
			t.Errorf("%q became %+v", bad, b)
		}
	}
}

// TestFormula writes constants that are easily misread.
func TestFormula(t *testing.T) {
	m := cost.Model{Terms: []cost.Term{always, perName, perAdd, perLost}, Consts: []float64{1.5, 2.5e-7, 0, 0.25}}
	if got, want := formula(m, "s"), "1.50 s + 250 ns · n + 250 ms · lost"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := formula(cost.Model{Terms: m.Terms[:1], Consts: []float64{0}}, "s"), "0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFill(t *testing.T) {
	indented, err := fill("<!-- x -->\n<!-- /x -->\n", map[string]string{"x": "    code\n\n"})
	if want := "<!-- x -->\n\n    code\n\n<!-- /x -->\n"; err != nil || indented != want {
		t.Errorf("got %q, %v, want %q", indented, err, want)
	}
	const marked = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
	got, err := fill(marked, map[string]string{"x": "new"})
	if want := "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n"; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	again, err := fill(got, map[string]string{"x": "new"})
	if err != nil || again != got {
		t.Errorf("a second time %q, %v", again, err)
	}
	for _, bad := range []string{
		"", "<!-- x -->\n", "<!-- /x -->\n", "<!-- /x -->\n<!-- x -->\n", marked + marked, strings.Replace(marked, "\n<!-- /", " <!-- /", 1) + "\n<!-- x -->\n",
	} {
		if text, err := fill(bad, map[string]string{"x": "new"}); err == nil {
			t.Errorf("%q became %q", bad, text)
		}
	}
}

// TestAvailable has the talk's phase in its periods, worked out by hand.
func TestAvailable(t *testing.T) {
	for hours, want := range map[int]float64{3: 0.965657, 6: 0.982829, 9: 0.988552} {
		if got := available(talkPhase, hours); got < want-1e-6 || got > want+1e-6 {
			t.Errorf("every %d hours: %f, want %f", hours, got, want)
		}
	}
}

// TestDrawn holds that the drawing says which is which.
func TestDrawn(t *testing.T) {
	res, err := stored(filepath.Join("..", "testdata", "million.json"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := svg(res)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"U phase duration (minutes)", "Availability", "every 3 hours", "every 6 hours", "every 9 hours",
		"without reboot", "86.6 s of a reboot in 2009", "computed from the talk", "370.9 s",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the drawing does not say %q", want)
		}
	}
	for _, ph := range phasesOf(res) {
		if !strings.Contains(string(b), thousands(ph.adds)+" Adds: ") {
			t.Errorf("the drawing does not show %d Adds", ph.adds)
		}
	}
}

// TestModels holds that no model is off by more than a factor of two anywhere that was
// measured, and none of a whole update phase by more than a half.
func TestModels(t *testing.T) {
	p, err := readPoints(filepath.Join("..", "testdata"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := fitAll(p)
	if err != nil {
		t.Fatal(err)
	}
	within := func(what string, at cost.Point, measured, model, factor float64) {
		t.Helper()
		if !(measured < factor*model && model < factor*measured) {
			t.Errorf("%s at %+v: measured %g, model %g", what, at, measured, model)
		}
	}
	for what, x := range map[string]struct {
		model   cost.Model
		samples []cost.Sample
	}{
		"file": {c.file, c.files()}, "audit": {c.audit, c.treeTimes("Audit")}, "rehash": {c.rehash, c.treeTimes("Rehash")}, "apply": {c.apply, c.treeTimes("Apply")},
		"sound": {c.tookNone, c.repairs("s", 1, "none")}, "all fetched": {c.fetchedAll, c.repairs("MB-fetched", 1e6, "all")}, "all": {c.tookAll, c.repairs("s", 1, "all")},
		"fetched": {c.fetchedPart, c.repairs("MB-fetched", 1e6, "1%spread", "10%spread")}, "part": {c.tookPart, c.repairs("s", 1, "1%spread", "10%spread")},
		"segments": {c.segments, c.sent("segments")}, "bytes": {c.octets, c.sent("B-sent")},
	} {
		if len(x.samples) < 3 {
			t.Errorf("%s: %d samples", what, len(x.samples))
		}
		for _, s := range x.samples {
			within(what, s.Point, s.Value, x.model.At(s.Point), 2)
		}
	}
	for _, s := range c.partTimes("") {
		within("phase", s.Point, s.Value, c.phase(s.Point), 1.5)
	}
	for n, b := range c.prove {
		within("proof", cost.Point{Names: float64(n)}, b.values["Prove"]["B/proof"], cost.ProofBytes(float64(n), treeName, treeValue), 1.1)
	}
	for n, res := range c.runs {
		within("archive's proof", cost.Point{Names: float64(n)}, res.Ops.Proof.Mean(), cost.ProofBytes(float64(n), benchName, benchEntry), 1.1)
	}
}
