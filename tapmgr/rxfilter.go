package tapmgr

import (
	"context"
	"encoding/json"
	"fmt"
	"net"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/qemu"
	"vmnet/macvtap"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// Mirror is a macvtap or ipvtap that takes in the multicast groups that its guest's driver has asked for
// (RxMirror), and who holds it.
type Mirror struct {
	VM, NIC, Interface string
	MAC                net.HardwareAddr // that the guest should have
	Device             string           // the NIC's id in QEMU
	Guest              qemu.Process

	o ours
}

// Mirrors lists those that a QEMU holds, by guest and id. It looks at all processes.
func (m *Manager) Mirrors(ctx context.Context) ([]Mirror, error) {
	links, err := m.whole(ctx)
	if err != nil {
		return nil, err
	}
	var found []Mirror
	for _, o := range links {
		if o.want.RxFilter != nic.RxMirror || o.Tun != nil || !o.hasLink() {
			continue
		}
		guest, err := qemu.ByPID(o.vmm())
		if err != nil {
			continue
		}
		x := Mirror{VM: o.want.VM, NIC: o.want.NIC, Interface: o.Name, MAC: o.want.MAC, Device: nic.DeviceID(o.want.NIC), Guest: guest, o: o}
		if o.want.Via == nic.ViaLibvirt {
			x.Device = nic.LibvirtAlias(o.want.NIC)
		}
		found = append(found, x)
	}
	return found, nil
}

// Follow makes the device take in the groups that f names and no others, or all where the driver
// wants all or has not said what it wants: QEMU has it promiscuous until then, and so a guest without a driver.
// The guest's address stays the one that it was given. A device that is gone Is fs.ErrNotExist.
func (m *Manager) Follow(x Mirror, f qmp.RxFilter) (changed bool, err error) {
	groups, all := GroupsOf(f)
	if all {
		return m.TakeAll(x)
	}
	err = m.within(&x.o, func(ns *netns.NS, nl *rtnl.Conn) error {
		if changed, err = macvtap.SetGroups(ns, x.o.Link, groups); err != nil {
			return err
		}
		c, err := setAllMulti(nl, x.o.Index, false) // last, so that no group is missing for a moment
		changed = changed || c
		return err
	})
	return changed, err
}

// TakeAll makes the device take in all multicast, as it did before it was first told to follow.
func (m *Manager) TakeAll(x Mirror) (changed bool, err error) {
	err = m.within(&x.o, func(_ *netns.NS, nl *rtnl.Conn) error {
		changed, err = setAllMulti(nl, x.o.Index, true)
		return err
	})
	return changed, err
}

func setAllMulti(nl *rtnl.Conn, index int, on bool) (changed bool, err error) {
	l, err := nl.LinkByIndex(index)
	if err != nil || l.AllMulti == on {
		return false, err
	}
	return true, nl.Set(index, rtnl.AllMulti(on))
}

// GroupsOf tells what a driver wants to hear. What is no multicast address in its list, which the guest
// wrote, is left out.
func GroupsOf(f qmp.RxFilter) (groups []net.HardwareAddr, all bool) {
	switch {
	case f.Promiscuous, f.Multicast == "all", f.MulticastOverflow, len(f.MulticastTable) > macvtap.MaxGroups:
		return nil, true
	case f.Multicast == "none":
		return nil, false
	}
	for _, text := range f.MulticastTable {
		if mac, err := net.ParseMAC(text); err == nil && len(mac) == 6 && mac[0]&1 != 0 {
			groups = append(groups, mac)
		}
	}
	return groups, false
}

// RxFilters asks a guest that libvirt does not manage what the drivers of its NICs want, by a connection to its
// monitor that ends with that. It waits for the monitor as long as ctx allows.
func (m *Manager) RxFilters(ctx context.Context, x Mirror) ([]qmp.RxFilter, error) {
	vm, err := m.openMonitor(ctx, nic.Target{VM: x.VM, PID: x.Guest.PID})
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	var filters qmp.RxFilters
	err = vm.Execute(ctx, QueryRxFilter, nil, &filters)
	return filters, err
}

// QueryRxFilter is the command that RxFilters gives: without arguments it is about all NICs that have a filter.
const QueryRxFilter = "query-rx-filter"

// ParseRxFilters reads QEMU's whole reply to it.
func ParseRxFilters(reply string) ([]qmp.RxFilter, error) {
	var r struct {
		Return qmp.RxFilters `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(reply), &r); err != nil {
		return nil, fmt.Errorf("%s: %w", QueryRxFilter, err)
	}
	if r.Error != nil {
		return nil, fmt.Errorf("%s: QEMU refuses: %.200q", QueryRxFilter, r.Error.Desc)
	}
	return r.Return, nil
}
