package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"vmnet/internal/cli/console"
	"vmnet/step"
	"vmnet/tapmgr"
)

// stepFlags says how the steps of a verb are run.
type stepFlags struct {
	dryRun, verbose bool
	planned         bool // a dry run has printed its steps
}

func (s *stepFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.dryRun, "dry-run", false, "print every step in order, and change nothing")
	cmd.Flags().BoolVarP(&s.verbose, "verbose", "v", false, "log every step with the time it took to stderr")
}

// apply sets m.Run to what the flags ask for.
func (s *stepFlags) apply(a *app, m *tapmgr.Manager, json bool) {
	switch {
	case s.dryRun:
		m.Run = func(_ context.Context, steps []step.Step) error {
			s.planned = true
			return a.printSteps(steps, json)
		}
	case s.verbose:
		log := a.logger(logFormat(json))
		m.Run = func(ctx context.Context, steps []step.Step) error { return runLogged(ctx, log, steps) }
	}
}

// logFormat returns the format of a log beside a result that is text or JSON.
func logFormat(json bool) string {
	if json {
		return "json"
	}
	return "text"
}

func (a *app) printSteps(steps []step.Step, json bool) error {
	if json {
		return a.printJSON(planSteps(steps))
	}
	for i, s := range steps {
		if err := a.print("%2d. %s: %s\n", i+1, s.Name, console.Clean(s.Text)); err != nil {
			return err
		}
	}
	return nil
}

// planStep is a step as JSON.
type planStep struct {
	Step int    `json:"step"`
	Name string `json:"name"`
	Text string `json:"text"`
}

func planSteps(steps []step.Step) []planStep {
	plans := []planStep{}
	for i, s := range steps {
		plans = append(plans, planStep{i + 1, s.Name, s.Text})
	}
	return plans
}

// runLogged runs steps and logs each step and each undo.
func runLogged(ctx context.Context, log *slog.Logger, steps []step.Step) error {
	timed := func(ctx context.Context, what string, s step.Step, do func(context.Context) error) error {
		start := time.Now()
		err := do(ctx)
		attrs := []any{"name", s.Name, "took", time.Since(start).Round(time.Microsecond), "text", s.Text}
		if err != nil {
			attrs = append(attrs, "error", err)
		}
		log.Info(what, attrs...)
		return err
	}
	logged := make([]step.Step, len(steps))
	for i, s := range steps {
		logged[i] = s
		if s.Undo != nil {
			logged[i].Undo = func(ctx context.Context) error { return timed(ctx, "undo", s, s.Undo) }
		}
	}
	return step.Run(ctx, logged, func(ctx context.Context, s step.Step, do func(context.Context) error) error {
		return timed(ctx, "step", s, do)
	})
}
