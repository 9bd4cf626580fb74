package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"vmnet/internal/network"
	"vmnet/internal/network/server"
	"vmnet/internal/sdnotify"
)

func (a *app) networkServeCommand(o *networkFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve NAME",
		Short: "Make a network and run its server, until it is stopped",
		Long: `Make a network as its file says, and run its server in the foreground until it is asked
to end: what the unit vmnet-network@NAME runs. The server is dnsmasq as an ordinary user, in a
network namespace that has no name and lives as long as dnsmasq does. Of a server that is killed
nothing is left.`,
		Example:           "  vmnet network serve lab\n  systemctl enable --now vmnet-network@lab",
		Args:              oneArg("the name of a network"),
		ValidArgsFunction: a.networkNames(o),
	}
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return a.withNetworks(cmd.Context(), o, func(m *network.Manager) error {
			if m.Elsewhere != nil {
				return a.networkServeUser(cmd.Context(), m, args[0])
			}
			m.Service = nil  // this process is the server
			m.Managers = nil // create and apply have written what they need
			return a.networkServe(cmd.Context(), m, args[0])
		})
	})
	return cmd
}

// errServerDiffers ends a server that is out of date, so that systemd starts it again.
var errServerDiffers = errors.New("the server is not as the network's file says")

// reapplyOnRequest makes the network as its file says whenever SIGUSR1 comes, and ends the server
// if the server itself differs from the file. stop ends this, and waits for a change under way.
func (a *app) reapplyOnRequest(ctx context.Context, m *network.Manager, name string, end func(error)) (stop func()) {
	requests := make(chan os.Signal, 1)
	signal.Notify(requests, syscall.SIGUSR1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range requests {
			if ctx.Err() != nil {
				continue
			}
			_, _, err := m.ApplyUnlocked(ctx, name)
			c, checkErr := m.Check(ctx, name)
			if err = errors.Join(err, checkErr); err != nil {
				a.note(err.Error())
			}
			if slices.ContainsFunc(c.Differences, func(d network.Difference) bool { return d.What == "server" }) {
				end(errServerDiffers)
			}
		}
	}()
	return func() { signal.Stop(requests); close(requests); <-ended }
}

// partCommand is run by the server itself, with files that it opens.
func (a *app) partCommand(verb []string, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb[1], Short: short + ", as a part of vmnet network serve", Hidden: true, DisableFlagParsing: true,
	}
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) error {
		_, err := server.Part(append(slices.Clone(verb), args...))
		return err
	})
	return cmd
}

// networkServed is what serve prints when guests are answered and when it ends.
type networkServed struct {
	Network string `json:"network"`
	State   string `json:"state"`            // "running", "ended"
	Socket  string `json:"socket,omitempty"` // of the switch of a user's network
}

func (a *app) networkServe(ctx context.Context, m *network.Manager, name string) error {
	m.AwaitUplink(ctx, name)
	n, _, err := m.ApplyUnlocked(ctx, name)
	if err != nil {
		return err
	}
	var printed error
	ready := func() {
		status := fmt.Sprintf("network %s: guests are answered", name)
		if !n.DHCP {
			status = fmt.Sprintf("network %s: made, without a server", name)
		}
		printed = a.result(networkServed{Network: name, State: "running"}, "%s", status)
		if err := sdnotify.Notify("READY=1\nSTATUS=" + status); err != nil {
			a.note(err.Error())
		}
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer a.reapplyOnRequest(ctx, m, name, end)()
	if n.DHCP {
		err = m.Serve(ctx, n, ready, func(err error) { a.note(err.Error()) })
	} else {
		ready()
		<-ctx.Done()
	}
	if err := sdnotify.Notify("STOPPING=1"); err != nil {
		a.note(err.Error())
	}
	if cause := context.Cause(ctx); errors.Is(cause, errServerDiffers) {
		err = errors.Join(err, cause)
	}
	return errors.Join(err, printed, a.result(networkServed{Network: name, State: "ended"}, "network %s: ended", name))
}
