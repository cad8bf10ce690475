package main

import (
	"bytes"
	"cmp"
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/bonafide-archive/bonafide/archive/bench"
)

// available is the share of time in which Gets and Adds are served: a period less its
// update phase. seconds is the length of the phase, hours that of the period.
func available(seconds float64, hours int) float64 { return 1 - seconds/(float64(hours)*3600) }

// The figure's size, and the part of its width that the left panel takes.
const (
	width, height = 11.2 * vg.Inch, 5 * vg.Inch
	leftShare     = 0.58
	dpi           = 110
)

// Colours of the periods, which those who see no red or green tell apart too.
var periodColours = map[int]color.Color{
	9: color.RGBA{R: 0x00, G: 0x72, B: 0xb2, A: 0xff},
	6: color.RGBA{R: 0x00, G: 0x9e, B: 0x73, A: 0xff},
	3: color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff},
}

var grey = color.Gray{Y: 0x55}

// glyphs tell the numbers of Adds apart in the right panel.
var glyphs = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.PyramidGlyph{}, draw.BoxGlyph{}, diamond{}, draw.RingGlyph{}, draw.TriangleGlyph{}}

// diamond is a filled square that stands on a corner.
type diamond struct{}

// DrawGlyph implements draw.GlyphDrawer.
func (diamond) DrawGlyph(c *draw.Canvas, style draw.GlyphStyle, at vg.Point) {
	r := 1.3 * style.Radius
	c.FillPolygon(style.Color, []vg.Point{{X: at.X - r, Y: at.Y}, {X: at.X, Y: at.Y + r}, {X: at.X + r, Y: at.Y}, {X: at.X, Y: at.Y - r}})
}

// phase is an update phase that was measured.
type phase struct {
	adds    int
	seconds float64
}

func phasesOf(res bench.Result) (all []phase) {
	for _, row := range res.Phases {
		all = append(all, phase{row.Adds, row.Total.Mean()})
	}
	slices.SortFunc(all, func(a, b phase) int { return cmp.Compare(a.adds, b.adds) })
	return all
}

// svg and png draw the figure.
func svg(res bench.Result) ([]byte, error) {
	return drawn(res, vgsvg.New(width, height))
}

func png(res bench.Result) ([]byte, error) {
	return drawn(res, vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dpi))})
}

type canvas interface {
	vg.CanvasSizer
	io.WriterTo
}

func drawn(res bench.Result, c canvas) ([]byte, error) {
	left, err := wholePanel(phasesOf(res))
	if err != nil {
		return nil, err
	}
	right, err := nearPanel(phasesOf(res))
	if err != nil {
		return nil, err
	}
	all := draw.New(c)
	left.Draw(draw.Crop(all, 6, -(1-leftShare)*width, 6, -6))
	right.Draw(draw.Crop(all, leftShare*width+14, -18, 6, -6))
	var b bytes.Buffer
	_, err = c.WriteTo(&b)
	return b.Bytes(), err
}

// panel is an empty panel with the axes of the talk.
func panel(title string, least float64) *plot.Plot {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	plotter.DefaultFont = plot.DefaultFont
	p := plot.New()
	p.Title.Text = title
	p.Title.TextStyle.Font.Size = 13
	p.Title.Padding = 8
	p.X.Label.Text, p.Y.Label.Text = "U phase duration (minutes)", "Availability"
	p.X.Min, p.Y.Min, p.Y.Max = 0, least, 1
	p.Legend.Left = true
	p.Legend.XOffs, p.Legend.YOffs = 8, 8
	p.Legend.Padding = 3
	p.Legend.ThumbnailWidth = 16
	p.Legend.TextStyle.Font.Size = 11
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = nil, color.Gray{Y: 0xe2} // nil: none
	p.Add(grid)
	return p
}

