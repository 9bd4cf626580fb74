package tapmgr

import (
	"context"
	"net"

	"vmnet/bridge/brport"
	"vmnet/tapmgr/nic"
)

// What vmnet watch does by itself when links or guests come and go.

// PutBack makes the taps that belong on the bridges of these names, and are on none since those
// were deleted, ports of them again. Failures are in the actions; the error is about reading what
// there is.
func (m *Manager) PutBack(bridges ...string) ([]nic.Action, error) { return m.host.PutBack(bridges...) }

// PutBackForeign is PutBack for the tap of that name that somebody else has made for a guest's NIC
// of that MAC. done is false where there is nothing to do.
func (m *Manager) PutBackForeign(name string, mac net.HardwareAddr, bridgeName string, cfg brport.Settings) (done bool, err error) {
	return m.host.PutBackForeign(name, mac, bridgeName, cfg)
}

// ForeignWithoutMaster reports whether there is any tap that PutBackForeign might put on a bridge.
func (m *Manager) ForeignWithoutMaster() (bool, error) { return m.host.ForeignWithoutMaster() }

// SetForeignPortOf adds settings to the bridge port of the tap of that interface index, which
// somebody else has made for a guest's NIC of that MAC. That it is no such tap, or on no bridge, Is
// fs.ErrNotExist.
func (m *Manager) SetForeignPortOf(index int, mac net.HardwareAddr, cfg brport.Settings) (changed bool, err error) {
	return m.host.SetForeignPortOf(index, mac, cfg)
}

// Ended removes what was handed over by name to a guest of libvirt's, or to any where vm is empty,
// and nobody holds any more. remain reports that something stays that may be orphaned yet.
func (m *Manager) Ended(ctx context.Context, vm string) (actions []nic.Action, remain bool, err error) {
	return m.host.Ended(ctx, vm)
}

// SetBackAddress gives the tap of that interface index the address that it should have on the host's
// side, which a process that holds the tap can change. The action's Changed is false if the tap has
// that already, or if there is no such tap.
func (m *Manager) SetBackAddress(index int) (nic.Action, error) { return m.host.SetBackAddress(index) }
