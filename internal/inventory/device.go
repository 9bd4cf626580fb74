package inventory

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/holders"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// Device is an interface with vmnet's alias, where it is, and which processes hold it. The Link of
// a NIC by a socket, or of a device that was deleted, is made up from the record: see switches.go
// and elsewhere.go.
type Device struct {
	*rtnl.Link
	Want         nic.Record // what its alias says
	FormerSource string     // former name of its bridge or parent device, if that was renamed
	MasterName   string     // the master of a tap; empty for none

	// A macvtap is in a netns of its own, which is reached through a process that has the netns
	// open. One that was handed over by name is in the Host's.
	NetnsFile  *procfd.File // nil: the link is in the Host's netns
	NetnsInode uint64       // of that netns

	SwitchPort SwitchPort // of a NIC that belongs on a userspace switch
	OVS        OVSPort    // of a NIC that belongs on a bridge of Open vSwitch
	Deleted    bool       // its device was deleted under its VMM: see elsewhere.go

	// Of a NIC by a socket: the user of its process, and whether root or the caller confirms it, by
	// a label or by a switch of theirs.
	UID     int
	vouched bool

	Holders []nic.Holder // as far as the caller may see, the VMM first
	allSeen bool         // of a macvtap in the Host's netns: no holder can be missing
	Pending bool         // nobody holds it yet: an attach is about to hand it over by its name
}

// Title returns the names of guest and NIC, or the interface name of a plain tap.
func (dev *Device) Title() string {
	if dev.IsPlain() {
		return dev.Name
	}
	return dev.Want.VM + "/" + dev.Want.NIC
}

// IsPlain reports whether only the tap's bridge is known, and no guest or NIC.
func (dev *Device) IsPlain() bool { return dev.Want.VM == "" }

// HasLink reports whether the kernel has an interface for the NIC.
func (dev *Device) HasLink() bool { return !dev.IsSocket() && !dev.Deleted }

// IsSocket reports whether the NIC is a socket between QEMU and a userspace switch, without an
// interface.
func (dev *Device) IsSocket() bool { return dev.Want.IsSocket() }

// MayRejoin reports whether the NIC can become a port of a switch that has lost it: QEMU's end of a
// socketpair cannot be given another peer.
func (dev *Device) MayRejoin() bool { return dev.Want.Type != nic.TypeSocket }

func (dev *Device) isTap() bool { return dev.Tun != nil }

func (dev *Device) isIPVtap() bool { return dev.Want.Type == string(vtap.IPVtap) }

// onBridge reports whether the NIC belongs on a kernel bridge.
func (dev *Device) onBridge() bool { return dev.Want.Type == nic.TypeTap && !dev.Want.Switch }

// IsRouted reports whether the host routes the guest's addresses to the tap.
func (dev *Device) IsRouted() bool { return dev.Want.Type == nic.TypeRouted }

// IsDisconnected reports whether the NIC belongs on a switch that has lost it: the switch has
// ended, or has removed the port.
func (dev *Device) IsDisconnected() bool {
	return dev.Want.Switch && dev.SwitchPort.Path != "" && dev.SwitchPort.Port == nil && dev.SwitchPort.Err == nil
}

// HasLostMemory reports whether a NIC by which a switch shares the guest's memory IsDisconnected.
func (dev *Device) HasLostMemory() bool {
	return dev.Want.Type == nic.TypeVhostUser && dev.IsDisconnected()
}

// IsHealthy reports whether a NIC by a socket needs no mending, as far as its switch can say.
func (dev *Device) IsHealthy() bool {
	return dev.Want.Phase == nic.PhasePlugged && dev.SwitchPort.Err == nil && !dev.IsDisconnected()
}

// isCutOff reports whether a forced detach has taken the NIC off the network while the guest keeps
// the dead device.
func (dev *Device) isCutOff() bool {
	return dev.Want.Phase == nic.PhaseDetaching && !dev.Up && !dev.Want.Prepared
}

// StaysBehind reports whether the device outlives the process that holds it.
func (dev *Device) StaysBehind() bool {
	return dev.Want.Via.ByName() && dev.NetnsFile == nil && !dev.Deleted && (dev.Tun == nil || dev.Tun.Persist)
}

