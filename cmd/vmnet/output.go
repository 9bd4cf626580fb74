package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"vmnet/internal/console"
)

// errOutput is stdout that takes no more: a full disk, a reader that has gone.
var errOutput = errors.New("write the result")

// print writes to stdout, which carries nothing but the result.
func (a *app) print(format string, args ...any) error {
	_, err := fmt.Fprintf(a.out, format, args...)
	return outputError(err)
}

// line prints one line, whatever others chose of its text.
func (a *app) line(format string, args ...any) error {
	return a.print("%s\n", console.Clean(fmt.Sprintf(format, args...)))
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return outputError(enc.Encode(v))
}

// table prints rows in columns; the first row is the header.
func (a *app) table(rows [][]string) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			if cell == "" {
				cell = "-"
			}
			fmt.Fprint(w, console.Clean(cell))
		}
		fmt.Fprintln(w)
	}
	return outputError(w.Flush())
}

// A field is one line of a block.
type field struct{ key, value string }

// block prints a title and aligned "key: value" lines under it.
func (a *app) block(title string, fields []field) error {
	width := 0
	for _, f := range fields {
		width = max(width, len(f.key)+1)
	}
	var b strings.Builder
	fmt.Fprintln(&b, console.Clean(title))
	for _, f := range fields {
		fmt.Fprintf(&b, "  %-*s %s\n", width, f.key+":", console.Clean(f.value))
	}
	return a.print("%s", b.String())
}

func outputError(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", errOutput, err)
	}
	return nil
}
