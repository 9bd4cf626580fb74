package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"vmnet/internal/cli/console"
	"vmnet/internal/cli/output"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// errOutput is the error for a failed write to stdout, such as a full disk or a closed pipe.
var errOutput = errors.New("write the result")

// print writes to stdout, which carries nothing but the result.
func (a *app) print(format string, args ...any) error {
	_, err := fmt.Fprintf(a.out, format, args...)
	return outputError(err)
}

// line prints one line, and cleans it of control characters, since others chose some of it.
func (a *app) line(format string, args ...any) error {
	return a.print("%s\n", console.Clean(fmt.Sprintf(format, args...)))
}

func (a *app) printJSON(v any) error {
	return outputError(output.WriteJSON(a.out, v))
}

// table prints rows in columns; the first row is the header. paint colours a cell by the name of
// its column; it may be nil.
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

// columnGap is the number of spaces between two columns.
const columnGap = 2

// shown returns a cell as it is printed: cleaned of control characters, and - if it is empty.
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

// fitted drops the droppable columns, in order, until the rows fit the width or all are dropped.
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

// without returns the rows without the named columns.
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

// colour is an SGR colour of a terminal (ECMA-48).
type colour string

const (
	green  colour = "32"
	yellow colour = "33"
	red    colour = "31"
	grey   colour = "90"
)

// painted returns text in a colour if stdout shows colours (see hasColours), and text otherwise.
func (a *app) painted(c colour, text string) string {
	if !a.colours || c == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// hasColours reports whether a stream is a terminal with colours, and NO_COLOR (no-color.org) is
// not set.
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

// Messages on stderr: lines of text or, with -o json, a JSON object a line.

// message is such an object. It has one of the first three keys; the others belong to Error.
type message struct {
	Error    string   `json:"error,omitempty"`
	Note     string   `json:"note,omitempty"`     // what the user should know although it is not an error
	Progress string   `json:"progress,omitempty"` // what is being waited for
	Also     []string `json:"also,omitempty"`     // what else failed while the steps were undone
	Status   int      `json:"exit_status,omitempty"`
	See      string   `json:"see,omitempty"` // the command that explains the usage
}

// asksJSON reports whether a command line asks for JSON. The rest of the command line may be wrong,
// because the error about that is JSON as well.
func asksJSON(args []string) bool {
	for i, arg := range args {
		switch {
		case arg == "--":
			return false
		case slices.Contains([]string{"-ojson", "-o=json", "--output=json"}, arg),
			slices.Contains([]string{"-o", "--output"}, arg) && i+1 < len(args) && args[i+1] == "json":
			return true
		}
	}
	return false
}

// fail prints an error and returns the exit status. For wrong usage, see is the command that
// explains the usage.
func (a *app) fail(err error, status int, see string) int {
	if a.json {
		lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
		a.object(priorityError, message{Error: lines[0], Also: lines[1:], Status: status, See: see})
		return status
	}
	a.tell(priorityError, err.Error())
	if see != "" {
		a.warn(priorityError, "see "+see)
	}
	return status
}

// say prints progress.
func (a *app) say(text string) {
	if a.json {
		a.object(priorityInfo, message{Progress: text})
		return
	}
	a.tell(priorityInfo, text)
}

func (a *app) note(text string) {
	if a.json {
		a.object(priorityNotice, message{Note: text})
		return
	}
	a.tell(priorityNotice, "note: "+text)
}

func (a *app) notes(texts []string) {
	for _, t := range texts {
		a.note(t)
	}
}

// tell prints to stderr. The first line of text is the cause. Further lines are failures of the
// undo, or an example that can be copied.
func (a *app) tell(p priority, text string) {
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		lead := "vmnet: "
		switch {
		case strings.HasPrefix(line, "undo "):
			lead += "also: "
		case i > 0:
			lead = "  "
		}
		a.warn(p, lead+line)
	}
}

// warn prints one line to stderr, and cleans it of control characters, since others chose some of
// it.
func (a *app) warn(p priority, line string) {
	fmt.Fprintf(a.err, "%s%s\n", a.lead(p), console.Clean(line))
}

func (a *app) object(p priority, m message) {
	_, _ = io.WriteString(a.err, a.lead(p))
	enc := json.NewEncoder(a.err)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(m) // without a reader the exit status remains
}

// lead returns the beginning of a line: a priority for the journal, nothing otherwise.
func (a *app) lead(p priority) string {
	if a.journal {
		return p.prefix()
	}
	return ""
}

// result prints the result of a verb: v as JSON, or a line of text.
func (a *app) result(v any, format string, args ...any) error {
	if a.json {
		return a.printJSON(v)
	}
	return a.line(format, args...)
}

// nicSettings returns the port's settings that are not the default.
func nicSettings(n nic.NIC) string {
	parts := []string{n.Port, n.Limits}
	parts = append(parts, n.Rates.String())
	if n.PortSecurity != "" {
		parts = append(parts, "security:"+n.PortSecurity)
	}
	if !n.AllowIn.IsZero() {
		parts = append(parts, "in:"+strings.ReplaceAll(n.AllowIn.String(), ";", " "))
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ";")
}

// progressEvery is a little less than the second after which waits report their progress, so that
// jitter suppresses none of the reports.
const progressEvery = 900 * time.Millisecond

// progress returns a function that prints what could not be seen, and what is being waited for: at
// most once a second, and in a log of text ever more rarely.
func (a *app) progress() func(tapmgr.ProgressKind, string) {
	p := pace{slows: !a.json && !isTerminal(a.err)}
	return func(kind tapmgr.ProgressKind, text string) {
		if kind == tapmgr.Unseen {
			a.note(text)
		} else if p.allows(time.Now()) {
			a.say(text)
		}
	}
}

// A pace says which reports of progress are printed.
type pace struct {
	slows bool // twice the time passes after each one
	every time.Duration
	last  time.Time
}

func (p *pace) allows(now time.Time) bool {
	if now.Sub(p.last) < p.every {
		return false
	}
	p.last = now
	if p.every == 0 {
		p.every = progressEvery
	} else if p.slows {
		p.every *= 2
	}
	return true
}

// isTerminal reports whether w is a character device other than /dev/null.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	if err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(st, null)
}