// addHolders adds the processes that have these files of the device open, in the order in which
// they were seen, but VMMs first.
func (dev *Device) addHolders(op *holders.Files, files []procfd.File) {
	at := map[int]int{}
	for i, h := range dev.Holders {
		at[h.PID] = i
	}
	for _, f := range files {
		i, known := at[f.PID]
		if !known {
			i = len(dev.Holders)
			at[f.PID] = i
			dev.Holders = append(dev.Holders, nic.Holder{PID: f.PID})
		}
		dev.Holders[i].FDs = append(dev.Holders[i].FDs, f.FD)
	}
	for _, h := range dev.Holders {
		slices.Sort(h.FDs)
	}
	slices.SortStableFunc(dev.Holders, func(a, b nic.Holder) int {
		return cmp.Compare(order(op.IsVMM(a.PID)), order(op.IsVMM(b.PID)))
	})
}

func order(first bool) int {
	if first {
		return 0
	}
	return 1
}

// IsHeldBy reports whether a process is among the holders.
func (dev *Device) IsHeldBy(pid int) bool {
	return slices.ContainsFunc(dev.Holders, func(h nic.Holder) bool { return h.PID == pid })
}

func (dev *Device) firstHolder(is func(pid int) bool) int {
	for _, h := range dev.Holders {
		if is(h.PID) {
			return h.PID
		}
	}
	return 0
}

// HasNoHolder reports whether certainly no process holds the device, whatever the caller may see. A
// tap that is not persistent exists only while a process holds it, and a persistent one without a
// holder has no queue attached. The kernel does not say who holds a macvtap, so all processes must
// have been seen; one in a netns of its own does not exist without a holder.
func (dev *Device) HasNoHolder() bool {
	if dev.Tun == nil {
		return dev.NetnsFile == nil && dev.allSeen && len(dev.Holders) == 0
	}
	return dev.Tun.Persist && !dev.Tun.Attached && len(dev.Holders) == 0
}

// IsOrphaned reports whether certainly no process holds the device, or is about to.
func (dev *Device) IsOrphaned() bool { return dev.isOrphaned(now()) }

func (dev *Device) isOrphaned(m moment) bool {
	return dev.HasNoHolder() && !dev.Pending && !dev.isStarting(m)
}

// StillUnheld reports whether l, read later, is the same device, and still orphaned.
func (dev Device) StillUnheld(l *rtnl.Link) bool {
	if dev.Link == nil || l.Alias != dev.Alias {
		return false
	}
	dev.Link = l
	return dev.IsOrphaned()
}

// IsUntrusted reports whether a NIC without a link is held by a process of another user than root
// and the caller. Such a NIC is meant only if its process is named.
func (dev *Device) IsUntrusted() bool { return !dev.HasLink() && !holders.IsTrusted(dev.UID) }

// IsUnconfirmed reports whether only another user's processes claim that the NIC exists: a user may
// write any guest's name into a label. Such a NIC is listed with that user, and decides nothing
// about other guests.
func (dev *Device) IsUnconfirmed() bool { return dev.IsUntrusted() && !dev.vouched }

// UnconfirmedText names the process and user who claim that the NIC exists.
func (dev *Device) UnconfirmedText() string {
	text := "nothing but"
	if len(dev.Holders) > 0 {
		text += fmt.Sprintf(" process %d of", dev.Holders[0].PID)
	}
	if dev.UID == holders.Nobody {
		return text + " nobody in particular says that it is there"
	}
	return fmt.Sprintf("%s user %d says that it is there", text, dev.UID)
}

