package inventory

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/qemu"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// Device is a link that carries our alias, where it is, and who holds it. A NIC by a socket has no
// link: see labels.go.
type Device struct {
	*rtnl.Link
	Want         nic.Record // as its alias says
	FormerSource string     // the name that its bridge or parent device had then; empty where it has it still
	MasterName   string     // what a tap is a port of; empty for nothing

	// A macvtap is in a netns of its own, which is reached through who has it open. One that
	// was handed over by name is in the Manager's.
	NetnsFile  *procfd.File // nil: the link is in the Manager's netns
	NetnsInode uint64       // of that netns

	SwitchPort SwitchPort // of a NIC that belongs on a userspace switch
	Deleted    bool       // its device was deleted under its VMM: see labels.go

	// Of a NIC by a socket: whose its process is, and whether root or the caller says that it is
	// there, by a label of theirs or by a switch that is theirs.
	UID     int
	vouched bool

	Holders []nic.Holder // as far as the caller may see, the VMM first
	allSeen bool         // of a macvtap in the Manager's netns: whoever held it would be among them
	Pending bool         // nobody holds it, since an attach is about to hand it over by its name
}

// Title names a NIC, or a tap of which only its bridge is known.
func (dev *Device) Title() string {
	if dev.IsPlain() {
		return dev.Name
	}
	return dev.Want.VM + "/" + dev.Want.NIC
}

// IsPlain reports whether only the tap's bridge is known, and no guest or NIC.
func (dev *Device) IsPlain() bool { return dev.Want.VM == "" }

func (dev *Device) HasLink() bool { return !dev.IsSocket() && !dev.Deleted }

// A NIC by a socket has no link that could tell of it. Two others do: its port in the switch, with
// a label as a link's alias; and a label that QEMU holds beside the socket, which is there without
// the switch, too. It is in no netns, and belongs to the one for which it was attached, as a tap
// would.

// IsSocket tells that there is no link.
func (dev *Device) IsSocket() bool { return dev.Want.Type == nic.TypeSocket }

func (dev *Device) isTap() bool { return dev.Tun != nil }

func (dev *Device) isIPVtap() bool { return dev.Want.Type == string(vtap.IPVtap) }

// onBridge reports whether the NIC belongs on a bridge of the kernel's.
func (dev *Device) onBridge() bool { return dev.Want.Type == nic.TypeTap && !dev.Want.Switch }

// IsDisconnected tells that a NIC belongs on a switch that has lost it: that was ended, or has
// removed its port.
func (dev *Device) IsDisconnected() bool {
	return dev.Want.Switch && dev.SwitchPort.Path != "" && dev.SwitchPort.Port == nil && dev.SwitchPort.Err == nil
}

// IsHealthy reports whether nothing is to be mended of a NIC by a socket, as far as its switch
// says.
func (dev *Device) IsHealthy() bool {
	return dev.Want.Phase == nic.PhasePlugged && dev.SwitchPort.Err == nil && !dev.IsDisconnected()
}

// isCutOff reports whether a forced detach has taken the NIC off the network, and the guest keeps
// the dead device.
func (dev *Device) isCutOff() bool { return dev.Want.Phase == nic.PhaseDetaching && !dev.Up }

// StaysBehind reports whether the device outlives the process that holds it.
func (dev *Device) StaysBehind() bool {
	return dev.Want.Via == nic.ViaLibvirt && dev.NetnsFile == nil && !dev.Deleted && (dev.Tun == nil || dev.Tun.Persist)
}

// addHolders notes who has files open that are the link's, in the order in which they were seen;
// but a guest's VMM comes first, whoever else holds one.
func (dev *Device) addHolders(op *openFiles, files []procfd.File) {
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
		return cmp.Compare(order(op.isVMM(a.PID)), order(op.isVMM(b.PID)))
	})
}

func order(first bool) int {
	if first {
		return 0
	}
	return 1
}

func isQEMU(pid int) bool {
	_, err := qemu.ByPID(pid)
	return err == nil
}

func (dev *Device) IsHeldBy(pid int) bool {
	return slices.ContainsFunc(dev.Holders, func(h nic.Holder) bool { return h.PID == pid })
}

// VMMPID returns the QEMU that holds the link; 0 where none is seen.
func (dev *Device) VMMPID() int { return dev.vmmPID(now()) }

func (dev *Device) vmmPID(m moment) int { return dev.firstHolder(m.isVMM) }

// OtherHolder returns a process that holds the device and is no QEMU, such as a vmnet that works on
// it, or 0 if there is none that the caller may see.
func (dev *Device) OtherHolder() int { return dev.otherHolder(now()) }

func (dev *Device) otherHolder(m moment) int {
	return dev.firstHolder(func(pid int) bool { return !m.isVMM(pid) })
}

func (dev *Device) firstHolder(is func(pid int) bool) int {
	for _, h := range dev.Holders {
		if is(h.PID) {
			return h.PID
		}
	}
	return 0
}

// HasNoHolder tells that surely nobody holds the link, whatever the caller may see: a tap that is
// not persistent is there only because somebody holds it, and a persistent one
// has neither carrier nor queues without. Of a macvtap the kernel does not tell, so all
// processes must have been seen; one that is in a netns of its own is not there unheld.
func (dev *Device) HasNoHolder() bool {
	if dev.Tun == nil {
		return dev.NetnsFile == nil && dev.allSeen && len(dev.Holders) == 0
	}
	return dev.Tun != nil && dev.Tun.Persist && !dev.Tun.Attached && len(dev.Holders) == 0
}

