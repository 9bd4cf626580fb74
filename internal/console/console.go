// Package console is what programs do to text before people read it on a terminal.
package console

import (
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Clean keeps text that others chose, such as a guest's name, from steering the terminal.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// Say tells what a program has to say, after its name. Of several lines the first is the cause; the
// others are an example, or what went wrong while it was undone.
func Say(w io.Writer, program, text string) {
	lead := program + ": "
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		_, _ = fmt.Fprintf(w, "%s%s\n", lead, Clean(line)) // nobody is left to tell
		lead = "  "
	}
}