// Whose returns the names of devices with their holders, for an error.
func Whose(all []Device) string {
	var list []string
	for _, dev := range all {
		text := dev.Name + " of nobody who can be seen"
		if len(dev.Holders) > 0 {
			pid := dev.Holders[0].PID
			text = fmt.Sprintf("%s of process %d", dev.Name, pid)
			if uid, err := procfd.RealUID(pid); err == nil {
				text += fmt.Sprintf(" (uid %d)", uid)
			}
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}

// sameWithoutLink reports whether two readings are of the same NIC without a link.
func (dev *Device) sameWithoutLink(now *Device) bool {
	same := !dev.HasLink() && !now.HasLink() && dev.Want.VM == now.Want.VM && dev.Want.NIC == now.Want.NIC
	return same && slices.ContainsFunc(dev.Holders, func(h nic.Holder) bool { return now.IsHeldBy(h.PID) })
}

// AsHeld describes the NIC as if its guest held it.
func (dev *Device) AsHeld() nic.NIC {
	r := dev.Want
	return nic.NIC{
		VM: r.VM, ID: r.NIC, Interface: dev.Name, Type: r.Type, Source: r.Source, Switch: r.Switch,
		Network: r.Network, IP: r.IP,
		Limits: r.Limits.String(), Mode: r.Mode, Port: r.Port, Model: r.Model, MAC: r.MAC.String(),
		PortSecurity: securityText(r.Security), EtherTypes: r.Security.EtherTypes, Nets: r.Security.Nets,
		AllowIn: r.AllowIn, Rates: r.Rates,
		IfaceID: r.OVSIfaceID(), OVSDB: r.OVSDB,
		Queues: r.Queues, Vhost: nic.OnOff(r.Vhost), MTU: r.GuestMTU(), State: dev.ownState(),
		UID: dev.owner(), Via: r.Via,
	}
}

// NIC describes the NIC, with its VMM and the state that follows from its holders.
func (dev *Device) NIC() nic.NIC { return dev.withHolders(dev.AsHeld()) }

// NICs describes the devices of guests of that name, or all if vm is empty.
func NICs(all []Device, vm string) []nic.NIC {
	nics := []nic.NIC{}
	for _, dev := range all {
		if vm == "" || dev.Want.VM == vm {
			nics = append(nics, dev.NIC())
		}
	}
	return nics
}

// owner returns the user for whom qemu-netup made the NIC, or the only one who claims it.
func (dev *Device) owner() int {
	if dev.IsUnconfirmed() {
		return dev.UID
	}
	return dev.Want.Owner
}

// withHolders adds the holder's PID and the state that follows from the holders.
func (dev *Device) withHolders(found nic.NIC) nic.NIC {
	if len(dev.Holders) > 0 {
		found.PID = dev.Holders[0].PID
	}
	found.State = dev.stateByHolders(now(), found.State)
	return found
}

// state returns the state of the NIC, which its holders decide before its device.
func (dev *Device) state(m moment) nic.State { return dev.stateByHolders(m, dev.ownState()) }

// stateByHolders returns what a device's holders and record make of the state that it has by
// itself.
func (dev *Device) stateByHolders(m moment, own nic.State) nic.State {
	attaching := dev.Want.Phase == nic.PhaseAttaching
	switch {
	case dev.isStarting(m):
		return nic.Starting
	case dev.isOrphaned(m):
		return nic.LeftOver
	case attaching && dev.otherHolder(m) != 0:
		return nic.Attaching
	case attaching, dev.Want.Phase == nic.PhaseStarting:
		return nic.Incomplete
	case dev.Want.Phase == nic.PhaseDetaching:
		return nic.Detaching
	case dev.Want.Phase == nic.PhaseChanging:
		return nic.Changing
	case dev.MasterName != "" && (!dev.onBridge() && !dev.IsOVS() || dev.MasterName != dev.Want.Source):
		return nic.OtherBridge
	}
	return own
}

// ownState returns the state of the device, or of its switch's port, regardless of its holders.
func (dev *Device) ownState() nic.State {
	s := dev.foundState()
	if s == nic.Down && dev.Want.Prepared && (!dev.Up || dev.IsSocket()) {
		return nic.Prepared
	}
	return s
}

func (dev *Device) foundState() nic.State {
	switch {
	case dev.Deleted:
		return nic.Gone
	case dev.IsRouted() && dev.Up:
		return nic.Up
	case dev.IsRouted():
		return nic.Down
	case dev.IsOVS():
		return dev.ovsState()
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

// portState returns the state of a userspace switch's port.
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

// LinkState returns the state of a tap's bridge port, or whether a macvtap's parent has a carrier.
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

// securityText returns the checks of a NIC's frames; empty for none.
func securityText(s nic.Security) string {
	if s.IsZero() {
		return ""
	}
	return s.Checks.String()
}
