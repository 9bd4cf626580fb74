package tapmgr

import (
	"context"

	"vmnet/bridge"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/step"
	"vmnet/macvtap"
	"vmnet/tapmgr/nic"
)

// mend carries out what mends a difference of a NIC.
func (m *Manager) mend(ctx context.Context, v *inventory.View, f inventory.Fix) error {
	switch f.Kind {
	case inventory.FixLink:
		return m.host.Set(v.Device, f.Attrs...)
	case inventory.FixMTU: // the kernel enables IPv6 on a link again whose MTU was below 1280 bytes
		return m.host.On(v.Device, func(nl *rtnl.Conn) error {
			if err := nl.SetQuiet(v.Index, rtnl.MTU(v.WantMTU())); err != nil {
				return err
			}
			return nl.Quieten(v.Index)
		})
	case inventory.FixIPv6:
		return m.host.On(v.Device, func(nl *rtnl.Conn) error { return nl.Quieten(v.Index) })
	case inventory.FixMode:
		return m.host.On(v.Device, func(nl *rtnl.Conn) error { return macvtap.SetMode(nl, v.Link, v.Want.Mode) })
	case inventory.FixAltName:
		return m.host.On(v.Device, func(nl *rtnl.Conn) error { return nl.AddAltName(v.Index, f.Name) })
	case inventory.FixBridge:
		return m.host.PutBack(v.Device, v.Home)
	case inventory.FixPort:
		return bridge.SetPort(m.host.NL, v.Home, v.Link, v.Want.PortConfig())
	case inventory.FixPortState:
		return m.host.NL.SetPortState(v.Index, rtnl.Forwarding)
	case inventory.FixLifetime:
		return m.host.ClearPersist(v.Device, v.Holders[0].PID)
	case inventory.FixSwitch:
		return m.host.ReconnectSwitch(ctx, v.Device, v.VMMPID())
	case inventory.FixSwitchPort:
		if err := m.host.DisconnectSwitch(ctx, v.Device); err != nil {
			return err
		}
		return m.host.ReconnectSwitch(ctx, v.Device, v.VMMPID())
	}
	return nil
}

// mendStep is the mending of a finding as attach runs it.
func (m *Manager) mendStep(v *inventory.View, f inventory.Finding) step.Step {
	return step.Step{
		Name: f.What, Text: f.Text,
		Stage: nic.ErrLink,
		Do:    func(ctx context.Context) error { return m.mend(ctx, v, f.Fix) },
	}
}
