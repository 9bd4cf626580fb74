package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"

	"vmnet/internal/cli/console"
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
	return outputError(console.WriteJSON(a.out, v))
}

// table prints rows in columns; the first row is the header. paint may be nil; it is given the column's name.
func (a *app) table(rows [][]string, paint func(column, cell string) string) error {
	widths := columnWidths(rows)
	var b strings.Builder
	for n, row := range rows {
		for i, cell := range row {
			cell = shown(cell)
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+columnGap)
			if n > 0 && paint != nil {
				cell = paint(rows[0][i], cell)
			}
			if i == len(row)-1 {
				pad = ""
			}
			b.WriteString(cell + pad)
		}
		b.WriteByte('\n')
	}
	return a.print("%s", b.String())
}

// columnGap is what is between two columns.
const columnGap = 2

// shown is a cell as it is printed, whatever others chose of its text.
func shown(cell string) string {
	if cell == "" {
		return "-"
	}
	return console.Clean(cell)
}

func columnWidths(rows [][]string) []int {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(shown(cell)))
		}
	}
	return widths
}

// fitted drops columns, in the order of their names, until the rows fit that width or none is left to drop.
func fitted(rows [][]string, width int, droppable ...string) [][]string {
	for _, name := range droppable {
		if tableWidth(rows) <= width {
			break
		}
		rows = without(rows, name)
	}
	return rows
}

func tableWidth(rows [][]string) int {
	total := -columnGap
	for _, w := range columnWidths(rows) {
		total += w + columnGap
	}
	return total
}

// without drops columns by their names.
func without(rows [][]string, names ...string) [][]string {
	header := rows[0]
	var kept [][]string
	for _, row := range rows {
		var cells []string
		for i, cell := range row {
			if !slices.Contains(names, header[i]) {
				cells = append(cells, cell)
			}
		}
		kept = append(kept, cells)
	}
	return kept
}

// colour is how a text is shown on a terminal: SGR's colours (ECMA-48).
type colour string

const (
	green  colour = "32"
	yellow colour = "33"
	red    colour = "31"
)

// painted is a text in a colour, where stdout is a terminal that has them and nobody objects (no-color.org).
func (a *app) painted(c colour, text string) string {
	if !a.colours || c == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// hasColours reports whether a stream is a terminal that shows colours to somebody who wants them.
func hasColours(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
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
