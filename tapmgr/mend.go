package tapmgr

import (
	"context"

	"vmnet/bridge"
	"vmnet/internal/rtnl"
	"vmnet/internal/step"
	"vmnet/macvtap"
	"vmnet/tapmgr/nic"
)

// mend carries out what mends a difference of a NIC.
func (m *Manager) mend(ctx context.Context, v *view, f fix) error {
	switch f.kind {
	case fixLink:
		return m.set(v.ours, f.attrs...)
	case fixMTU: // the kernel enables IPv6 on a link again whose MTU was below 1280 bytes
		return m.on(v.ours, func(nl *rtnl.Conn) error {
			if err := nl.SetQuiet(v.Index, rtnl.MTU(v.wantMTU())); err != nil {
				return err
			}
			return nl.Quieten(v.Index)
		})
	case fixIPv6:
		return m.on(v.ours, func(nl *rtnl.Conn) error { return nl.Quieten(v.Index) })
	case fixMode:
		return m.on(v.ours, func(nl *rtnl.Conn) error { return macvtap.SetMode(nl, v.Link, v.want.Mode) })
	case fixAltName:
		return m.on(v.ours, func(nl *rtnl.Conn) error { return nl.AddAltName(v.Index, f.name) })
	case fixBridge:
		return m.putBack(v.ours, v.home)
	case fixPort:
		return bridge.SetPort(m.nl, v.home, v.Link, v.want.PortConfig())
	case fixPortState:
		return m.nl.SetPortState(v.Index, rtnl.Forwarding)
	case fixLifetime:
		return m.lendLife(v.ours, v.holders[0].PID)
	case fixSwitch:
		return m.rejoin(ctx, v.ours, v.vmm())
	case fixSwitchPort:
		if err := m.leave(ctx, v.ours); err != nil {
			return err
		}
		return m.rejoin(ctx, v.ours, v.vmm())
	}
	return nil
}

// mendStep is the mending of a finding as attach runs it.
func (m *Manager) mendStep(v *view, f finding) step.Step {
	return step.Step{
		Name: f.what, Text: f.text,
		Do: func(ctx context.Context) error { return step.WithStage(nic.ErrLink, m.mend(ctx, v, f.fix)) },
	}
}
