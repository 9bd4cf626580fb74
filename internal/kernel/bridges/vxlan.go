package bridges

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"vmnet/bridge/vxlan"
	"vmnet/internal/alias"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// markVXLAN begins the alias of a bridge's VXLAN device, which the bridge's name follows.
const markVXLAN = alias.Prefix + "vxlan bridge="

// defaultMTU is that of Ethernet (IEEE 802.3), which guests expect.
const defaultMTU = 1500

// minMTU is the smallest MTU of IPv4 (RFC 791).
const minMTU = 68

// VXLANs returns the VXLAN devices that were made for a bridge, whether they are its ports or not.
func VXLANs(c *rtnl.Conn, bridge string) ([]*rtnl.Link, error) {
	all, err := c.Links("vxlan", 0)
	return slices.DeleteFunc(all, func(l *rtnl.Link) bool { return !isVXLANOf(l, bridge) }), err
}

func isVXLANOf(l *rtnl.Link, bridge string) bool {
	return l.VXLAN != nil && l.Alias == markVXLAN+alias.Escape(bridge)
}

// VXLANOf returns the name of the bridge for which a VXLAN device was made.
func VXLANOf(l *rtnl.Link) (bridge string, ok bool) {
	value, ok := strings.CutPrefix(l.Alias, markVXLAN)
	if !ok || l.VXLAN == nil {
		return "", false
	}
	_, bridge, err := alias.Field("bridge=" + value)
	return bridge, err == nil
}

// VXLANMTU returns the MTU in bytes of a new VXLAN device: want or, if that is 0, that of Ethernet
// or the largest that the network between the hosts carries. It refuses a want that is larger, and
// a local address that the host does not have.
func VXLANMTU(c *rtnl.Conn, cfg vxlan.Config, want int) (int, error) {
	under, err := underlay(c, cfg)
	if err != nil {
		return 0, err
	}
	if under == nil { // nothing says by which link the frames will leave
		return cmp.Or(want, defaultMTU), nil
	}
	most := under.MTU - cfg.Overhead()
	switch {
	case most < max(want, minMTU):
		return 0, fmt.Errorf("MTU %d: its frames need %d bytes on %s, which has %d (ip link set %s mtu %d, on each "+
			"host and switch between them, or --mtu %d)", max(want, minMTU), max(want, minMTU)+cfg.Overhead(),
			under.Name, under.MTU, under.Name, max(want, minMTU)+cfg.Overhead(), max(most, minMTU))
	case want == 0:
		return min(most, defaultMTU), nil
	}
	return want, nil
}

// underlay returns the link with the smallest MTU by which frames leave, as far as that is known:
// by the routes to the remote hosts or, without any, as the link that has the local address. On
// loopback, where hosts with several uplinks have it, it says nothing.
func underlay(c *rtnl.Conn, cfg vxlan.Config) (least *rtnl.Link, err error) {
	own, err := c.LinkWith(cfg.Local)
	if err != nil {
		return nil, err
	}
	if own == 0 {
		return nil, fmt.Errorf("local address %s: this host does not have it (ip addr)", cfg.Local)
	}
	indexes := []int{own}
	if cfg.Static() {
		indexes = nil
	}
	for _, a := range cfg.Remotes {
		index, err := c.RouteTo(a)
		if err != nil {
			return nil, fmt.Errorf("remote address %s: %w (ip route get %[1]s)", a, err)
		}
		indexes = append(indexes, index)
	}
	for _, index := range indexes {
		l, err := c.LinkByIndex(index)
		switch {
		case err != nil:
			return nil, err
		case l.ARP && (least == nil || l.MTU < least.MTU):
			least = l
		}
	}
	return least, nil
}

// VXLANSteps make the VXLAN device of a bridge and its port as cfg says; what is so already is left
// out. there reads the bridge. mtu is in bytes; 0 means that of Ethernet or what the network
// between the hosts carries, and matches any of an existing device. If an existing device differs
// in more than its remote hosts, the error matches fs.ErrExist with errors.Is.
//
// A device with remote hosts of its own learns which guest is behind which. One without learns
// nothing, and its port neither: what FRR has added must not be overwritten. FRR wants ARP and ND
// suppressed there (its EVPN documentation). A map may change in place, as the remote hosts do.
func VXLANSteps(c *rtnl.Conn, bridge string, cfg vxlan.Config, mtu int, there func() (*rtnl.Link, error),
) ([]step.Step, error) {
	own, err := VXLANs(c, bridge)
	if err != nil {
		return nil, err
	}
	if len(own) == 0 {
		return newVXLANSteps(c, bridge, cfg, mtu, there)
	}
	l := own[0]
	if l.Name != cfg.Interface(bridge) {
		return nil, Taken("%s has the VXLAN device %s already (vmnet bridge delete %[1]s)", bridge, l.Name)
	}
	if diff := vxlanDifferences(l, cfg, mtu); len(diff) > 0 {
		return nil, Taken("%s differs: %s (vmnet bridge delete %s)", l.Name, strings.Join(diff, ", "), bridge)
	}
	return vxlanSteps(c, bridge, cfg, mtu, l, there)
}

// ReplaceVXLANSteps are VXLANSteps for a bridge whose device may be replaced: former deletes what
// differs in more than its remote hosts, and own makes another.
func ReplaceVXLANSteps(c *rtnl.Conn, bridge string, cfg vxlan.Config, mtu int, there func() (*rtnl.Link, error),
) (former, own []step.Step, err error) {
	all, err := VXLANs(c, bridge)
	if err != nil {
		return nil, nil, err
	}
	for _, l := range all {
		if l.Name == cfg.Interface(bridge) && len(vxlanDifferences(l, cfg, mtu)) == 0 {
			own, err = vxlanSteps(c, bridge, cfg, mtu, l, there)
			return nil, own, err
		}
	}
	for _, l := range all {
		s, err := deleteVXLANStep(c, bridge, l, there)
		if err != nil {
			return nil, nil, err
		}
		former = append(former, s)
	}
	own, err = newVXLANSteps(c, bridge, cfg, mtu, there)
	return former, own, err
}

