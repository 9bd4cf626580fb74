// Package console is what programs do to text before people read it on a terminal.
package console

import (
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
