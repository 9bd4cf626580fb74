package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/internal/cli/nicflags"
	"vmnet/internal/network"
	"vmnet/internal/network/config"
)

// networkCreateVerb is the command line of network create.
type networkCreateVerb struct {
	*networkFlags
	n     config.Network
	ipv6  string // "auto", "none" or a prefix
	up    uplinkFlags
	steps stepFlags
}

func (a *app) networkCreateCommand(flags *networkFlags) *cobra.Command {
	o := networkCreateVerb{networkFlags: flags}
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a network",
		Long: `Create a network: write its file and make it. What is not given is chosen: a /24 that
the host has no route to, an IPv6 network of unique local addresses, and addresses for hosts.

With --nat, guests reach what the host reaches, by the host's addresses; from there nothing reaches
them but answers and what vmnet forward leads on. Without it they reach the host and each other.

With --uplink, guests are on the LAN that an interface of the host is on: it becomes a port of the
network's bridge. With --move-address, what the host has on it moves to the bridge: addresses,
routes, rules, neighbors and the MAC address. A process in the background takes all back unless
vmnet network confirm comes in time, also if you cannot reach the host any more.

With --vxlan, guests are on a LAN that hosts have among them: a VXLAN segment, as of vmnet bridge
create --vxlan. Its MTU is 1500 bytes, or what the network between the hosts carries; the file keeps
it, guests learn it, and all hosts need the same. With --dhcp, one of the hosts has the server.`,
		Example: `  vmnet network create lab --nat --dhcp
  vmnet network create lab --nat --dhcp --subnet 10.66.0.0/24 --ipv6 none --host web=52:54:00:00:00:01,10.66.0.11
  vmnet network create lab --nat --dhcp --dry-run
  vmnet network create lan --uplink eth1.100
  vmnet network create far --vxlan 100 --local 192.0.2.1 --remote 192.0.2.2
  vmnet network create lan --uplink eth0 --move-address --confirm 60s && vmnet network confirm lan
  vmnet network create lan --uplink eth1 --dhcp --subnet 192.168.1.0/24 --dhcp-range 192.168.1.200-192.168.1.220`,
		Args:              oneArg("a name for the network"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.BoolVar(&o.n.NAT, "nat", false, "let guests reach other networks by the host's addresses")
	f.BoolVar(&o.n.DHCP, "dhcp", false, "run a server that gives guests addresses and names")
	f.Var(nicflags.Value("CIDR", "", func(s string) (err error) {
		if o.n.Subnet, err = netip.ParsePrefix(s); err != nil {
			return fmt.Errorf("want an IPv4 network, such as 10.66.0.0/24")
		}
		return nil
	}), "subnet", "the IPv4 network (default a free /24)")
	f.StringVar(&o.ipv6, "ipv6", "auto",
		"the IPv6 network: a `PREFIX` of length 64, none, or auto for a unique local one")
	f.StringVar(&o.n.Domain, "domain", "", "`DOMAIN` of the guests' names (default NAME.internal)")
	f.Var(nicflags.Value("NAME=MAC[,IP]", "", func(s string) error {
		h, err := parseHost(s)
		o.n.Hosts = append(o.n.Hosts, h)
		return err
	}), "host", "a guest that always has this name and address (repeatable)")
	f.BoolVar(&o.n.Isolated, "isolated", false, "keep guests from reaching each other")
	nicflags.MTU(f, &o.n.MTU,
		fmt.Sprintf("MTU of the network, 1280 to %d (default that for users other than root)", config.MaxMTU))
	f.BoolVar(&o.n.Integrate, "integrate", false, "have Docker, firewalld and ufw let the network's traffic pass")
	f.Var(nicflags.Value("BRIDGE", "", noNetworkOn), "bridge", "")
	_ = f.MarkHidden("bridge")
	complete(cmd, "ipv6", cobra.FixedCompletions([]string{"auto", "none"}, noFiles))
	o.up.add(a, cmd)
	o.steps.add(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		o.n.Name, o.json = args[0], *format == "json"
		if err := o.up.take(cmd, &o.n); err != nil {
			return err
		}
		return a.networkCreate(cmd.Context(), &o)
	})
	return cmd
}

