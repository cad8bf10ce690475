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
	if len(files) != 3 {
		t.Errorf("%d files, want 3", len(files))
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

func TestFill(t *testing.T) {
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
