package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/ovs"
	"vmnet/internal/ovsdb"
	"vmnet/tapmgr/nic"
)

// OVSPort is what Open vSwitch says of a NIC that belongs on one of its bridges.
type OVSPort struct {
	Port *ovs.Port // nil: it has no such port, or could not be asked
	Err  error     // why it could not be asked
}

var errSilent = errors.New("the database of Open vSwitch does not answer")

// IsOVS reports whether the NIC belongs on a bridge of Open vSwitch.
func (dev *Device) IsOVS() bool { return dev.Want.Type == nic.TypeOVS }

// OVSOwner returns what a port's row says of a NIC with that record, whose tap has that interface
// index.
func (h *Host) OVSOwner(r nic.Record, index int) (ovs.Owner, error) {
	netns, err := h.NS.Inode()
	return ovs.Owner{VM: r.VM, NIC: r.NIC, Place: ovs.Here(netns), Link: index}, err
}

// ReadOVS asks Open vSwitch for the ports of those of the devices that belong on its bridges, each
// database once. What it says of the bridge is the device's MasterName.
func (h *Host) ReadOVS(ctx context.Context, devs ...*Device) {
	byPath := map[string][]*Device{}
	for _, dev := range devs {
		if dev.IsOVS() && dev.HasLink() {
			byPath[dev.Want.OVSDB] = append(byPath[dev.Want.OVSDB], dev)
		}
	}
	for path, some := range byPath {
		ports, err := h.readOVS(ctx, path, some)
		for _, dev := range some {
			dev.OVS = OVSPort{Err: err}
			i := slices.IndexFunc(ports, func(p ovs.Port) bool { return p.Name == dev.Name })
			if i < 0 {
				continue
			}
			dev.OVS.Port = &ports[i]
			if dev.MasterName == "" {
				dev.MasterName = ports[i].Bridge
			}
		}
	}
}

func (h *Host) readOVS(ctx context.Context, path string, some []*Device) (ports []ovs.Port, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, ovs.ReadWait, errSilent)
	defer cancel()
	var names []string
	for _, dev := range some {
		names = append(names, dev.Name)
	}
	err = ovs.With(ctx, path, func(c *ovs.Conn) (err error) {
		ports, err = c.Named(ctx, names...)
		return err
	})
	return ports, err
}

// StaleOVS returns the ports in the database with that socket that vmnet has made for devices that
// have gone.
func (h *Host) StaleOVS(ctx context.Context, path string) (stale []ovs.Port, err error) {
	netns, err := h.NS.Inode()
	if err != nil {
		return nil, err
	}
	here := ovs.Here(netns)
	ctx, cancel := context.WithTimeoutCause(ctx, ovs.ReadAllWait, errSilent)
	defer cancel()
	var ports []ovs.Port
	err = ovs.With(ctx, path, func(c *ovs.Conn) (err error) {
		ports, err = c.Ports(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	links, err := h.NL.Links("tun", 0) // after the rows, so that a device of a row is among them
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	for _, p := range ports {
		if p.IsStale(here, func(index int) string { return names[index] }) {
			stale = append(stale, p)
		}
	}
	return stale, nil
}

// Databases returns the sockets of the databases of Open vSwitch in which NICs have, or had, ports:
// those given, or the usual one, and those of NICs that are there.
func (h *Host) Databases() []string {
	paths := slices.Clone(h.OVSDBs)
	if len(paths) == 0 {
		paths = []string{ovsdb.DefaultPath}
	}
	links, err := h.NL.Links("tun", 0)
	if err != nil {
		return paths
	}
	for _, l := range links {
		if r, ok := nic.ParseRecord(l.Alias); ok && r.OVSDB != "" && !slices.Contains(paths, r.OVSDB) {
			paths = append(paths, r.OVSDB)
		}
	}
	return paths
}

// isDatapath reports whether a link stands for all bridges of Open vSwitch in the kernel's
// datapath, as the master of their ports.
func isDatapath(l *rtnl.Link) bool { return l != nil && l.Kind == "openvswitch" }

// ovsState returns the state of a NIC's port.
func (dev *Device) ovsState() nic.State {
	switch p := dev.OVS.Port; {
	case !dev.Up:
		return nic.Down
	case dev.OVS.Err != nil:
		return nic.Unknown
	case p == nil:
		return nic.NoBridge
	case p.Trouble() != "":
		return nic.PortError
	case p.IsOVNs && !p.Installed:
		return nic.NoFlows
	}
	return nic.State(rtnl.Forwarding.String())
}

// knowsOVS reports whether Open vSwitch was asked about the NIC, and has its port.
func (v *View) knowsOVS() bool { return v.IsOVS() && v.OVS.Port != nil }

func wantIDs(v *View) string {
	return fmt.Sprintf("iface-id %s, attached-mac %s", v.Want.OVSIfaceID(), v.Want.MAC)
}

func foundIDs(v *View) string {
	return fmt.Sprintf("iface-id %s, attached-mac %s", v.OVS.Port.IfaceID, v.OVS.Port.MAC)
}

const working = "working"

func foundTrouble(v *View) string { return cmp.Or(v.OVS.Port.Trouble(), working) }

func mendTrouble(v *View) Remedy {
	r := byAdmin("ovs-vsctl list Interface %s; systemctl status openvswitch-switch", v.Name)
	r.left = fmt.Sprintf("its port does not work, in the words of Open vSwitch: %.300q (%s)",
		v.OVS.Port.Trouble(), r.Cure)
	return r
}

// mendOVSBridge is about a NIC whose port is not on its bridge of Open vSwitch.
func mendOVSBridge(v *View) Remedy {
	if v.MasterName != "" {
		r := byAdmin("take %s off %s; then vmnet reconcile", v.Name, v.MasterName)
		r.left = fmt.Sprintf("it is a port of %s, not of %s", v.MasterName, v.Want.Source)
		return r
	}
	return byReconcile(fmt.Sprintf("OVSDB transact: insert Port %s of %s", v.Name, v.Want.Source),
		"put back on "+v.Want.Source, Fix{Kind: FixBridge})
}

func mendOVSPort(v *View) Remedy {
	return byReconcile(fmt.Sprintf("OVSDB transact: update Port %s: %s, %s", v.Name,
		OrNothing(v.Want.PortConfig().String()), wantIDs(v)),
		"its row in Open vSwitch's database set back", Fix{Kind: FixPort})
}
