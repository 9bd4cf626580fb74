package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vmnet/testvm/agent"
	"vmnet/testvm/traffic"
)

// onGuest makes cmd connect to a running guest.
func onGuest(cmd *cobra.Command, do func(ctx context.Context, g *agent.Guest, args []string) error) *cobra.Command {
	return onGuestBy(agent.Dial, cmd, do)
}

// onGuestBy is onGuest with another dialer.
func onGuestBy(dial dialer, cmd *cobra.Command,
	do func(ctx context.Context, g *agent.Guest, args []string) error,
) *cobra.Command {
	var name, path string
	var limit time.Duration
	cmd.Flags().StringVar(&name, "name", "testvm", "the guest's name")
	cmd.Flags().StringVar(&path, "agent", "", "path of the agent's socket (default: found by the name)")
	cmd.Flags().DurationVar(&limit, "timeout", 30*time.Second, "give up after this time")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, err := socket(path, name, "agent")
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), limit, fmt.Errorf("no answer within %s", limit))
		defer cancel()
		g, err := dial(ctx, name, path)
		if err != nil {
			return fmt.Errorf("%w (is 'testvm run --name %s' running?)", err, name)
		}
		return errors.Join(do(ctx, g, args), g.Close())
	}
	return cmd
}

// dialer connects to the agent's socket at path; name is the guest's name.
type dialer func(ctx context.Context, name, path string) (*agent.Guest, error)

// dialPause is the time between two attempts of dialStarting.
const dialPause = 50 * time.Millisecond

// dialStarting dials a guest that may not have started yet: it retries until ctx ends. The error
// is that of the last attempt that ctx did not end.
func dialStarting(ctx context.Context, name, path string) (*agent.Guest, error) {
	var last error
	for {
		g, err := agent.Dial(ctx, name, path)
		if err != nil && ctx.Err() != nil {
			return nil, cmp.Or(last, err)
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return g, err
		}
		last = err
		select {
		case <-ctx.Done():
			return nil, last
		case <-time.After(dialPause):
		}
	}
}

func waitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "wait",
		Short:   "Wait until the guest answers; it may not have started yet",
		Example: "  testvm run --name P2 & testvm wait --name P2",
		Args:    cobra.NoArgs,
	}
	return onGuestBy(dialStarting, cmd, func(ctx context.Context, g *agent.Guest, _ []string) error {
		_, err := g.WaitReady(ctx)
		return err
	})
}

func execCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "exec [flags] -- COMMAND [ARGUMENT...]",
		Short:   "Run a command in the guest, which has busybox",
		Example: "  testvm exec --name P2 -- ip -4 addr",
		Args:    cobra.MinimumNArgs(1),
	}
	return onGuest(cmd, func(ctx context.Context, g *agent.Guest, args []string) error {
		out, err := g.Run(ctx, agent.Command{Argv: args})
		if err != nil {
			return err
		}
		fmt.Fprint(cmd.OutOrStdout(), out.Stdout)
		fmt.Fprint(cmd.ErrOrStderr(), out.Stderr)
		return exitStatus(out.Code, nil)
	})
}

func linksCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "links", Short: "List the guest's network interfaces", Args: cobra.NoArgs}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print all fields as JSON")
	return onGuest(cmd, func(ctx context.Context, g *agent.Guest, _ []string) error {
		links, err := g.Links(ctx)
		if err != nil {
			return err
		}
		if asJSON {
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetIndent("", "  ")
			return e.Encode(links)
		}
		return printLinks(cmd.OutOrStdout(), links)
	})
}

func printLinks(out io.Writer, links []agent.Link) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tMAC\tMTU\tDRIVER\tPCI\tQUEUES\tADDRESSES")
	for _, l := range links {
		state := "down"
		switch {
		case l.Up && l.Carrier:
			state = "up"
		case l.Up:
			state = "no-carrier"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%d\t%s\n", l.Name, state, dash(l.MAC), l.MTU,
			dash(l.Driver), dash(l.PCI),
			l.TxQueues, dash(strings.Join(l.Addrs, " ")))
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func addrCommand() *cobra.Command {
	var via string
	cmd := &cobra.Command{
		Use:     "addr [flags] LINK CIDR",
		Short:   "Wait for a link of the guest, bring it up, and add an address",
		Example: "  testvm addr --name P2 --via 10.0.0.1 eth0 10.0.0.2/24",
		Args:    cobra.ExactArgs(2),
	}
	cmd.Flags().StringVar(&via, "via", "", "also set the default route to this gateway")
	return onGuest(cmd, func(ctx context.Context, g *agent.Guest, args []string) error {
		if err := awaitLink(ctx, g, args[0]); err != nil {
			return err
		}
		if err := g.Up(ctx, args[0]); err != nil {
			return err
		}
		if err := g.AddAddr(ctx, args[0], args[1]); err != nil || via == "" {
			return err
		}
		return g.AddRoute(ctx, "default", via)
	})
}

func dhcpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "dhcp [flags] LINK",
		Short:   "Wait for a link of the guest, bring it up, and ask a DHCP server for an address and names",
		Example: "  testvm dhcp --name P2 eth0",
		Args:    cobra.ExactArgs(1),
	}
	return onGuest(cmd, func(ctx context.Context, g *agent.Guest, args []string) error {
		if err := awaitLink(ctx, g, args[0]); err != nil {
			return err
		}
		if err := g.Up(ctx, args[0]); err != nil {
			return err
		}
		out, err := g.Run(ctx, agent.Command{
			Argv: []string{"udhcpc", "-f", "-n", "-q", "-t", "10", "-T", "1", "-i", args[0]},
		})
		if err == nil && out.Code != 0 {
			err = errors.New(strings.TrimSpace(out.Stderr))
		}
		if err == nil {
			fmt.Fprint(cmd.OutOrStdout(), out.Stdout)
		}
		return err
	})
}

// linkWait is how long a guest may take to notice a NIC that has just been plugged.
const linkWait = 5 * time.Second

// awaitLink waits until the guest has a link of that name. If it gets none, the next operation on
// the link fails.
func awaitLink(ctx context.Context, g *agent.Guest, name string) error {
	for end := time.Now().Add(linkWait); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		links, err := g.Links(ctx)
		if err != nil || slices.ContainsFunc(links, func(l agent.Link) bool { return l.Name == name }) {
			return err
		}
	}
	return nil
}

func pingCommand() *cobra.Command {
	p := traffic.Ping{}
	cmd := &cobra.Command{Use: "ping [flags] ADDRESS", Short: "Ping from the guest", Args: cobra.ExactArgs(1)}
	cmd.Flags().IntVarP(&p.Count, "count", "c", 3, "echo requests to send")
	cmd.Flags().IntVarP(&p.Size, "size", "s", 56, "payload in bytes")
	return onGuest(cmd, func(ctx context.Context, g *agent.Guest, args []string) error {
		p.Addr = args[0]
		res, err := g.PingWith(ctx, p)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d of %d replies from %s, after %s to %s\n", res.Received, res.Sent, p.Addr,
			res.Min.Round(time.Microsecond), res.Max.Round(time.Microsecond))
		return nil
	})
}

func powerOffCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "poweroff", Short: "Power the guest off", Args: cobra.NoArgs}
	return onGuest(cmd, func(ctx context.Context, g *agent.Guest, _ []string) error { return g.PowerOff(ctx) })
}
