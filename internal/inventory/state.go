package inventory

import (
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// owner is the user for whom qemu-netup made a NIC, or on whose word alone it is listed.
func (dev *Device) owner() int {
	if dev.IsUnconfirmed() {
		return dev.UID
	}
	return dev.Want.Owner
}

// withHolders adds what its holders tell.
func (dev *Device) withHolders(found nic.NIC) nic.NIC {
	if len(dev.Holders) > 0 {
		found.PID = dev.Holders[0].PID
	}
	switch {
	case dev.IsStarting():
		found.State = nic.Starting
	case dev.IsOrphaned():
		found.State = nic.LeftOver
	case dev.Want.Phase == nic.PhaseAttaching && dev.OtherHolder() != 0:
		found.State = nic.Attaching
	case dev.Want.Phase == nic.PhaseAttaching, dev.Want.Phase == nic.PhaseStarting:
		found.State = nic.Incomplete
	case dev.Want.Phase == nic.PhaseDetaching:
		found.State = nic.Detaching
	case dev.MasterName != "" && (dev.Want.Switch || dev.MasterName != dev.Want.Source):
		found.State = nic.OtherBridge
	}
	return found
}

// ownState is how a link of ours, or a port of a userspace switch, is.
func (dev *Device) ownState() nic.State {
	switch {
	case dev.Deleted:
		return nic.Gone
	case !dev.Want.Switch:
		return LinkState(dev.Link)
	case !dev.Up:
		return nic.Down
	case dev.SwitchPort.Err != nil:
		return nic.Unknown
	case dev.SwitchPort.Port == nil:
		return nic.NoSwitch
	}
	return portState(dev.SwitchPort.Port)
}

// portState is how a port of a userspace switch is, as the switch says.
func portState(p *control.Port) nic.State {
	switch {
	case p.Stats == nil:
	case p.Stats.State == vport.StateStopped:
		return nic.Stopped
	case p.Stats.State == vport.StateDown:
		return nic.Down
	}
	return nic.State(rtnl.Forwarding.String())
}

// LinkState is a tap's port state, or whether a macvtap's lower has a link.
func LinkState(l *rtnl.Link) nic.State {
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
