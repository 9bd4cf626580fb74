package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"vmnet/internal/cli/console"
)

// What is said on stderr: in lines for people, or with -o json in JSON objects, one a line.

// message is such an object. One key of the first three is there; those of a failure follow it.
type message struct {
	Error    string   `json:"error,omitempty"`
	Note     string   `json:"note,omitempty"`     // what a person should know, though it is no error
	Progress string   `json:"progress,omitempty"` // what is being waited for
	Also     []string `json:"also,omitempty"`     // what failed besides, while the failure was undone
	Status   int      `json:"exit_status,omitempty"`
	See      string   `json:"see,omitempty"` // what explains the usage
}

// asksJSON reports whether a command line asks for JSON. It need make no sense otherwise: its error
// is to be JSON too.
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

// fail tells an error and what explains the usage, where it is wrong usage, and returns the exit
// status.
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

// say tells what is going on.
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

// tell prints to stderr. Of several lines the first is the cause; the others are what went wrong
// while it was undone, or an example, which can be copied as it stands.
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

// warn prints one line to stderr, whatever others chose of its text.
func (a *app) warn(p priority, line string) {
	fmt.Fprintf(a.err, "%s%s\n", a.lead(p), console.Clean(line))
}

func (a *app) object(p priority, m message) {
	_, _ = io.WriteString(a.err, a.lead(p))
	enc := json.NewEncoder(a.err)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(m) // whoever does not read it has the exit status
}

// lead is what the journal wants to begin a line.
func (a *app) lead(p priority) string {
	if a.journal {
		return p.prefix()
	}
	return ""
}

// result prints what a verb has done: v as JSON, or a line for people.
func (a *app) result(v any, format string, args ...any) error {
	if a.json {
		return a.printJSON(v)
	}
	return a.line(format, args...)
}
