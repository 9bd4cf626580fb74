// Package console prepares text for terminals and shells.
package console

import (
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Clean replaces unprintable characters in s, so that text that others chose, such as a guest's
// name, cannot control the terminal.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// Say prints a program's message after the program's name. The first line of text is the cause;
// further lines are an example, or failures of the undo.
func Say(w io.Writer, program, text string) {
	lead := program + ": "
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		_, _ = fmt.Fprintf(w, "%s%s\n", lead, Clean(line)) // a failed write cannot be reported
		lead = "  "
	}
}
