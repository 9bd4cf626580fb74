package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/bridge"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr"
)

// withManager calls f with a Manager for --netns.
func (a *app) withManager(f func(*tapmgr.Manager) error) error {
	return tapmgr.In(a.netns, func(m *tapmgr.Manager) error {
		m.Progress = a.progress()
		m.AskSwitches, m.Switches = true, a.runningSwitches()
		m.UseHelper(helperPath())
		m.Libvirt = a.libvirt
		m.AskLibvirt()
		return f(m)
	})
}

// withBridges calls f with the bridges of --netns.
func (a *app) withBridges(f func(*bridge.Host) error) error {
	h, err := bridge.Open(a.netns)
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

// withNetlink calls f with a netlink socket in --netns.
func (a *app) withNetlink(f func(*rtnl.Conn) error) error {
	ns, err := netns.Open(a.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// progressEvery is a little less than the second after which waits report their progress, so that
// jitter suppresses none of the reports.
const progressEvery = 900 * time.Millisecond

// runningSwitches returns the control sockets of the switches that this user could reach.
func (a *app) runningSwitches() []string {
	paths, err := control.Running()
	if err != nil {
		a.note(fmt.Sprintf("the switches were not asked: %v", err))
	}
	return paths
}

// progress returns a function that prints what could not be seen, and at most once a second what is
// being waited for.
func (a *app) progress() func(tapmgr.ProgressKind, string) {
	var last time.Time
	return func(kind tapmgr.ProgressKind, text string) {
		if kind == tapmgr.Unseen {
			a.note(text)
		} else if time.Since(last) >= progressEvery {
			last = time.Now()
			a.say(text)
		}
	}
}

// withTimeout bounds ctx by d. The cause names the flag that changes d.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("timed out after %v (--timeout allows more)", d))
}

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

// helperPath returns the path of qemu-netup, which does what this process lacks the privilege for.
// It returns the empty string if this process has CAP_NET_ADMIN, or if there is no helper: the
// first step that needs the privilege then fails.
func helperPath() string {
	if may, err := cap.GetProc().GetFlag(cap.Effective, cap.NET_ADMIN); err != nil || may {
		return ""
	}
	m, err := machine()
	if err != nil {
		return ""
	}
	path, _ := m.FindHelper()
	return path
}
