// Package step runs a list of reversible changes, and undoes them in reverse order if one fails.
// The list is data, so that the same list serves the run, its undo, a dry run (print the texts), a
// verbose run (time the steps) and tests (make any step fail).
package step

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Step is one reversible change.
type Step struct {
	// Name is short, stable and unique in its list: "tap", "getfd q0".
	Name string
	// Text describes the change by the system call or command and its arguments: "TUNSETIFF P2-net0
	// IFF_TAP|IFF_NO_PI".
	Text string
	// Stage, if not nil, is an error that every error of Do matches by errors.Is as well.
	Stage error
	// Do makes the change.
	Do func(context.Context) error
	// Undo reverses the change; nil if there is nothing to reverse. It also runs if Do failed half
	// way or was never reached, so it must succeed if there is nothing to undo.
	Undo func(context.Context) error
}

// Around wraps the Do of every step, for example to time it. It must call do unless it returns an
// error.
type Around func(ctx context.Context, s Step, do func(context.Context) error) error

// A Runner runs a list of steps in place of Run, for example to print or to break them.
type Runner func(ctx context.Context, steps []Step) error

// Do runs the steps by r; a nil Runner is Run with nothing around the steps.
func (r Runner) Do(ctx context.Context, steps []Step) error {
	if r != nil {
		return r(ctx, steps)
	}
	return Run(ctx, steps, nil)
}

// UndoTimeout bounds the undoing of all steps. It starts when a step has failed, and is independent
// of the run's own context, which may be the reason for the failure.
const UndoTimeout = 10 * time.Second

// Run runs the steps in order. If one fails, or ctx ends between two, it undoes the failed step and
// all steps before it, last first, continues if an Undo fails, and returns all errors joined. Each
// error names its step. around may be nil.
func Run(ctx context.Context, steps []Step, around Around) error {
	if around == nil {
		around = func(ctx context.Context, s Step, do func(context.Context) error) error { return do(ctx) }
	}
	for i, s := range steps {
		err := context.Cause(ctx)
		if err == nil {
			err = WithStage(s.Stage, around(ctx, s, s.Do))
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", s.Name, err), Undo(ctx, steps[:i+1]))
		}
	}
	return nil
}

// Undo undoes the steps, last first, and returns the errors joined. It continues to the last one,
// or to UndoTimeout, even if ctx has ended.
func Undo(ctx context.Context, steps []Step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), UndoTimeout)
	defer cancel()
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].Undo == nil {
			continue
		}
		if err := steps[i].Undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", steps[i].Name, err))
		}
	}
	return errors.Join(errs...)
}
