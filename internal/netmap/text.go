package netmap

import (
	"strings"
	"unicode/utf8"

	"vmnet/internal/cli/console"
)

// Paint colours a part of a line: how is "foreign", "broken" or empty.
type Paint func(how, text string) string

// Text draws the map as a tree, in lines of at most width columns. all shows folded ends too. paint
// may be nil.
func (m *Map) Text(width int, all bool, paint Paint) string {
	if paint == nil {
		paint = func(_, text string) string { return text }
	}
	var b strings.Builder
	for i, p := range m.Places {
		if i > 0 {
			b.WriteByte('\n')
		}
		head := p.Title()
		if p.Text != "" {
			head += " (" + p.Text + ")"
		}
		b.WriteString(line(strings.TrimLeft(mark(p.Foreign, p.Broken), " "), head, p.Broken, p.Foreign, width, paint))
		shown, hidden := p.Folded()
		if all {
			shown, hidden = p.Ends, 0
		}
		names := 0
		for _, e := range shown {
			names = max(names, min(utf8.RuneCountInString(console.Clean(e.Name)), 24))
		}
		for j, e := range shown {
			lead := "├─ "
			if j == len(shown)-1 && hidden == 0 {
				lead = "└─ "
			}
			b.WriteString(line(lead+mark(e.Foreign, e.Broken), e.row(names), e.Broken, e.Foreign, width, paint))
		}
		if hidden > 0 {
			b.WriteString(line("└─    ", hiddenText(hidden), "", false, width, paint))
		}
	}
	return b.String()
}

// row describes an end in one line.
func (e *End) row(names int) string {
	name := console.Clean(e.Name)
	name += strings.Repeat(" ", max(0, names-utf8.RuneCountInString(name)))
	parts := []string{e.Kind + strings.Repeat(" ", max(0, len("namespace")-len(e.Kind))), name}
	for _, s := range []string{e.Interface, e.Type, e.State, strings.Join(e.Addresses, ","), e.Settings} {
		if s != "" && s != e.Name {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, " ")
}

// mark is what stands before something foreign, without a connection, or both.
func mark(foreign bool, broken string) string {
	switch {
	case foreign && broken != "":
		return "✗~ "
	case broken != "":
		return "✗  "
	case foreign:
		return "~  "
	}
	return "   "
}

// line cuts what does not fit. A fault is always there: the rest is cut for it.
func line(lead, text, broken string, foreign bool, width int, paint Paint) string {
	how, fault := "", ""
	if foreign {
		how = "foreign"
	}
	if broken != "" {
		how, fault = "broken", ": "+broken
	}
	room := width - utf8.RuneCountInString(lead)
	fault = cut(console.Clean(fault), room*2/3)
	text = cut(console.Clean(text), room-utf8.RuneCountInString(fault))
	return lead + paint(how, text+fault) + "\n"
}

func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:max(0, width-1)]) + "…"
}
