// Package console is what programs do to text before people read it on a terminal.
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

// WriteJSON writes v as indented JSON that is as fit for a terminal as text that Clean has cleaned, and the same to
// programs: in strings all that is not printed, such as C1 controls and what changes the direction of writing
// (U+202E), is escaped. encoding/json does so for C0 controls alone.
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

// escapeJSON escapes runes in JSON text, which has none of them but in strings (RFC 8259).
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
