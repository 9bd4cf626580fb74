package main

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/spf13/cobra"

	"vmnet/bridge/brport"
	"vmnet/internal/network"
	"vmnet/tapmgr/nic"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

// errUsage is the error for a command line that parses but is inconsistent.
var errUsage = errors.New("wrong usage")

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// usageError matches errUsage with errors.Is, without having its text.
type usageError struct{ error }

func (e usageError) Is(target error) bool { return target == errUsage }
func (e usageError) Unwrap() error        { return e.error }

// exitStatus ends the program without a message: its output has given the reason.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// report prints an error and returns the exit status.
func (a *app) report(cmd *cobra.Command, err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, errNoCommand) && !a.json:
		cmd.SetOut(a.err)
		_ = cmd.Help()
		return exitUsage
	case errors.Is(err, syscall.EPIPE) && errors.Is(err, errOutput):
		return exitFailure // no reader is left for a message
	case !a.started || errors.Is(err, errUsage) || errors.Is(err, nic.ErrInvalid) || errors.Is(err, brport.ErrInvalid) ||
		errors.Is(err, network.ErrInvalid):
		return a.fail(err, exitUsage, cmd.CommandPath()+" --help")
	}
	return a.fail(withCure(err), exitFailure, "")
}
