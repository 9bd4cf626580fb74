package netmap

import (
	"fmt"
	"html"
	"strings"

	"vmnet/internal/cli/console"
)

// Sizes of the drawing, in pixels.
const (
	margin    = 16
	rowHeight = 30
	boxHeight = 22
	placeX    = margin
	placeW    = 230
	endX      = 520
	endW      = 440
	svgWidth  = endX + endW + margin
	fontSize  = 12
	charWidth = 7 // of a character, on average
)

// SVG draws the map: places on the left, their ends on the right, a line for each connection.
// Foreign things are grey, broken connections red and dashed, with the reason.
func (m *Map) SVG() string {
	var b strings.Builder
	y := margin
	for _, p := range m.Places {
		y = p.svg(&b, y)
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" `+
		`font-family="sans-serif" font-size="%d" role="img" aria-label="map of guests' networks">`+
		"\n<style>"+svgStyle+"</style>\n<rect class=\"paper\" width=\"%[1]d\" height=\"%[2]d\"/>\n%[4]s</svg>\n",
		svgWidth, y+margin, fontSize, b.String())
}

const svgStyle = `.paper{fill:#fff}text{fill:#202124}rect{fill:#f8f9fa;stroke:#5f6368}.place{fill:#e8f0fe;stroke:#1967d2}` +
	`line{stroke:#5f6368;stroke-width:1.5}.foreign{stroke:#9aa0a6}text.foreign{fill:#80868b;stroke:none}` +
	`.broken{stroke:#c5221f}line.broken{stroke-dasharray:5 4}text.broken{fill:#c5221f;stroke:none}` +
	`text[text-anchor=end]{stroke:#fff;stroke-width:4;paint-order:stroke}` // legible upon a line

// svg draws a place at a height, and returns the height below it.
func (p *Place) svg(b *strings.Builder, y int) int {
	shown, hidden := p.Folded()
	rows := len(shown)
	if hidden > 0 {
		rows++
	}
	height := max(rows, 1) * rowHeight
	middle := y + height/2
	text := p.Title()
	if p.Text != "" {
		text += " (" + p.Text + ")"
	}
	at := y + rowHeight/2
	for i := range shown {
		e := &shown[i]
		class := classOf(e.Foreign, e.Broken)
		fmt.Fprintf(b, `<line class="%s" x1="%d" y1="%d" x2="%d" y2="%d"/>`+"\n", class, placeX+placeW, middle,
			endX, at)
		label := e.Interface
		if e.Settings != "" {
			label += " " + e.Settings
		}
		svgText(b, class, endX-6, at-3, label, endX-placeX-placeW-40, "end")
		svgBox(b, class, endX, at, endW, e.label())
		at += rowHeight
	}
	if hidden > 0 {
		fmt.Fprintf(b, `<line x1="%d" y1="%d" x2="%d" y2="%d"/>`+"\n", placeX+placeW, middle, endX, at)
		svgText(b, "", endX+8, at+4, hiddenText(hidden), endW, "start")
	}
	class := strings.TrimSpace("place " + classOf(p.Foreign, p.Broken))
	if p.Broken != "" {
		svgText(b, "broken", placeX, middle+boxHeight/2+13, p.Broken, placeW, "start")
	}
	svgBox(b, class, placeX, middle, placeW, text)
	return y + height + rowHeight/2
}

// label describes an end in its box.
func (e *End) label() string {
	text := e.Name
	if e.Kind != "guest" {
		text = e.Kind + " " + e.Name
	}
	for _, s := range append([]string{e.State}, e.Addresses...) {
		if s != "" {
			text += "  " + s
		}
	}
	if e.Broken != "" {
		text += ": " + e.Broken
	}
	return text
}

func classOf(foreign bool, broken string) string {
	switch {
	case broken != "":
		return "broken"
	case foreign:
		return "foreign"
	}
	return ""
}

func svgBox(b *strings.Builder, class string, x, middle, width int, text string) {
	fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%d" height="%d" rx="4"/>`+"\n", class, x, middle-boxHeight/2,
		width, boxHeight)
	svgText(b, strings.TrimPrefix(class, "place"), x+8, middle+4, text, width-16, "start")
}

// svgText writes a text, cut to a width, with the whole as its tooltip.
func svgText(b *strings.Builder, class string, x, y int, text string, width int, anchor string) {
	text = console.Clean(text)
	short, tip := cut(text, width/charWidth), ""
	if short != text {
		tip = "<title>" + html.EscapeString(text) + "</title>"
	}
	fmt.Fprintf(b, `<text class="%s" x="%d" y="%d" text-anchor="%s">%s%s</text>`+"\n", strings.TrimSpace(class), x, y,
		anchor, tip, html.EscapeString(short))
}
