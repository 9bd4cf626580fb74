package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"vmnet/bridge"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/network/config"
	"vmnet/internal/nsport"
)

func (a *app) netnsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "netns",
		Short: "Connect containers and network namespaces to guests' networks",
		Long: `Connect network namespaces, such as those of containers, to bridges, networks and parent
devices of guests, and show what has the other ends of veth devices. vmnet-netns(8) has the details.`,
		Example: `  vmnet netns attach blue --bridge br0 --ip 10.0.0.7/24
  vmnet netns attach $(docker inspect -f '{{.State.Pid}}' web) --network lab
  vmnet netns list --all
  vmnet netns detach blue`,
	}
	group(cmd)
	cmd.AddCommand(a.netnsAttachCommand(), a.netnsDetachCommand(), a.netnsListCommand())
	return cmd
}

// withNamespaces calls f with what attaches namespaces to --netns.
func (a *app) withNamespaces(f func(*nsport.Manager) error) error {
	m, err := nsport.Open(a.netns)
	if err != nil {
		return err
	}
	defer m.Close()
	return f(m)
}

// applyToNamespaces sets m.Run to what the flags ask for.
func (s *stepFlags) applyToNamespaces(a *app, m *nsport.Manager, json bool) {
	m.DryRun, m.Run = s.dryRun, s.runner(a, json)
}

// netnsAttach is the command line of netns attach.
type netnsAttach struct {
	spec   nsport.Spec
	bare   bool // an address has no prefix length
	config string
	steps  stepFlags
}

func (a *app) netnsAttachCommand() *cobra.Command {
	var o netnsAttach
	cmd := &cobra.Command{
		Use:   "attach NETNS {--bridge|--network|--macvlan|--ipvlan} PLACE",
		Short: "Give a namespace an interface on a guests' network",
		Long: `Give a network namespace an interface: one end of a veth device whose other end is a port
of a bridge, or a macvlan or ipvlan on a parent device. NETNS is a name of ip-netns(8), a path, or
the PID of a process in the namespace. The interface goes with the namespace. A failed attach leaves nothing
behind. The same command again changes nothing, except that it restores what is missing; one with
other settings is an error that names the difference.

With --network, the address may be given without its prefix length, and the network's router becomes
the default one. Without --ip the namespace asks the network's server, by a DHCP client of its own.`,
		Example: `  vmnet netns attach blue --bridge br0 --ip 10.0.0.7/24 --gateway 10.0.0.1
  vmnet netns attach 4711 --network lab --ip 10.66.0.30
  vmnet netns attach /run/docker/netns/1a2b3c --macvlan eth0 --ifname lan0
  vmnet netns attach blue --bridge br0 --vlan 20 --isolated`,
		Args:              oneArg("a network namespace: a name, a path or a PID"),
		ValidArgsFunction: oneNetns,
	}
	f := cmd.Flags()
	f.StringVar(&o.spec.Bridge, "bridge", "", "the `BRIDGE` of which the other end is a port")
	f.StringVar(&o.spec.Network, "network", "", "the `NETWORK` (vmnet network) of whose bridge the other end is a port")
	f.StringVar(&o.spec.Macvlan, "macvlan", "", "the `PARENT` device of a macvlan")
	f.StringVar(&o.spec.IPVlan, "ipvlan", "",
		"the `PARENT` device of an ipvlan, for Wi-Fi and where only one MAC is allowed")
	requireOne(cmd, "bridge", "network", "macvlan", "ipvlan")
	f.StringVar(&o.spec.Interface, "ifname", "eth0", "`NAME` of the interface in the namespace")
	f.Var(nicflags.Value("ADDR", "", func(s string) error { return o.addAddress(s) }), "ip",
		"an IP address of the interface with its prefix length, such as 10.0.0.7/24 (repeatable)")
	f.Var(nicflags.Value("ADDR", "", func(s string) error {
		g, err := netip.ParseAddr(s)
		if err != nil {
			return errors.New("want an IP address such as 10.0.0.1")
		}
		o.spec.Gateways = append(o.spec.Gateways, g)
		return nil
	}), "gateway", "the router of the namespace's default route, for IPv4 and for IPv6 (default that of the network)")
	f.StringVar(&o.spec.Mode, "mode", "",
		"macvlan: bridge, vepa or private (default bridge); ipvlan: l2, l3 or l3s (default l2)")
	nicflags.AddMAC(f, &o.spec.MAC,
		"the interface's address (default one derived from machine and id, always the same)")
	nicflags.MTU(f, &o.spec.MTU,
		"MTU of both ends, 68 to 65535; maximum and default: that of the bridge or parent device")
	f.StringVar(&o.spec.ID, "id", "", "`ID` of the attachment, unique on this host (default one derived from the "+
		"namespace's name and the interface)")
	nicflags.AddPort(f, &o.spec.Port)
	f.StringVar(&o.config, "config-dir", config.DefaultDir, "`DIRECTORY` of the networks' files")
	nicflags.Group(f, "Where (one of them)", "bridge", "network", "macvlan", "ipvlan", "mode")
	nicflags.Group(f, "Interface", "ifname", "ip", "gateway", "mac", "mtu", "id")
	nicflags.Group(f, "Port of a bridge", "vlan", "trunk", "native", "isolated", "hairpin", "no-learning", "forward",
		"no-flood")
	o.steps.add(cmd)
	format := outputFlag(cmd)
	nicflags.Group(f, "General", "dry-run", "verbose", "output", "config-dir")
	complete(cmd, "bridge", a.bridgeNames)
	complete(cmd, "network", func(cmd *cobra.Command, _ []string, text string) ([]cobra.Completion,
		cobra.ShellCompDirective,
	) {
		return a.networkNames(&networkFlags{config: o.config})(cmd, nil, text)
	})
	complete(cmd, "macvlan", a.interfaceNames)
	complete(cmd, "ipvlan", a.interfaceNames)
	complete(cmd, "mode", cobra.FixedCompletions(
		[]cobra.Completion{"bridge", "vepa", "private", "l2", "l3", "l3s"}, noFiles))
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		o.spec.Netns = args[0]
		return a.attachNetns(cmd.Context(), &o, *format == "json")
	})
	return cmd
}

