package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// A plot is a bar chart, in groups of bars.
type plot struct {
	file, title, unit string
	series            []string // the names of a group's bars
	groups            []group
}

type group struct {
	label  string
	ours   bool
	values []float64 // of each series; NaN for none
}

// plots returns the plots of the results.
func (r *results) plots() []plot {
	bars := func(file, title, unit string, refs ...ref) plot {
		p := plot{file: file, title: title, unit: unit}
		for _, f := range refs {
			p.series = append(p.series, f.peer)
		}
		for _, who := range peers() {
			g := group{label: who.name, ours: who.ours}
			for _, f := range refs {
				f.peer = who.name
				g.values = append(g.values, r.median(f))
			}
			p.groups = append(p.groups, g)
		}
		return p
	}
	// A ref's peer is the series' name here.
	return []plot{
		bars("switch-tcp.svg", "TCP", "Gb/s, more is better", ref{peer: "1 stream", work: tcp1, figure: gbps},
			ref{peer: "4 streams", work: tcp4, figure: gbps}),
		bars("switch-cpu.svg", "What a gigabyte costs", "CPU seconds, less is better",
			ref{peer: "1 stream", work: tcp1, figure: secPerGB}, ref{peer: "4 streams", work: tcp4, figure: secPerGB}),
		bars("switch-packets.svg", "Packets of 64 bytes, sender at full speed",
			"thousands per second that arrive, more is better", ref{peer: "arrived", work: small, figure: kpps}),
		bars("switch-trip.svg", "Round trip of 64 bytes by TCP on one CPU", "µs, less is better",
			ref{peer: "median", work: trip, figure: p50}, ref{peer: "99 of 100 within", work: trip, figure: p99}),
		r.portsPlot(),
	}
}

func (r *results) portsPlot() plot {
	p := plot{file: "switch-ports.svg", title: "TCP, 1 stream, by the switch's ports", unit: "Gb/s, more is better"}
	for _, n := range portCounts {
		p.series = append(p.series, fmt.Sprintf("%d ports", n))
	}
	for _, name := range manyPorts {
		g := group{label: name, ours: peerNamed(name).ours}
		for _, n := range portCounts {
			g.values = append(g.values, r.median(ref{peer: name, work: tcp1, figure: gbps, ports: n}))
		}
		p.groups = append(p.groups, g)
	}
	return p
}

// Sizes in pixels.
const (
	width, left, right = 760, 250, 70
	barHeight, gap     = 14, 10
	top, bottom        = 58, 12
)

// Colours of the series: of others, and of ours.
var colours = [2][]string{{"#9aa5b1", "#6b7785", "#454f5b"}, {"#5aa9e6", "#2f7fc1", "#16588f"}}

// svg draws the plot. Groups and values without a figure are left out.
func (p plot) svg() string {
	var body strings.Builder
	y, longest := top, p.longest()
	for _, g := range p.groups {
		begin := y
		for i, v := range g.values {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				continue
			}
			long := v / longest * (width - left - right)
			fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n",
				left, y, long, barHeight-2, colour(g.ours, i))
			fmt.Fprintf(&body, `<text x="%.1f" y="%d">%s</text>`+"\n", left+long+5, y+barHeight-4, number(v))
			y += barHeight
		}
		if y > begin {
			fmt.Fprintf(&body, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n",
				left-8, (begin+y)/2+3, html.EscapeString(g.label))
			y += gap
		}
	}
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d"`,
		width, y+bottom)
	s.WriteString(` font-family="sans-serif" font-size="11">` + "\n")
	fmt.Fprintf(&s, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	fmt.Fprintf(&s, `<text x="%d" y="20" font-size="14" font-weight="bold">%s</text>`+"\n",
		12, html.EscapeString(p.title))
	fmt.Fprintf(&s, `<text x="%d" y="38">%s</text>`+"\n", 12, html.EscapeString(p.unit))
	if len(p.series) > 1 {
		p.legend(&s)
	}
	s.WriteString(body.String() + "</svg>\n")
	return s.String()
}

func (p plot) legend(s *strings.Builder) {
	for i, name := range p.series {
		x := left + i*140
		for j := range colours {
			fmt.Fprintf(s, `<rect x="%d" y="29" width="10" height="10" fill="%s"/>`+"\n", x+j*12, colour(j == 1, i))
		}
		fmt.Fprintf(s, `<text x="%d" y="38">%s</text>`+"\n", x+28, html.EscapeString(name))
	}
}

func colour(ours bool, i int) string {
	c := colours[0]
	if ours {
		c = colours[1]
	}
	return c[i%len(c)]
}

func (p plot) longest() float64 {
	longest := math.SmallestNonzeroFloat64
	for _, g := range p.groups {
		for _, v := range g.values {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				longest = max(longest, v)
			}
		}
	}
	return longest
}
