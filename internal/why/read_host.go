package why

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/procview"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/firewall"
	"vmnet/internal/network/roster"
	"vmnet/internal/ovs"
	"vmnet/internal/switches"
)

// processOf reads how a VMM's process is (proc_pid_stat(5)).
func processOf(pid int) Process {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Process{}
	}
	p := Process{Seen: true}
	if end := strings.LastIndex(string(text), ") "); end >= 0 && len(text) > end+2 {
		state := text[end+2]
		p.Halted = state == 'T' || state == 't'
	}
	_, p.Vhost = procview.VhostTimes([]int{pid})[pid]
	return p
}

func (r *reader) readBridge(context.Context) {
	l := r.Facts.NIC.Link
	if l == nil || r.Facts.NIC.Netns != "" {
		return
	}
	br := r.at(l.Master)
	if br == nil || br.Bridge == nil {
		return
	}
	var err error
	if br.Bridge.VLANFiltering {
		r.VLANs, err = r.nl.PortVLANs(0)
		r.missing(PartVLANs, err)
	}
	r.FDB, err = r.nl.FDB(br.Index, 0)
	r.missing(PartFDB, err)
}

// routeTo asks the kernel for the link by which it sends; 0 if there is no route.
func (r *reader) routeTo(a netip.Addr) (link int, err error) {
	if link, err = r.nl.RouteTo(a); errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH) {
		return 0, nil
	}
	return link, err
}

// waysTo asks for the routes to the other hosts of VXLAN ports.
func (r *reader) waysTo(ports []control.Port) (map[netip.Addr]int, error) {
	ways := map[netip.Addr]int{}
	for _, p := range ports {
		if p.VXLAN == nil {
			continue
		}
		for _, a := range p.VXLAN.Remotes {
			link, err := r.routeTo(a)
			if err != nil {
				return nil, err
			}
			ways[a] = link
		}
	}
	return ways, nil
}

// readRoutes asks the kernel where it sends to the target and to the guest.
func (r *reader) readRoutes(context.Context) {
	to := func(a Route) (_ Route) {
		if !a.Addr.IsValid() {
			return a
		}
		var err error
		a.Link, err = r.routeTo(a.Addr)
		r.missing(PartRoutes, err)
		return a
	}
	r.Out = to(Route{Addr: r.Facts.To.Addr})
	r.Back = to(Route{Addr: r.Facts.NIC.address(r.Facts.To.Addr)})
	var err error
	r.Proxies, err = r.nl.Proxies()
	r.missing(PartProxies, err)
}

func (r *reader) readSettings(context.Context) {
	names := []string{
		forwarding.IP4, forwarding.IP6, "net/ipv4/conf/all/rp_filter", "net/bridge/bridge-nf-call-iptables",
		"net/bridge/bridge-nf-call-ip6tables", "net/bridge/bridge-nf-call-arptables",
	}
	for _, l := range r.ways() {
		names = append(names, "net/ipv4/conf/"+l.Name+"/rp_filter", "net/ipv4/conf/"+l.Name+"/forwarding",
			"net/ipv6/conf/"+l.Name+"/forwarding", "net/ipv6/conf/"+l.Name+"/disable_ipv6")
	}
	settings := forwarding.Settings{NS: r.NS}
	for _, name := range names {
		if value, ok, err := settings.Read(name); ok && err == nil {
			r.Settings[name] = value
		}
	}
	_ = r.NS.Do(func() error {
		r.ServesDHCP = listensUDP("/proc/thread-self/net/udp", 67)
		return nil
	})
	if text, err := os.ReadFile("/proc/sys/net/ipv4/neigh/default/gc_thresh3"); err == nil { // of all namespaces
		r.Neighbours.Most, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	r.Neighbours.Entries = neighbourEntries("/proc/net/stat/arp_cache")
}

// ways lists the links by which the host may get what the NIC sends.
func (r *reader) ways() (found []*rtnl.Link) {
	n := r.Facts.NIC
	for _, l := range r.Links {
		if n.Link == nil || n.Netns != "" {
			break
		}
		if l.Index == n.Link.Index || l.Index == n.Link.Master || l.Kind == "vlan" && l.Lower == n.Link.Master {
			found = append(found, l)
		}
	}
	if r.Switch != nil {
		for _, p := range r.Switch.Ports {
			if l := r.link(p.Device); p.Kind == control.Tun && l != nil {
				found = append(found, l)
			}
		}
	}
	return found
}

// maxLines bounds what is read of a table of the kernel.
const maxLines = 1 << 16

// listensUDP reports whether a socket is bound to a port (proc_net(5), udp).
func listensUDP(path string, port int) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	want := fmt.Sprintf(":%04X", port)
	lines := bufio.NewScanner(f)
	for n := 0; n < maxLines && lines.Scan(); n++ {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && strings.HasSuffix(fields[1], want) {
			return true
		}
	}
	return false
}

