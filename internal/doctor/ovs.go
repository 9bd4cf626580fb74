package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/ovs"
	"vmnet/internal/ovsdb"
	"vmnet/tapmgr/nic"
)

// geneveBytes is what a tunnel of OVN adds to a frame's payload over IPv4: IPv4, UDP, Geneve with
// OVN's option, and the guest's Ethernet header.
const geneveBytes = 20 + 8 + 16 + 14

// openVSwitch checks the database of this machine's Open vSwitch: ports that are left of devices
// that have gone, vmnet's or not, and the usual mistakes of a chassis of OVN. A machine
// without one has no such check.
func (m Machine) openVSwitch(ctx context.Context) []Check {
	const name = "Open vSwitch"
	path := m.at(ovsdb.DefaultPath)
	if _, err := os.Stat(path); err != nil || m.NS == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ovs.ReadWait)
	defer cancel()
	var ports []ovs.Port
	var chassis *ovs.Chassis
	err := ovs.With(ctx, path, func(c *ovs.Conn) (err error) {
		if chassis, err = c.Chassis(ctx); err == nil {
			ports, err = c.Ports(ctx)
		}
		return err
	})
	if err != nil {
		return warn(name, "", "%v", err)
	}
	nl, err := rtnl.Open(m.NS)
	if err != nil {
		return fail(name, "", "%v", err)
	}
	defer nl.Close()
	links, err := nl.Links("", 0)
	if err != nil {
		return fail(name, "", "%v", err)
	}
	checks := append(m.leftPorts(name, ports, links), chassisChecks(chassis)...)
	checks = append(checks, narrowTunnels(nl, chassis, links)...)
	if len(checks) > 0 {
		return checks
	}
	return ok(name, "%d ports, none is left of a device that has gone", len(ports))
}

// leftPorts names the ports whose devices have gone: vmnet's, and those of others.
func (m Machine) leftPorts(name string, ports []ovs.Port, links []*rtnl.Link) (checks []Check) {
	names, there := map[int]string{}, map[string]bool{}
	for _, l := range links {
		names[l.Index], there[l.Name] = l.Name, true
	}
	inode, err := m.NS.Inode()
	if err != nil {
		return fail(name, "", "%v", err)
	}
	here := ovs.Here(inode)
	var ours, others []string
	for _, p := range ports {
		switch {
		case p.IsStale(here, names):
			ours = append(ours, p.Name)
		case p.IsAbandoned(func(name string) bool { return there[name] }):
			others = append(others, p.Name)
		}
	}
	if len(ours) > 0 {
		checks = append(checks, warn(name, "vmnet reconcile; vmnet watch does it by itself",
			"%s of guests of vmnet that have ended: %s", countPorts(ours), some(ours))...)
	}
	if len(others) > 0 {
		checks = append(checks, warn(name, "vmnet reconcile --foreign-rows, if nobody needs them",
			"%s of others whose devices have gone: %s", countPorts(others), some(others))...)
	}
	return checks
}

func countPorts(names []string) string {
	if len(names) == 1 {
		return "1 port"
	}
	return fmt.Sprintf("%d ports", len(names))
}

// some returns the first names of many.
func some(names []string) string {
	const most = 8
	slices.Sort(names)
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
}

// chassisChecks looks for the usual mistakes in the settings of ovn-controller(8).
func chassisChecks(c *ovs.Chassis) (checks []Check) {
	const name = "OVN"
	if c.Remote == "" {
		return nil
	}
	const set = "ovs-vsctl set open . external_ids:"
	for _, s := range []struct{ key, value, cure string }{
		{"system-id", c.ID, set + "system-id=$(cat /etc/machine-id)"},
		{"ovn-encap-type", c.EncapType, set + "ovn-encap-type=geneve"},
		{"ovn-encap-ip", c.EncapIP, set + "ovn-encap-ip=ADDRESS, one that the other hosts reach"},
	} {
		if s.value == "" {
			checks = append(checks, fail(name, s.cure, "the chassis has no %s, so it does not join", s.key)...)
		}
	}
	if !c.HasBridge {
		checks = append(checks, fail(name, "systemctl start ovn-host",
			"there is no bridge %s: ovn-controller, which makes it, does not run", c.Bridge)...)
	}
	return checks
}

// narrowTunnels names the NICs whose frames are longer than OVN's tunnels carry.
func narrowTunnels(nl *rtnl.Conn, c *ovs.Chassis, links []*rtnl.Link) []Check {
	ip, err := netip.ParseAddr(c.EncapIP)
	if err != nil || c.Remote == "" {
		return nil
	}
	most := 0
	own, err := nl.LinkWith(ip)
	for _, l := range links {
		if err == nil && l.Index == own {
			most = l.MTU - geneveBytes
		}
	}
	var long []string
	for _, l := range links {
		r, ok := nic.ParseRecord(l.Alias)
		if ok && r.Type == nic.TypeOVS && r.Source == c.Bridge && most > 0 && r.GuestMTU() > most {
			long = append(long, r.VM+"/"+r.NIC)
		}
	}
	if len(long) == 0 {
		return nil
	}
	return warn("OVN", fmt.Sprintf("attach them again with --mtu %d, or give the tunnels' network a larger MTU", most),
		"guests may send longer frames than its tunnels carry, which are lost: %s", some(long))
}
