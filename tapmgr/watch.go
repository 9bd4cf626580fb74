package tapmgr

import (
	"context"
	"fmt"
	"net"
	"slices"

	"vmnet/bridge/brport"
	"vmnet/internal/backend"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/switches"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// The methods in this file are what vmnet watch does when links or guests come and go.

// PutBack makes taps ports of the bridges of these names again, which were deleted and made again.
// Failures of a tap are in its action; the error is set only if the taps could not be read.
func (m *Manager) PutBack(bridges ...string) ([]nic.Action, error) { return m.host.PutBack(bridges...) }

// PutBackForeign is PutBack for the foreign tap of that name, of a guest's NIC of that MAC. done is
// false if there is nothing to do.
func (m *Manager) PutBackForeign(name string, mac net.HardwareAddr, bridgeName string,
	cfg brport.Settings,
) (done bool, err error) {
	return m.host.PutBackForeign(name, mac, bridgeName, cfg)
}

// ForeignWithoutMaster reports whether there is any tap that PutBackForeign might put on a bridge.
func (m *Manager) ForeignWithoutMaster() (bool, error) { return m.host.ForeignWithoutMaster() }

// SetForeignPortOf adds settings to the bridge port of the foreign tap of that interface index, of
// a guest's NIC of that MAC. If there is no such tap, or it is on no bridge, the error matches
// fs.ErrNotExist.
func (m *Manager) SetForeignPortOf(index int, mac net.HardwareAddr, cfg brport.Settings) (changed bool, err error) {
	return m.host.SetForeignPortOf(index, mac, cfg)
}

// KeepRouted restores what routed NICs lack of the host, and removes what those that have gone have
// left there. Failures of a NIC are in its action.
func (m *Manager) KeepRouted(ctx context.Context) ([]nic.Action, error) {
	return m.host.KeepRouted(ctx)
}

// KeepPoliced restores port security, the filters of --allow-in and rates that somebody has removed
// from the device of a NIC, unless it is in a netns of its own. Failures of a NIC are in its
// action.
func (m *Manager) KeepPoliced(ctx context.Context) ([]nic.Action, error) {
	return m.host.KeepPoliced(ctx)
}

// Rejoin makes NICs ports again of userspace switches that run and have lost them, as
// [Manager.Reconcile] does. Failures of a NIC are in its action; the error is set only if the NICs
// could not be read.
func (m *Manager) Rejoin(ctx context.Context) ([]nic.Action, error) {
	devices, err := m.host.Devices(ctx)
	if err != nil {
		return nil, err
	}
	lost := slices.DeleteFunc(devices, func(dev inventory.Device) bool {
		return !dev.IsDisconnected() || !dev.MayRejoin() || dev.Want.Phase != nic.PhasePlugged ||
			dev.ReconcileVerdict().Do != inventory.AskGuest || switches.Runs(dev.Want.Source) != nil
	})
	r := reconciler{backend.NewMending(m.host, false), m}
	r.guests(ctx, lost)
	return r.Actions, nil
}

// TidyOVS removes the rows that vmnet has made for NICs that have gone: from the databases of Open
// vSwitch with these sockets, of which the empty one is the usual one, or else from those that
// [Manager.Reconcile] looks into. The error matches ovsdb.ErrNotRunning if one of the former does
// not run; of the latter none needs to.
func (m *Manager) TidyOVS(ctx context.Context, paths ...string) ([]nic.Action, error) {
	if len(paths) == 0 {
		paths = m.host.Databases()
	} else if err := m.host.RunsOVS(ctx, paths...); err != nil {
		return nil, err
	}
	return m.host.TidyOVS(ctx, false, nil, paths...)
}

// Ended removes the host interfaces that were handed over by their names to a libvirt guest, or to
// any if vm is empty, and that no process holds any more. remain reports whether there are others
// that may be orphaned later.
func (m *Manager) Ended(ctx context.Context, vm string) (actions []nic.Action, remain bool, err error) {
	return m.host.Ended(ctx, vm)
}

// SetBackAddress gives the tap of that interface index the address that it should have on the
// host's side, which a process that holds the tap can change. The action's Changed is false if the
// tap has that already, or if there is no such tap.
func (m *Manager) SetBackAddress(index int) (nic.Action, error) { return m.host.SetBackAddress(index) }

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
		x := Mirror{
			VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, MAC: dev.Want.MAC,
			Device: nic.DeviceID(dev.Want.NIC), PID: guest.PID, IsLibvirts: guest.Libvirt, UUID: guest.UUID, dev: dev,
		}
		if dev.Want.Via == nic.ViaLibvirt {
			x.Device = nic.LibvirtAlias(dev.Want.NIC)
		}
		found = append(found, x)
	}
	return found, nil
}

// Follow makes the host interface receive those multicast groups and no others. The guest's address
// stays. If the interface is gone, the error matches fs.ErrNotExist.
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

// TakeAll makes the host interface receive all multicast, as before the first Follow.
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

// WithMonitor runs use with a connection to the monitor of the guest that holds x, which libvirt
// must not manage. It waits for the monitor until ctx ends, and closes the connection afterwards.
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
