package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"vmnet/internal/cli/console"
)

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