// addAddress takes a value of --ip.
func (o *netnsAttach) addAddress(s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		ip, bareErr := netip.ParseAddr(s)
		if bareErr != nil || ip.Zone() != "" {
			return errors.New("want an IP address with its prefix length, such as 10.0.0.7/24")
		}
		p, o.bare = netip.PrefixFrom(ip, ip.BitLen()), true
	}
	o.spec.Addresses = append(o.spec.Addresses, p)
	return nil
}

// oneNetns completes the one argument.
func oneNetns(cmd *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	return netnsNames(cmd, args, text)
}

// netnsAttached is the result of netns attach.
type netnsAttached struct {
	nsport.Info
	Changed bool `json:"changed"`
}

func (a *app) attachNetns(ctx context.Context, o *netnsAttach, json bool) error {
	if o.bare && o.spec.Network == "" {
		return usagef("--ip needs a prefix length, such as 10.0.0.7/24; only --network knows that of its subnet")
	}
	return a.withNamespaces(func(m *nsport.Manager) error {
		o.steps.applyToNamespaces(a, m, json)
		m.Networks = config.Dir(o.config)
		done, err := m.Attach(ctx, o.spec)
		a.notes(done.Notices)
		if err != nil || o.steps.planned {
			return err
		}
		did := "attached to"
		if !done.Changed {
			did = "unchanged on"
		}
		return a.result(netnsAttached{done.Info, done.Changed}, "%s in netns %s: %s %s (id %s)", done.Interface,
			o.spec.Netns, did, done.Source, done.ID)
	})
}

func (a *app) netnsDetachCommand() *cobra.Command {
	var w nsport.Which
	var steps stepFlags
	cmd := &cobra.Command{
		Use:   "detach [NETNS] [--ifname NAME|--id ID]",
		Short: "Take such an interface away",
		Long: `Take away an interface that vmnet netns attach gave a namespace. It is success if there is
none. Other interfaces of the namespace are never touched. The namespace need not be named if the id
is.`,
		Example: `  vmnet netns detach blue
  vmnet netns detach blue --ifname eth1
  vmnet netns detach --id blue-eth0`,
		Args:              atMostOne("a network namespace: a name, a path or a PID"),
		ValidArgsFunction: oneNetns,
	}
	f := cmd.Flags()
	f.StringVar(&w.Interface, "ifname", "", "`NAME` that the interface was given, if the namespace has several")
	f.StringVar(&w.ID, "id", "", "`ID` of the attachment")
	complete(cmd, "id", a.netnsIDs)
	steps.add(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			w.Netns = args[0]
		}
		if w.Netns == "" && w.ID == "" {
			return usagef("vmnet netns detach takes a network namespace, or --id")
		}
		return a.detachNetns(cmd.Context(), w, &steps, *format == "json")
	})
	return cmd
}

// netnsDetached is the result of netns detach.
type netnsDetached struct {
	Removed []nsport.Info `json:"removed"`
	Changed bool          `json:"changed"`
}

func (a *app) detachNetns(ctx context.Context, w nsport.Which, steps *stepFlags, json bool) error {
	return a.withNamespaces(func(m *nsport.Manager) error {
		steps.applyToNamespaces(a, m, json)
		done, err := m.Detach(ctx, w)
		if errors.Is(err, nsport.ErrSeveral) {
			return usageError{err}
		}
		a.notes(done.Notices)
		switch {
		case err != nil || steps.planned:
			return err
		case json:
			return a.printJSON(netnsDetached{append([]nsport.Info{}, done.Removed...), len(done.Removed) > 0})
		case len(done.Removed) == 0:
			return a.line("%s: unchanged: there is no such interface", w)
		}
		for _, i := range done.Removed {
			if err := a.line("%s in netns %s: detached from %s (id %s)", i.Interface, i.Netns.Name, i.Source,
				i.ID); err != nil {
				return err
			}
		}
		return nil
	})
}

