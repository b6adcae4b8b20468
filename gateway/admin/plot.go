package admin

import (
	"fmt"
	"html/template"
	"strings"
	"time"
)

// A plot is one figure of the page: a curve or two over time, and its words. The words
// stand beside the drawing, so that they can be read at any width and aloud.
type plot struct {
	Title  string
	Top    string // the value of the upper edge; "": nothing has happened
	Span   string // how long ago the left edge is
	Curves []curve
	SVG    template.HTML
}

// A curve is one line of a plot.
type curve struct {
	Name  string
	Class string
	Now   string // the newest value
	Most  string
	y     []int64
}

const plotWidth, plotHeight = 600, 120

// draw makes the drawing. missing is how many values are not known, at the left.
func draw(title string, span time.Duration, missing int, format func(int64) string, curves ...curve) plot {
	p := plot{Title: title, Span: ago(span)}
	var top int64
	for _, c := range curves {
		for _, y := range c.y {
			top = max(top, y)
		}
	}
	if top > 0 {
		p.Top = format(top)
	}
	top = max(top, 1)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" preserveAspectRatio="none" role="img" aria-label="%s">`, plotWidth, plotHeight, template.HTMLEscapeString(title))
	fmt.Fprintf(&b, `<path class="grid" d="M0 1H%d M0 %dH%[1]d M0 %dH%[1]d"/>`, plotWidth, plotHeight/2, plotHeight-1)
	for i := range curves {
		c := &curves[i]
		var most int64
		x := func(j int) float64 { return float64(missing+j) * plotWidth / float64(max(1, missing+len(c.y)-1)) }
		var line strings.Builder
		for j, y := range c.y {
			most = max(most, y)
			fmt.Fprintf(&line, "%c%.1f %.1f", "ML"[min(j, 1)], x(j), plotHeight-1-float64(y)*(plotHeight-3)/float64(top))
		}
		if n := len(c.y); n > 0 {
			c.Now, c.Most = format(c.y[n-1]), format(most)
			if i == 0 {
				fmt.Fprintf(&b, `<path class="area %s" d="%sL%.1f %d L%.1f %[4]dZ"/>`, c.Class, line.String(), x(n-1), plotHeight, x(0))
			}
			fmt.Fprintf(&b, `<path class="line %s" d="%s"/>`, c.Class, line.String())
		} else {
			c.Now, c.Most = format(0), format(0)
		}
	}
	b.WriteString(`</svg>`)
	p.SVG = template.HTML(b.String()) // numbers, and the title escaped
	p.Curves = curves
	return p
}

// plots draws what an end did in the last minutes and in the last day.
func (h *history) plots(end int, in, out, streams string) []plot {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []plot
	for _, r := range []*ring{&h.minutes[end], &h.day[end]} {
		slots, missing := r.past()
		span := r.step * time.Duration(len(r.slots)-1)
		var up, down, open []int64
		for _, s := range slots {
			up = append(up, s.up/int64(r.step/time.Second))
			down = append(down, s.down/int64(r.step/time.Second))
			open = append(open, s.streams)
		}
		rate := func(n int64) string { return size(n) + "/s" }
		number := func(n int64) string { return fmt.Sprint(n) }
		all = append(all,
			draw("Throughput of the last "+ago(span), span, missing, rate, curve{Name: in, Class: "down", y: down}, curve{Name: out, Class: "up", y: up}),
			draw(streams+" of the last "+ago(span), span, missing, number, curve{Name: "open at once", Class: "streams", y: open}))
	}
	return all
}
