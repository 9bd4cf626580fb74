package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"vmnet/bridge"
	"vmnet/internal/console"
	"vmnet/tapmgr"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

// errUsage is a command line that parses but makes no sense.
var errUsage = errors.New("wrong usage")

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// usageError Is errUsage, without saying so in its text.
type usageError struct{ error }

func (e usageError) Is(target error) bool { return target == errUsage }
func (e usageError) Unwrap() error        { return e.error }

// exitStatus ends the program without a word more: its output has told why.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// report tells an error and returns the exit status.
func (a *app) report(cmd *cobra.Command, err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, errNoCommand):
		cmd.SetOut(a.err)
		_ = cmd.Help()
		return exitUsage
	case errors.Is(err, syscall.EPIPE) && errors.Is(err, errOutput):
		return exitFailure // nobody is left to read why
	case !a.started || errors.Is(err, errUsage) || errors.Is(err, tapmgr.ErrInvalid) || errors.Is(err, bridge.ErrInvalid):
		a.tell(priorityError, err.Error())
		a.warn(priorityError, "see "+cmd.CommandPath()+" --help")
		return exitUsage
	}
	a.tell(priorityError, err.Error())
	return exitFailure
}

// say tells what is going on.
func (a *app) say(text string) { a.tell(priorityInfo, text) }

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
	prefix := ""
	if a.journal {
		prefix = p.prefix()
	}
	fmt.Fprintf(a.err, "%s%s\n", prefix, console.Clean(line))
}

func (a *app) note(text string) { a.tell(priorityNotice, "note: "+text) }

func (a *app) notes(texts []string) {
	for _, t := range texts {
		a.note(t)
	}
}