// IsOrphaned reports whether certainly nobody holds the device, nor is about to.
func (dev *Device) IsOrphaned() bool { return dev.isOrphaned(now()) }

func (dev *Device) isOrphaned(m moment) bool {
	return dev.HasNoHolder() && !dev.Pending && !dev.isStarting(m)
}

// StillUnheld tells whether l is the same link of ours as it is later, and still held by nobody.
func (dev Device) StillUnheld(l *rtnl.Link) bool {
	if dev.Link == nil || l.Alias != dev.Alias {
		return false
	}
	dev.Link = l
	return dev.IsOrphaned()
}

// startingFor is how long a guest may take from the making of its device until its QEMU opens that.
const startingFor = 5 * time.Minute

// IsStarting reports whether the device was made for a guest that is about to start.
func (dev *Device) IsStarting() bool { return dev.isStarting(now()) }

func (dev *Device) isStarting(m moment) bool {
	if dev.Want.Phase != nic.PhaseStarting || len(dev.Holders) > 0 {
		return false
	}
	age := m.sinceBoot() - dev.Want.Since
	return age >= 0 && age < int64(startingFor.Seconds())
}

// SinceBoot is CLOCK_BOOTTIME in whole seconds (proc(5), /proc/uptime).
func SinceBoot() int64 {
	var seconds float64
	text, err := os.ReadFile("/proc/uptime")
	if err == nil {
		_, err = fmt.Sscan(strings.TrimSpace(string(text)), &seconds)
	}
	if err != nil {
		return 0
	}
	return int64(seconds)
}

// IsUntrusted reports whether a NIC without a link is held by another user's process, than root's
// and the caller's: it is meant only where that process is named.
func (dev *Device) IsUntrusted() bool { return !dev.HasLink() && !isTrusted(dev.UID) }

// IsUnconfirmed reports whether nothing but the word of another user's processes says that there is
// a NIC: a label is whatever its maker wrote, for whatever guest. It is shown, with that user. Of
// no other guest does it decide anything.
func (dev *Device) IsUnconfirmed() bool { return dev.IsUntrusted() && !dev.vouched }

// UnconfirmedText names whose word it is.
func (dev *Device) UnconfirmedText() string {
	text := "nothing but"
	if len(dev.Holders) > 0 {
		text += fmt.Sprintf(" process %d of", dev.Holders[0].PID)
	}
	if dev.UID == nobodys {
		return text + " nobody in particular says that it is there"
	}
	return fmt.Sprintf("%s user %d says that it is there", text, dev.UID)
}

// Whose names links, and who holds them.
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

// sameWithoutLink tells whether two readings are of one NIC that has no link.
func (dev *Device) sameWithoutLink(now *Device) bool {
	same := !dev.HasLink() && !now.HasLink() && dev.Want.VM == now.Want.VM && dev.Want.NIC == now.Want.NIC
	return same && slices.ContainsFunc(dev.Holders, func(h nic.Holder) bool { return now.IsHeldBy(h.PID) })
}

// AsHeld describes a NIC, provided that its guest holds it.
func (dev *Device) AsHeld() nic.NIC {
	r := dev.Want
	return nic.NIC{
		VM: r.VM, ID: r.NIC, Interface: dev.Name, Type: r.Type, Source: r.Source, Switch: r.Switch,
		Limits: r.Limits.String(), Mode: r.Mode, Port: r.Port, Model: r.Model, MAC: r.MAC.String(),
		Queues: r.Queues, Vhost: nic.OnOff(r.Vhost), MTU: r.GuestMTU(), State: dev.ownState(),
		UID: dev.owner(), Via: r.Via,
	}
}

// NIC describes a NIC as it is, with what its holders tell.
func (dev *Device) NIC() nic.NIC { return dev.withHolders(dev.AsHeld()) }

// NICs describes those devices that a guest of that name has, or all where vm is empty.
func NICs(all []Device, vm string) []nic.NIC {
	nics := []nic.NIC{}
	for _, dev := range all {
		if vm == "" || dev.Want.VM == vm {
			nics = append(nics, dev.NIC())
		}
	}
	return nics
}

// owner is the user for whom qemu-netup made a NIC, or on whose word alone it is listed.
func (dev *Device) owner() int {
	if dev.IsUnconfirmed() {
		return dev.UID
	}
	return dev.Want.Owner
}

// withHolders adds what the device's holders say.
func (dev *Device) withHolders(found nic.NIC) nic.NIC {
	if len(dev.Holders) > 0 {
		found.PID = dev.Holders[0].PID
	}
	found.State = dev.stateByHolders(now(), found.State)
	return found
}

// state returns the state of the NIC, which its holders decide before its device.
func (dev *Device) state(m moment) nic.State { return dev.stateByHolders(m, dev.ownState()) }

// stateByHolders returns what a device's holders and record make of the state that it has by itself.
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
	case dev.MasterName != "" && (dev.Want.Switch || dev.MasterName != dev.Want.Source):
		return nic.OtherBridge
	}
	return own
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
