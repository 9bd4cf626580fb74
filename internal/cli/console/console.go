// Package console prepares text for terminals and shells.
package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
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

// WriteJSON writes v as indented JSON that is as safe for a terminal as the result of Clean, and
// has the same value for programs: it escapes unprintable characters in strings, such as C1
// controls and changes of the writing direction (U+202E). encoding/json escapes only C0 controls.
func WriteJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(escapeJSON(b.Bytes()))
	return err
}

// escapeJSON escapes unprintable runes in JSON text, which only strings can contain (RFC 8259).
func escapeJSON(text []byte) []byte {
	escaped := make([]byte, 0, len(text))
	for _, r := range string(text) {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			escaped = utf8.AppendRune(escaped, r)
		default:
			for _, unit := range utf16.AppendRune(nil, r) {
				escaped = fmt.Appendf(escaped, `\u%04x`, unit)
			}
		}
	}
	return escaped
}
