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
	return Background{
		Command: append(g.Command[:len(g.Command):len(g.Command)], name), Systemd: g.Systemd,
		Unit:        fmt.Sprintf("vmnet-network-guard-%s-%d", name, os.Getpid()), // no guard of an earlier move has it
		Description: "Takes the move of network " + name + " back",
	}.Start(ctx)
}

// Background is a process that outlives this one, its terminal and its login.
type Background struct {
	Command []string // the program and its arguments
	Systemd bool     // see Guards
	// Unit and Description are those of the service that systemd starts.
	Unit, Description string
}

// Start starts the process, and returns once it says that it is ready.
func (b Background) Start(ctx context.Context) error {
	if !b.Systemd {
		return server.Spawn(ctx, b.Command)
	}
	ctx, cancel := context.WithTimeout(ctx, systemctlTimeout)
	defer cancel()
	run := []string{
		"--quiet", "--collect", "--service-type=notify", "--unit=" + b.Unit, "--description=" + b.Description, "--",
	}
	for _, arg := range b.Command {
		run = append(run, strings.ReplaceAll(arg, "$", "$$")) // systemd replaces variables: systemd.service(5)
	}
	cmd := exec.CommandContext(ctx, "systemd-run", run...)
	cmd.WaitDelay = time.Second
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("systemd-run: %w: %s", err, strings.TrimSpace(string(said)))
	}
	return nil
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
