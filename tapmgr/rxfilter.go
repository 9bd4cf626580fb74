package tapmgr

import (
	"context"
	"fmt"
	"net"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// A Mirror is a macvtap or ipvtap that receives the multicast groups that its guest's driver has
// asked for (nic.RxMirror), and the guest that holds it.
type Mirror struct {
	VM, NIC, Interface string
	MAC                net.HardwareAddr // that the guest should have
	Device             string           // the NIC's id in QEMU

	PID        int    // of the guest's VMM
	IsLibvirts bool   // libvirt manages the guest, as its VMM says
	UUID       string // of the guest, as its VMM says

	dev inventory.Device
}

// Mirrors returns those that a QEMU holds, by guest and id. It looks at all processes.
func (m *Manager) Mirrors(ctx context.Context) ([]Mirror, error) {
	links, err := m.host.AllDevices(ctx)
	if err != nil {
		return nil, err
	}
	var found []Mirror
	for _, dev := range links {
		if dev.Want.RxFilter != nic.RxMirror || dev.Tun != nil || !dev.HasLink() {
			continue
		}
		guest, err := qemu.ByPID(dev.VMMPID())
		if err != nil {
			continue
		}
		x := Mirror{VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, MAC: dev.Want.MAC, Device: nic.DeviceID(dev.Want.NIC), PID: guest.PID, IsLibvirts: guest.Libvirt, UUID: guest.UUID, dev: dev}
		if dev.Want.Via == nic.ViaLibvirt {
			x.Device = nic.LibvirtAlias(dev.Want.NIC)
		}
		found = append(found, x)
	}
	return found, nil
}

// Follow makes the device take in those multicast groups and no others. The guest's address stays
// the one that it was given. A device that is gone Is fs.ErrNotExist.
func (m *Manager) Follow(x Mirror, groups []net.HardwareAddr) (changed bool, err error) {
	err = m.host.Within(&x.dev, func(ns *netns.NS, nl *rtnl.Conn) error {
		if changed, err = macvlan.SetGroups(ns, x.dev.Link, groups); err != nil {
			return err
		}
		c, err := setAllMulti(nl, x.dev.Index, false) // last, so that no group is missing for a moment
		changed = changed || c
		return err
	})
	return changed, err
}

// TakeAll makes the device take in all multicast, as it did before it was first told to follow.
func (m *Manager) TakeAll(x Mirror) (changed bool, err error) {
	err = m.host.Within(&x.dev, func(_ *netns.NS, nl *rtnl.Conn) error {
		changed, err = setAllMulti(nl, x.dev.Index, true)
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

// WithMonitor runs use with a connection to the monitor of the guest that holds x, which must not
// be one of libvirt's. It waits for the monitor as long as ctx allows, and closes the connection
// afterwards.
func (m *Manager) WithMonitor(ctx context.Context, x Mirror, use func(*qmp.Conn) error) error {
	g, err := m.open(ctx, nic.Target{VM: x.VM, PID: x.PID}, "")
	if err != nil {
		return err
	}
	defer g.Close()
	if g.Monitor == nil {
		return fmt.Errorf("guest %s is %w", x.VM, qemu.ErrLibvirt)
	}
	return use(g.Monitor.QMP())
}
