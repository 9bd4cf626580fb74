package why

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"vmnet/internal/cli/console"
)

// Paint colours a step's mark by its verdict.
type Paint func(v Verdict, text string) string

// maxWhere bounds the column of places; longer ones have a line of their own.
const maxWhere = 22

var marks = map[Verdict]string{Passes: "ok", Stops: "STOP", Unknown: "?"}

// Text writes the walk in lines of at most width columns. paint may be nil.
func (w *Walk) Text(width int, paint Paint) string {
	if paint == nil {
		paint = func(_ Verdict, text string) string { return text }
	}
	var b strings.Builder
	head := fmt.Sprintf("%s to %s, %s", w.From, w.To, w.Frame)
	b.WriteString(console.Clean(head) + "\n")
	writeSteps(&b, w.Steps, width, paint)
	if len(w.Live) > 0 {
		b.WriteString("live\n")
		writeSteps(&b, w.Live, width, paint)
	}
	b.WriteString(wrapped(console.Clean(w.summary()), "  ", width))
	return b.String()
}

func writeSteps(b *strings.Builder, steps []Step, width int, paint Paint) {
	column := 0
	for _, s := range steps {
		if n := utf8.RuneCountInString(console.Clean(s.Where)); n <= maxWhere {
			column = max(column, n)
		}
	}
	for _, s := range steps {
		where := console.Clean(s.Where)
		b.WriteString("  " + paint(s.Verdict, fmt.Sprintf("%-4s", marks[s.Verdict])) + "  " + where)
		text := s.What
		if s.Verdict != Passes {
			text = s.Why
		}
		lead := strings.Repeat(" ", 8+column+2)
		if n := utf8.RuneCountInString(where); n > column {
			b.WriteString("\n" + lead)
		} else {
			b.WriteString(strings.Repeat(" ", column-n+2))
		}
		b.WriteString(wrapped(console.Clean(text), lead, width))
		if s.Verdict == Unknown && s.Cure != "" {
			b.WriteString(lead + wrapped(console.Clean("see: "+s.Cure), lead, width))
		}
	}
}

// wrapped breaks text into lines that begin with lead, except for the first one, whose beginning
// as long as lead the caller has written.
func wrapped(text, lead string, width int) string {
	var b strings.Builder
	indent := utf8.RuneCountInString(lead)
	at := indent
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > width:
			b.WriteString("\n" + lead)
			at = indent
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	b.WriteByte('\n')
	return b.String()
}
