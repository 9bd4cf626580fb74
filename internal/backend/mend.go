package backend

import (
	"context"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// mend carries out what mends a difference of a NIC.
func (m *Maker) mend(ctx context.Context, v *inventory.View, f inventory.Fix) error {
	switch f.Kind {
	case inventory.FixLink:
		return m.Set(v.Device, f.Attrs...)
	case inventory.FixMTU: // the kernel enables IPv6 on a link again whose MTU was below 1280 bytes
		return m.On(v.Device, func(nl *rtnl.Conn) error {
			if err := nl.SetQuiet(v.Index, rtnl.MTU(v.WantMTU())); err != nil {
				return err
			}
			return nl.Quieten(v.Index)
		})
	case inventory.FixIPv6:
		return m.On(v.Device, func(nl *rtnl.Conn) error { return nl.Quieten(v.Index) })
	case inventory.FixMode:
		return m.On(v.Device, func(nl *rtnl.Conn) error { return macvlan.SetMode(nl, v.Link, v.Want.Mode) })
	case inventory.FixAltName:
		return m.On(v.Device, func(nl *rtnl.Conn) error { return nl.AddAltName(v.Index, f.Name) })
	case inventory.FixBridge:
		return m.putOnBridge(v.Device, v.Home)
	case inventory.FixPort:
		return bridges.SetPort(m.NL, v.Home, v.Link, v.Want.PortConfig())
	case inventory.FixPortState:
		return m.NL.SetPortState(v.Index, rtnl.Forwarding)
	case inventory.FixLifetime:
		return m.ClearPersist(v.Device, v.Holders[0].PID)
	case inventory.FixSwitch:
		return m.ReconnectSwitch(ctx, v.Device, v.VMMPID())
	case inventory.FixSwitchPort:
		if err := m.DisconnectSwitch(ctx, v.Device); err != nil {
			return err
		}
		return m.ReconnectSwitch(ctx, v.Device, v.VMMPID())
	}
	return nil
}

// MendStep is the mending of a finding as attach runs it.
func (m *Maker) MendStep(v *inventory.View, f inventory.Finding) step.Step {
	return step.Step{
		Name: f.What, Text: f.Text,
		Stage: nic.ErrLink,
		Do:    func(ctx context.Context) error { return m.mend(ctx, v, f.Fix) },
	}
}
