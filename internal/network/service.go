package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/config"
	"vmnet/internal/network/server"
)

// Detached starts servers as processes that outlive this one.
type Detached struct {
	// Command is the program and its arguments that serve a network, without the network's name.
	Command []string
}

// Start implements Service.
func (d Detached) Start(ctx context.Context, m *Manager, n *config.Network) error {
	if err := server.Stop(ctx, m.nl, n); err != nil {
		return err
	}
	if !n.DHCP {
		return nil
	}
	return server.Spawn(ctx, append(d.Command[:len(d.Command):len(d.Command)], n.Name))
}

// Stop implements Service.
func (d Detached) Stop(ctx context.Context, m *Manager, n *config.Network) error {
	return server.Stop(ctx, m.nl, n)
}

// Text implements Service.
func (d Detached) Text(n *config.Network) string {
	if !n.DHCP {
		return "end " + n.ServerLink()
	}
	return "in the background: " + strings.Join(append(d.Command[:len(d.Command):len(d.Command)], n.Name), " ")
}

// AtBoot reports whether a Detached cannot make the network at boot, which is always so.
func (Detached) AtBoot(context.Context, *config.Network) bool { return true }

// Systemd has systemd run servers, also at each boot.
type Systemd struct{}

// systemctlTimeout bounds a wait for systemd.
const systemctlTimeout = time.Minute

func unit(network string) string { return "vmnet-network@" + network + ".service" }

// HasSystemd reports whether systemd runs this machine, has the unit of networks, and starts
// services in ns.
func HasSystemd(ctx context.Context, ns *netns.NS) bool {
	return SystemdRuns(ns) && systemctl(ctx, "cat", unit("")) == nil
}

// Start implements Service.
func (Systemd) Start(ctx context.Context, _ *Manager, n *config.Network) error {
	if err := systemctl(ctx, "enable", unit(n.Name)); err != nil {
		return err
	}
	return systemctl(ctx, "restart", unit(n.Name))
}

// Stop implements Service.
func (Systemd) Stop(ctx context.Context, _ *Manager, n *config.Network) error {
	return systemctl(ctx, "disable", "--now", unit(n.Name))
}

// AtBoot reports whether systemd makes the network at boot.
func (Systemd) AtBoot(ctx context.Context, n *config.Network) bool {
	return systemctl(ctx, "is-enabled", "--quiet", unit(n.Name)) == nil
}

// Reload has a network that runs made as its file says. One whose unit is stopped is left so.
func (Systemd) Reload(ctx context.Context, network string) error {
	if systemctl(ctx, "is-active", "--quiet", unit(network)) != nil {
		return errStopped
	}
	return systemctl(ctx, "reload", unit(network))
}

// errStopped is the error for a network that somebody has stopped.
var errStopped = errors.New("its unit is stopped")

// Text implements Service.
func (Systemd) Text(n *config.Network) string { return "systemctl enable, restart " + unit(n.Name) }

func systemctl(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, systemctlTimeout)
	defer cancel()
	var words bytes.Buffer
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.Stderr, cmd.WaitDelay = &words, time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("systemctl %s: %w: %s (journalctl -u 'vmnet-network@*' says more)",
			strings.Join(args, " "), err, strings.TrimSpace(words.String()))
	}
	return nil
}