// netnsIDs completes the ids of attachments.
func (a *app) netnsIDs(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var ids []cobra.Completion
	_ = a.withNamespaces(func(m *nsport.Manager) error {
		all, _, err := m.List(cmd.Context())
		for _, i := range all {
			ids = append(ids, cobra.CompletionWithDesc(i.ID, fmt.Sprintf("%s in %s", i.Interface, i.Netns.Name)))
		}
		return err
	})
	return ids, noFiles
}

func (a *app) netnsListCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List these interfaces, or all links with another end",
		Long: `List the interfaces that vmnet netns attach gave namespaces. With --all, list every veth
device with both ends, and every macvlan, macvtap, ipvlan and ipvtap on a parent device, no matter
what made it (Docker and Neutron too), and which namespace and process has the other end.

A namespace is called by its name (ip-netns(8), Docker), or else by its first process. In a namespace
of another user namespace, users may have chosen all names; such an interface is listed as claimed,
unless its other end is here.`,
		Example: `  vmnet netns list
  vmnet netns list --all
  vmnet netns list --all -o json`,
		Args: noArgs(),
	}
	cmd.Flags().BoolVar(&all, "all", false, "all links with another end, or that share a parent device")
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		return a.withNamespaces(func(m *nsport.Manager) error {
			if all {
				return a.listLinks(cmd.Context(), m, *format == "json")
			}
			list, notices, err := m.List(cmd.Context())
			a.notes(notices)
			switch {
			case err != nil:
				return err
			case *format == "json":
				return a.printJSON(list)
			}
			return a.printNamespaces(list)
		})
	})
	return cmd
}

func (a *app) printNamespaces(list []nsport.Info) error {
	rows := [][]string{{"ID", "NETNS", "INTERFACE", "TYPE", "SOURCE", "HOST", "MAC", "STATE", "PROCESS"}}
	for _, i := range list {
		state := string(i.State)
		if i.Claimed {
			state += " (claimed)"
		}
		rows = append(rows, []string{
			i.ID, i.Netns.Name, i.Interface, i.Type, placeText(i), i.Host, i.MAC, state, i.Netns.Process(),
		})
	}
	return a.table(rows, nil)
}

// placeText returns the bridge or parent device, with mode and settings.
func placeText(i nsport.Info) string {
	if how := i.Mode + i.Port; how != "" {
		return i.Source + "(" + how + ")"
	}
	return i.Source
}

func (a *app) listLinks(ctx context.Context, m *nsport.Manager, json bool) error {
	list, notices, err := m.Links(ctx)
	a.notes(notices)
	switch {
	case err != nil:
		return err
	case json:
		return a.printJSON(list)
	}
	rows := [][]string{{"INTERFACE", "TYPE", "SOURCE", "PEER", "NETNS", "PROCESS", "STATE", "VMNET"}}
	for _, l := range list {
		source := l.Source
		if l.Mode != "" {
			source += "(" + l.Mode + ")"
		}
		rows = append(rows, []string{
			l.Interface, l.Type, source, l.Peer, l.Netns.Name, l.Netns.Process(), l.State, l.ID + l.NIC,
		})
	}
	return a.table(rows, nil)
}

// peersOf describes the other ends of those of a bridge's ports that are veth devices, by their
// names here. It is for people: what cannot be read is left out.
func (a *app) peersOf(ctx context.Context, ports []bridge.Port) map[string]nsport.Link {
	found := map[string]nsport.Link{}
	if len(ports) == 0 {
		return found
	}
	isPort := func(name string) bool {
		return slices.ContainsFunc(ports, func(p bridge.Port) bool { return p.Interface == name })
	}
	_ = a.withNamespaces(func(m *nsport.Manager) error {
		list, _, err := m.Pairs(ctx)
		for _, l := range list {
			if isPort(l.Interface) {
				found[l.Interface] = l
			}
			if l.Netns.Own && isPort(l.Peer) { // both ends are here
				other := l
				other.Interface, other.Peer, other.MAC, other.Source, other.ID = l.Peer, l.Interface, "", "", ""
				found[l.Peer] = other
			}
		}
		return err
	})
	return found
}

// peerText names a veth device's other end, its namespace and the first process in it.
func peerText(l nsport.Link) string {
	if l.Peer == "" {
		return ""
	}
	return l.Peer + inNetns(l.Netns)
}

// inNetns names a namespace and the first process in it; it is empty for the own one.
func inNetns(n nsport.Netns) string {
	if n.Own {
		return ""
	}
	text := " in netns " + n.Name
	if p := n.Process(); p != "" {
		text += ", " + p
	}
	return text
}