// noNetworkOn says what there is instead of a network on a bridge that exists.
func noNetworkOn(bridge string) error {
	return fmt.Errorf("a network makes its own bridge, called NAME (guests on %.15[1]s: vmnet attach --bridge "+
		"%.15[1]s; a network behind an interface or a port of %.15[1]s: --uplink)", bridge)
}

// parseHost parses NAME=MAC or NAME=MAC,IP.
func parseHost(s string) (h config.Host, err error) {
	name, rest, ok := strings.Cut(s, "=")
	mac, ip, hasIP := strings.Cut(rest, ",")
	if !ok {
		return h, fmt.Errorf("want NAME=MAC or NAME=MAC,IP, such as web=52:54:00:00:00:01,10.66.0.11")
	}
	h.Name = name
	if h.MAC, err = config.ParseMAC(mac); err != nil || !hasIP {
		return h, err
	}
	if h.IP, err = netip.ParseAddr(ip); err != nil {
		return h, fmt.Errorf("ip %q: want an IPv4 address", ip)
	}
	return h, nil
}

func (a *app) networkCreate(ctx context.Context, o *networkCreateVerb) error {
	n := &o.n
	if err := config.CheckName(n.Name); err != nil {
		return usagef("%w", err)
	}
	if n.Domain == "" {
		n.Domain = config.DefaultDomain(n.Name)
	}
	want := network.Wanted{Network: n}
	switch o.ipv6 {
	case "auto":
		want.AutoIPv6 = true
	case "none":
	default:
		var err error
		if n.IPv6, err = netip.ParsePrefix(o.ipv6); err != nil {
			return usagef("--ipv6 %q: want auto, none, or a network such as fd66:1:2:3::/64", o.ipv6)
		}
	}
	return a.withNetworks(ctx, o.networkFlags, func(m *network.Manager) error {
		o.steps.applyToNetworks(a, m, o.json, func() (*networkPlan, error) { return planOf(m, n) })
		m.Confirm = o.up.confirm
		if err := m.Create(ctx, want); err != nil {
			return err
		}
		if o.steps.planned {
			return nil
		}
		return a.printCreated(ctx, m, n, o.json)
	})
}

func (a *app) printCreated(ctx context.Context, m *network.Manager, n *config.Network, json bool) error {
	if err := a.tellObstacles(ctx, m, n); err != nil {
		return err
	}
	if json {
		return a.printJSON(struct {
			network.Info
			Changed bool `json:"changed"`
			Confirm int  `json:"confirm_seconds,omitempty"`
		}{applied(n), true, int(confirmWithin(m, n).Seconds())})
	}
	if n.Uplink != nil {
		return a.printCreatedOnUplink(m, n)
	}
	ipv6 := "no IPv6"
	if n.IPv6.IsValid() {
		ipv6 = n.IPv6.String()
	}
	kind := "bridge"
	if m.Elsewhere != nil {
		kind = "switch"
	}
	if err := a.line("network %s created: %s %s, %s, %s", n.Name, kind, n.Name, n.Subnet, ipv6); err != nil {
		return err
	}
	for _, h := range n.Hosts {
		if err := a.line("  host %s: %s, %s", h.Name, h.MAC, h.IP); err != nil {
			return err
		}
	}
	return nil
}

// applied describes a network that was just made.
func applied(n *config.Network) network.Info {
	i := network.Describe(n)
	i.State = network.StateUp
	return i
}

// tellObstacles notes what drops the traffic of a network, and what else its guests lack.
func (a *app) tellObstacles(ctx context.Context, m *network.Manager, n *config.Network) error {
	found, err := m.Obstacles(ctx, n)
	if err != nil {
		return err
	}
	for _, o := range found {
		a.note(fmt.Sprintf("network %s: %s", n.Name, o))
	}
	a.notes(m.UpstreamNotices(n))
	return nil
}