// newVXLANSteps make a device whose name only another one of the bridge may have now.
func newVXLANSteps(c *rtnl.Conn, bridge string, cfg vxlan.Config, mtu int, there func() (*rtnl.Link, error),
) ([]step.Step, error) {
	l, err := c.Link(cfg.Interface(bridge))
	switch {
	case err == nil && !isVXLANOf(l, bridge):
		return nil, Taken("there is a device %s that was not made for %s (ip -d link show %[1]s)", l.Name, bridge)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if mtu, err = VXLANMTU(c, cfg, mtu); err != nil {
		return nil, err
	}
	return vxlanSteps(c, bridge, cfg, mtu, nil, there)
}

// deleteVXLANStep deletes a device of a bridge. Undone, there is another like it.
func deleteVXLANStep(c *rtnl.Conn, bridge string, l *rtnl.Link, there func() (*rtnl.Link, error)) (step.Step, error) {
	was, err := vxlanConfig(c, l)
	return step.Step{
		Name: "no " + l.Name, Text: "ip link del " + l.Name,
		Do: func(context.Context) error { return rtnl.IgnoreNotExist(c.Delete(l.Index)) },
		Undo: func(ctx context.Context) error {
			if _, err := c.Link(l.Name); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			steps, err := vxlanSteps(c, bridge, was, l.MTU, nil, there)
			if err != nil {
				return err
			}
			return step.Run(ctx, steps, nil)
		},
	}, err
}

// vxlanConfig returns what a device would be made from.
func vxlanConfig(c *rtnl.Conn, l *rtnl.Link) (cfg vxlan.Config, err error) {
	cfg = vxlan.Config{VNI: l.VXLAN.VNI, Local: l.VXLAN.Local, Port: l.VXLAN.Port}
	if l.VXLAN.VNIFilter {
		m, err := ReadMap(c, l)
		if err != nil {
			return cfg, err
		}
		cfg.Map = m.mapped()
	}
	if l.VXLAN.Learning {
		cfg.Remotes, err = Floods(c, l.Index)
	}
	return cfg, err
}

// Taken returns an error that matches fs.ErrExist without its text, which is about files.
func Taken(format string, args ...any) error { return existing(fmt.Sprintf(format, args...)) }

type existing string

func (e existing) Error() string        { return string(e) }
func (e existing) Is(target error) bool { return target == fs.ErrExist }

func vxlanDifferences(l *rtnl.Link, cfg vxlan.Config, mtu int) (diff []string) {
	add := func(what string, is, want any) {
		if is != want {
			diff = append(diff, fmt.Sprintf("%s is %v, asked for %v", what, is, want))
		}
	}
	add("VNI", l.VXLAN.VNI, cfg.VNI)
	add("filter of VNIs", l.VXLAN.VNIFilter, cfg.Map != nil)
	add("local address", l.VXLAN.Local, cfg.Local)
	add("port", l.VXLAN.Port, cfg.UDPPort())
	if mtu != 0 {
		add("MTU", l.MTU, mtu)
	}
	learns := map[bool]string{true: "listed", false: "added by another program"}
	add("remote hosts", learns[l.VXLAN.Learning], learns[cfg.Static()])
	return diff
}

// vxlanSteps are VXLANSteps for the existing device l, or a new one if l is nil.
func vxlanSteps(c *rtnl.Conn, bridge string, cfg vxlan.Config, mtu int, l *rtnl.Link,
	there func() (*rtnl.Link, error),
) (steps []step.Step, err error) {
	v := vxlanDevice{c: c, bridge: bridge, Config: cfg, mtu: mtu, there: there}
	var has []rtnl.Flood
	if l == nil {
		steps = append(steps, v.createStep())
	} else if has, err = floods(c, l.Index); err != nil {
		return nil, err
	}
	port := l == nil || l.Port == nil || l.Port.Learning != cfg.Static() || cfg.Map != nil && !l.Port.VLANTunnel
	if port {
		steps = append(steps, v.portStep())
	}
	if !cfg.Static() {
		has = nil // whose they are is not known
		if l == nil || l.Port == nil || !l.Port.NeighSuppress {
			steps = append(steps, v.suppressStep())
		}
	}
	if cfg.Map != nil {
		segments, err := v.mapSteps(l)
		if err != nil {
			return nil, err
		}
		steps = append(steps, segments...)
	}
	steps = append(steps, v.floodSteps(has)...)
	if port || !l.Up {
		steps = append(steps, v.upStep())
	}
	return steps, nil
}

// Floods returns the hosts to which a VXLAN device sends broadcasts, of any VNI.
func Floods(c *rtnl.Conn, index int) (hosts []netip.Addr, err error) {
	all, err := floods(c, index)
	for _, f := range all {
		hosts = append(hosts, f.Dst)
	}
	slices.SortFunc(hosts, netip.Addr.Compare)
	return slices.Compact(hosts), err
}

func floods(c *rtnl.Conn, index int) (all []rtnl.Flood, err error) {
	entries, err := c.RemoteFDB(index)
	for _, e := range entries {
		if e.IsFlood() {
			all = append(all, rtnl.Flood{VNI: e.VNI, Dst: e.Dst})
		}
	}
	return all, err
}
