package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"vmnet/bridge/vswitch/control"
)

// A unit is a service of systemd.
type unit struct {
	name string // "" for none
	user int    // whose manager runs it; -1 for the machine's
}

// unitOf returns the service that a process is in (proc_pid_cgroup(5)).
func unitOf(pid int) unit {
	groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)) // of a process that has ended, it is in none
	return serviceIn(string(groups))
}

// serviceIn returns the innermost unit, if it is a service. A user's manager is one too, and the
// scopes in it are not.
func serviceIn(groups string) unit {
	for line := range strings.Lines(groups) {
		u := unit{user: -1}
		for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			if rest, ok := strings.CutPrefix(u.name, "user@"); ok && strings.Contains(part, ".") {
				if uid, err := strconv.Atoi(strings.TrimSuffix(rest, ".service")); err == nil {
					u.user = uid
				}
			}
			switch {
			case strings.HasSuffix(part, ".service"):
				u.name = part
			case strings.HasSuffix(part, ".scope"), strings.HasSuffix(part, ".slice"):
				u.name = ""
			}
		}
		if u.name != "" {
			return u
		}
	}
	return unit{user: -1}
}

// unitOfSwitch returns the unit that runs the switch, and reports whether this process is in it
// too.
func unitOfSwitch(ctx context.Context, name string) (u unit, inside bool, err error) {
	err = withSwitch(ctx, name, func(_ context.Context, c *control.Client) error {
		pid, _ := c.Peer()
		u = unitOf(pid)
		inside = u.name != "" && u == unitOf(os.Getpid())
		return nil
	})
	return u, inside, err
}

// pidOf returns the process of a switch.
func pidOf(ctx context.Context, name string) (pid int, err error) {
	err = withSwitch(ctx, name, func(_ context.Context, c *control.Client) error {
		pid, _ = c.Peer()
		return nil
	})
	return pid, err
}

// upgradeUnit has systemd start the new process, in the unit and as the unit says: a process of
// another unit could not be its main process.
func (a *app) upgradeUnit(ctx context.Context, o *runVerb, u unit) error {
	argv := []string{"systemctl", "reload", "--", u.name}
	switch self := os.Geteuid(); {
	case u.user == self:
		argv = []string{"systemctl", "--user", "reload", "--", u.name}
	case u.user >= 0:
		return fmt.Errorf("switch %s: %s of user %d runs it (run this as that user)", o.name, u.name, u.user)
	}
	before, err := pidOf(ctx, o.name)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("switch %s: %s runs it: %w", o.name, u.name, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s (vmnet-switch(8) says what the unit needs; journalctl -u %s, why it failed)",
			strings.Join(argv, " "), err, strings.TrimSpace(string(out)), u.name)
	}
	pid, err := pidOf(ctx, o.name)
	if err != nil {
		return err
	}
	if pid == before {
		return fmt.Errorf("switch %s: %s was reloaded, and process %d still runs it (its unit needs ExecReload=%s)",
			o.name, u.name, pid, "vmnet switch upgrade "+o.name)
	}
	return a.result(switchUpgraded{Switch: o.name, PID: pid, Changed: true},
		"switch %s: process %d of %s has taken it over", o.name, pid, u.name)
}