// neighbourEntries returns how many entries the table of neighbours of all namespaces has: the
// first column, in hexadecimal, of each row (neigh_stat_seq_show in net/core/neighbour.c).
func neighbourEntries(path string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) < 2 {
		return 0
	}
	first, _, _ := strings.Cut(strings.TrimSpace(lines[1]), " ")
	n, err := strconv.ParseUint(first, 16, 31)
	if err != nil {
		return 0
	}
	return int(n)
}

func (r *reader) readFirewall(ctx context.Context) {
	h, err := firewall.Read(ctx, r.NS)
	if err != nil {
		r.missing(PartFirewall, err)
		return
	}
	r.Firewall = &h
}

// readNetwork reads the network whose bridge the NIC is on, and how it differs from its file.
func (r *reader) readNetwork(ctx context.Context) {
	n := r.Facts.NIC
	name := n.Network
	if n.Link != nil && name == "" && n.Netns == "" {
		if br := r.at(n.Link.Master); br != nil {
			name = roster.NetworkOf(br)
		}
	}
	if name == "" {
		return
	}
	found, err := r.Dir.Read(name)
	if err != nil {
		r.missing(PartNetwork, err)
		return
	}
	r.Network = found
	m := &network.Manager{NS: r.NS, Dir: r.Dir, State: dhcp.DefaultState}
	if err := m.Open(); err != nil {
		r.missing(PartNetwork, err)
		return
	}
	defer m.Close()
	c, err := m.Check(ctx, name)
	r.missing(PartNetwork, err)
	for _, d := range c.Differences {
		r.Differences = append(r.Differences, Difference{d.What, d.Want, d.Found, d.Mend})
	}
}

// readRadios finds the Wi-Fi cards among those by which the frame may leave.
func (r *reader) readRadios(context.Context) {
	n := r.Facts.NIC
	for _, l := range r.Links {
		isOn := n.Link != nil && n.Netns == "" && l.Master == n.Link.Master && l.Master != 0
		if l.Kind != "" || !isOn && l.Name != n.Lower && l.Name != n.Source {
			continue
		}
		if wireless, err := macvlan.IsWireless(r.NS, l.Name); err == nil && wireless {
			r.Radios = append(r.Radios, l.Name)
		}
	}
}

func (r *reader) readOVS(ctx context.Context) {
	n := r.Facts.NIC
	if !n.IsOVS() {
		return
	}
	r.missing(PartOVS, ovs.With(ctx, n.OVSDB, func(c *ovs.Conn) (err error) {
		r.OVS, err = c.Ports(ctx)
		return err
	}))
	w := &walker{Facts: r.Facts}
	in := w.row(n)
	if in == nil || in.Bridge == "" || in.OFPort <= 0 {
		return
	}
	text, err := ovs.Trace(ctx, n.OVSDB, in.Bridge, w.flow(in))
	if err != nil {
		r.missing(PartTrace, err)
		return
	}
	actions, ports := ovs.Actions(text)
	r.Trace = &Trace{Actions: actions, Ports: map[string]bool{}}
	for _, p := range ports {
		r.Trace.Ports[p] = true
	}
}

// maxSwitchEntries bounds what is read of a switch, which any user can run.
const maxSwitchEntries = 4096

func (r *reader) readSwitch(ctx context.Context) {
	n := r.Facts.NIC
	if !n.Switch || n.Socket == "" {
		return
	}
	s := &Switch{}
	err := switches.With(ctx, n.Socket, func(ctx context.Context, c *control.Client) error {
		err := c.EachPort(ctx, func(p control.Port) error {
			if len(s.Ports) < maxSwitchEntries {
				s.Ports = append(s.Ports, p)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return c.EachFDB(ctx, func(e control.FDBEntry) error {
			if len(s.Learned) < maxSwitchEntries {
				s.Learned = append(s.Learned, e)
			}
			return nil
		})
	})
	if err != nil {
		r.missing(PartSwitch, err)
		return
	}
	r.Switch = s
	if s.Ways, err = r.waysTo(s.Ports); err != nil {
		r.missing(PartRoutes, err)
	}
}
