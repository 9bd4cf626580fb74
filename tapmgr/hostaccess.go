package tapmgr

import (
	"context"
	"net/netip"

	"vmnet/internal/hostaccess"
	"vmnet/tapmgr/nic"
)

// SetHostAccess switches the host access of a parent device on or off, by its name or altname: a
// macvlan by which the host and the macvtap guests on that device reach each other. It stays until
// it is switched off, or the machine shuts down. On again adds the addresses that are missing and
// changes nothing else; off again succeeds. SetHostAccess returns what is there now, or was until
// now. If it fails it leaves everything as it was.
func (m *Manager) SetHostAccess(ctx context.Context, parent string, on bool, addrs []netip.Prefix) (
	a nic.HostAccess, changed bool, err error,
) {
	return hostaccess.On(m.host).Set(ctx, parent, on, addrs)
}

// HostAccesses returns the host accesses, by parent device.
func (m *Manager) HostAccesses() ([]nic.HostAccess, error) { return hostaccess.On(m.host).List() }

// ShowParent describes the parent device of that name or altname: whether it has host access, and
// which guests' NICs are on it.
func (m *Manager) ShowParent(ctx context.Context, name string) (nic.Parent, error) {
	return hostaccess.On(m.host).Show(ctx, name)
}