// wholePanel has the axes from nothing to beyond the prototype's phase.
func wholePanel(phases []phase) (*plot.Plot, error) {
	const end, room = 8, 9.6 // of the lines, and for their labels
	p := panel("Availability by U phase duration and period", 0.95)
	p.X.Max = room
	p.X.Tick.Marker, p.Y.Tick.Marker = ticks(0, end), ticks(p.Y.Min, 1)
	if err := periods(p, end); err != nil {
		return nil, err
	}
	if err := markTalk(p); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		what  string
		shape draw.GlyphDrawer
		at    []phase
	}{
		{fmt.Sprintf("here, %s Adds, without reboot", span(phases)), draw.CircleGlyph{}, phases},
		{fmt.Sprintf("the same and the %.1f s of a reboot in 2009", talkBoot), draw.RingGlyph{}, rebooted(phases)},
		{fmt.Sprintf("prototype of 2009, computed from the talk's %.1f s", talkPhase), draw.SquareGlyph{}, []phase{{0, talkPhase}}},
	} {
		if err := markPhases(p, s.what, s.shape, s.at); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// nearPanel enlarges what is near no time at all: phases without a reboot.
func nearPanel(phases []phase) (*plot.Plot, error) {
	longest := 0.0
	for _, ph := range phases {
		longest = max(longest, ph.seconds)
	}
	end := 1.2 * longest / 60
	least := available(60*end, slices.Min(talkPeriods))
	p := panel("Enlarged: measured here, without reboot", 1-1.3*(1-least))
	p.X.Max = 1.3 * end
	p.X.Tick.Marker, p.Y.Tick.Marker = ticks(0, end), ticks(p.Y.Min, 1)
	if err := periods(p, end); err != nil {
		return nil, err
	}
	for i, ph := range phases {
		what := fmt.Sprintf("%s Adds: %.1f s", thousands(ph.adds), ph.seconds)
		if err := markPhases(p, what, glyphs[i%len(glyphs)], []phase{ph}); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// markTalk draws where the prototype's phase is, as far as the line of the shortest
// period.
func markTalk(p *plot.Plot) error {
	const at = talkPhase / 60
	line, err := plotter.NewLine(plotter.XYs{{X: at, Y: available(talkPhase, slices.Min(talkPeriods))}, {X: at, Y: 1}})
	if err != nil {
		return err
	}
	line.Color, line.Dashes = grey, []vg.Length{4, 3}
	label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: at, Y: 1}}, Labels: []string{fmt.Sprintf("2009: %.1f s", talkPhase)}})
	if err != nil {
		return err
	}
	label.TextStyle[0].Color, label.TextStyle[0].Font.Size = grey, 11
	label.Offset = vg.Point{X: 5, Y: -16}
	p.Add(line, label)
	return nil
}

// ticks are five to ten round numbers from lo to hi.
func ticks(lo, hi float64) plot.ConstantTicks {
	step := math.Pow(10, math.Floor(math.Log10(hi-lo)))
	for _, part := range []float64{1, 2, 5, 10} {
		if (hi-lo)/(step/part) >= 5 {
			step /= part
			break
		}
	}
	digits := max(0, int(-math.Floor(math.Log10(step)+1e-9)))
	var all plot.ConstantTicks
	for i := int(math.Ceil(lo/step - 1e-9)); float64(i)*step <= hi+step*1e-9; i++ {
		at := float64(i) * step
		all = append(all, plot.Tick{Value: at, Label: fmt.Sprintf("%.*f", digits, at)})
	}
	return all
}

func span(phases []phase) string {
	if len(phases) == 0 {
		return "0"
	}
	return thousands(phases[0].adds) + " to " + thousands(phases[len(phases)-1].adds)
}

// rebooted are the phases with the reboot of 2009 added.
func rebooted(phases []phase) (all []phase) {
	for _, ph := range phases {
		all = append(all, phase{ph.adds, ph.seconds + talkBoot})
	}
	return all
}

// periods draws the line of each period, until so many minutes, with its label.
func periods(p *plot.Plot, end float64) error {
	var at plotter.XYLabels
	for _, hours := range talkPeriods {
		last := plotter.XY{X: end, Y: available(60*end, hours)}
		line, err := plotter.NewLine(plotter.XYs{{X: 0, Y: 1}, last})
		if err != nil {
			return err
		}
		line.Color, line.Width = periodColours[hours], 1.5
		p.Add(line)
		at.XYs, at.Labels = append(at.XYs, last), append(at.Labels, fmt.Sprintf("every %d hours", hours))
	}
	labels, err := plotter.NewLabels(at)
	if err != nil {
		return err
	}
	for i, hours := range talkPeriods {
		labels.TextStyle[i].Color, labels.TextStyle[i].Font.Size = periodColours[hours], 11
		labels.TextStyle[i].YAlign = draw.YCenter
	}
	labels.Offset = vg.Point{X: 5}
	p.Add(labels)
	return nil
}

// markPhases marks phases on the line of each period, and names them in the legend.
func markPhases(p *plot.Plot, what string, shape draw.GlyphDrawer, phases []phase) error {
	var entry plot.Thumbnailer
	for _, hours := range talkPeriods {
		var at plotter.XYs
		for _, ph := range phases {
			at = append(at, plotter.XY{X: ph.seconds / 60, Y: available(ph.seconds, hours)})
		}
		s, err := plotter.NewScatter(at)
		if err != nil {
			return err
		}
		s.GlyphStyle = draw.GlyphStyle{Color: periodColours[hours], Radius: 3.6, Shape: shape}
		p.Add(s)
		black := *s
		black.Color = color.Black
		entry = &black
	}
	p.Legend.Add(what, entry)
	return nil
}
