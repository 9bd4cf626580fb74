package tapmgr

import (
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// owner is the user for whom qemu-netup made a NIC, or on whose word alone it is listed.
func (o *ours) owner() int {
	if o.isHearsay() {
		return o.uid
	}
	return o.want.Owner
}

// state adds what its holders tell.
func (o *ours) state(found nic.NIC) nic.NIC {
	if len(o.holders) > 0 {
		found.PID = o.holders[0].PID
	}
	switch {
	case o.starts():
		found.State = nic.Starting
	case o.unheld():
		found.State = nic.LeftOver
	case o.want.Phase == nic.PhaseAttaching && o.stranger() != 0:
		found.State = nic.Attaching
	case o.want.Phase == nic.PhaseAttaching, o.want.Phase == nic.PhaseStarting:
		found.State = nic.Incomplete
	case o.want.Phase == nic.PhaseDetaching:
		found.State = nic.Detaching
	case o.master != "" && (o.want.Switch || o.master != o.want.Source):
		found.State = nic.OtherBridge
	}
	return found
}

// ownState is how a link of ours, or a port of a userspace switch, is.
func (o *ours) ownState() nic.State {
	switch {
	case o.gone:
		return nic.Gone
	case !o.want.Switch:
		return linkState(o.Link)
	case !o.Up:
		return nic.Down
	case o.seat.err != nil:
		return nic.Unknown
	case o.seat.port == nil:
		return nic.NoSwitch
	}
	return portState(o.seat.port)
}

// portState is how a port of a userspace switch is, as the switch says.
func portState(p *control.Port) nic.State {
	switch {
	case p.Stats == nil:
	case p.Stats.State == vswitch.StateStopped:
		return nic.Stopped
	case p.Stats.State == vswitch.StateDown:
		return nic.Down
	}
	return nic.State(rtnl.Forwarding.String())
}

// linkState is a tap's port state, or whether a macvtap's lower has a link.
func linkState(l *rtnl.Link) nic.State {
	switch {
	case l.Kind == "tun" && l.Port == nil:
		return nic.NoBridge
	case !l.Up:
		return nic.Down
	case l.Port != nil:
		return nic.State(l.Port.State.String())
	case !l.Carrier:
		return nic.NoCarrier
	}
	return nic.Up
}
