package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/internal/backend"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// release makes QEMU close a host interface whose device is not plugged, and waits until it is
// gone. The caller has checked that no other process holds it.
func (m *Manager) release(ctx context.Context, g *guest.Guest, dev *inventory.Device) error {
	if dev != nil && !dev.HasLink() {
		return m.releaseSocket(ctx, g, dev)
	}
	err := m.removeReleased(dev, g.PID(), func() error { return g.Rollback(ctx, dev.Want) })
	if err != nil {
		return err
	}
	now, err := m.host.Reread(ctx, dev)
	if err != nil || now == nil {
		return err
	}
	if now.HasNoHolder() {
		return m.host.Delete(now) // a persistent one
	}
	if m.host.WaitGoneFor(ctx, dev, backend.UndoWait) == nil {
		return nil
	}
	tried := g.RollbackElsewhere(ctx, dev.Want)
	return errors.Join(m.host.WaitGoneFor(ctx, dev, backend.ReleaseWait), tried)
}

// releaseSocket is release for a NIC without a link: its port and its label show whether it is
// gone.
func (m *Manager) releaseSocket(ctx context.Context, g *guest.Guest, dev *inventory.Device) error {
	err := errors.Join(g.Rollback(ctx, dev.Want), m.host.DisconnectSwitch(ctx, dev))
	if err != nil {
		return err
	}
	now, err := m.host.Reread(ctx, dev)
	if err != nil || now == nil {
		return err
	}
	tried := g.RollbackElsewhere(ctx, dev.Want)
	if now, err = m.host.Reread(ctx, dev); err != nil || now == nil {
		return err
	}
	return errors.Join(fmt.Errorf("%w: NIC %s, by process %d", nic.ErrInUse, dev.Name, now.VMMPID()), tried)
}

// removeReleased runs release, which makes a VMM release a device, and then deletes a macvtap that
// is not held any more. The kernel would do so only some time later, and the macvtap's address and
// parent device would be taken until then.
func (m *Manager) removeReleased(dev *inventory.Device, pid int, release func() error) error {
	if dev == nil || dev.NetnsFile == nil {
		return release()
	}
	ns, err := netns.OpenHeld(*dev.NetnsFile)
	if err != nil { // it is going already
		return release()
	}
	defer ns.Close()
	if err := release(); err != nil {
		return err
	}
	fds, err := macvlan.QueuesOf(pid, ns, dev.Link)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || len(fds) > 0 { // QEMU keeps it until the guest releases the device
		return err
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	return rtnl.IgnoreNotExist(nl.Delete(dev.Index))
}

// checkReleasable returns an error if a host interface, whose device is not plugged into the locked
// guest, must not be removed: another process holds it.
func (m *Manager) checkReleasable(ctx context.Context, dev *inventory.Device, g *guest.Guest) error {
	now, err := m.host.Reread(ctx, dev)
	if err != nil || now == nil {
		return err
	}
	for _, h := range now.Holders {
		if h.PID != g.PID() {
			return fmt.Errorf("%w: interface %s, which process %d holds", nic.ErrInUse, dev.Name, h.PID)
		}
	}
	return g.Alive() // until then its PID means the guest
}
