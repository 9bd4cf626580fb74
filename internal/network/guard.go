package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/server"
)

// Guards starts the processes that take moves back, as processes that outlive this one, its
// terminal and its login.
type Guards struct {
	// Command is the program and its arguments that take back, without the network's name.
	Command []string
	// Systemd says that systemd starts the process, as a service of its own: the login manager can
	// end all processes of a login session with it (KillUserProcesses= in logind.conf(5)).
	Systemd bool
}

// Start starts the process for a network, and returns once it watches.
func (g Guards) Start(ctx context.Context, name string) error {
	argv := append(g.Command[:len(g.Command):len(g.Command)], name)
	if !g.Systemd {
		return server.Spawn(ctx, argv)
	}
	ctx, cancel := context.WithTimeout(ctx, systemctlTimeout)
	defer cancel()
	run := []string{
		"--quiet", "--collect", "--service-type=notify", "--unit=" + guardUnit(name),
		"--description=Takes the move of network " + name + " back", "--",
	}
	cmd := exec.CommandContext(ctx, "systemd-run", append(run, argv...)...)
	cmd.WaitDelay = time.Second
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("systemd-run: %w: %s", err, strings.TrimSpace(string(said)))
	}
	return nil
}

// guardUnit returns a name that no guard of an earlier move has.
func guardUnit(name string) string {
	return fmt.Sprintf("vmnet-network-guard-%s-%d", name, os.Getpid())
}

// SystemdRuns reports whether systemd runs this machine, and starts services in ns.
func SystemdRuns(ns *netns.NS) bool {
	if info, err := os.Stat("/run/systemd/system"); err != nil || !info.IsDir() {
		return false
	}
	return isFirst(ns)
}

// isFirst reports whether ns is the namespace of the first process.
func isFirst(ns *netns.NS) bool {
	first, err := netns.Open("/proc/1/ns/net")
	if err != nil {
		return false
	}
	defer first.Close()
	a, aErr := first.Inode()
	b, bErr := ns.Inode()
	return errors.Join(aErr, bErr) == nil && a == b
}
