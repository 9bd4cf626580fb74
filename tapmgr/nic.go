package tapmgr

import (
	"context"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/rtnl"
)

// NIC is one NIC of a guest as it is. Its JSON keys are stable.
type NIC struct {
	VM        string `json:"vm"` // empty for a host access, which is no guest's
	ID        string `json:"nic"`
	Interface string `json:"interface"`        // of a socket, the name of the switch's port
	Type      string `json:"type"`             // "tap", "macvtap", "ipvtap" or "socket"; "macvlan" for a host access
	Source    string `json:"source"`           // the bridge or switch that it belongs on, or its lower
	Switch    bool   `json:"switch,omitempty"` // Source is a userspace switch
	Limits    string `json:"limits,omitempty"` // of a switch's port, where they are not the defaults: "locked;storm:off"
	Mode      string `json:"mode,omitempty"`   // of a macvtap or ipvtap; "host access"
	Port      string `json:"port,omitempty"`   // settings of the bridge port: "vlan:10;isolated"
	Model     string `json:"model"`
	MAC       string `json:"mac"` // the guest's
	Queues    int    `json:"queues"`
	Vhost     string `json:"vhost"` // "on" or "off"
	State     State  `json:"state"`
	MTU       int    `json:"mtu"`               // bytes, as the guest was told; 1500 where it was told nothing
	PID       int    `json:"pid,omitempty"`     // of the process that holds it; 0 where none is seen
	UID       int    `json:"uid,omitempty"`     // of the user for whom qemu-netup made it, or whose word alone it is; 0 for none
	Via       Via    `json:"via,omitempty"`     // how a guest of libvirt's got it; empty for other guests
	Foreign   bool   `json:"foreign,omitempty"` // libvirt has made it itself; it is never touched
}

// State says in one word how a NIC is: its bridge port's state, or what else
// there is to say.
type State string

// States besides those of a bridge port.
const (
	Attaching   State = "attaching"    // a vmnet works on it
	Starting    State = "starting"     // made for a guest that libvirt is about to start
	Detaching   State = "detaching"    // the guest was asked to let go of it
	Incomplete  State = "incomplete"   // an attach was cut short: vmnet reconcile
	LeftOver    State = "left-over"    // nobody holds it: vmnet reconcile
	NoBridge    State = "no-bridge"    // it is on none
	OtherBridge State = "other-bridge" // somebody has moved it
	Down        State = "down"
	NoCarrier   State = "no-carrier" // its lower has no link
	Up          State = "up"         // a macvtap or ipvtap, which has no port
	Hidden      State = "hidden"     // no process is seen to hold it: its files are where none has them open
	NoSwitch    State = "no-switch"  // its switch has ended, or has lost it
	Stopped     State = "stopped"    // its switch has stopped its port, which is part of a loop
	Gone        State = "gone"       // its device was deleted, alone or with its parent device; the guest's NIC is dead
	Unknown     State = "unknown"    // its switch could not be asked
)

// TypeTap is the type of a NIC on a bridge; the others are those of package macvtap.
const TypeTap = "tap"

// List returns the NICs of all guests that are ours, or of one where vm is not empty, by
// guest and id. It opens no monitor, so it never waits for anybody.
func (m *Manager) List(ctx context.Context, vm string) ([]NIC, error) {
	all, err := m.inventory(ctx)
	return m.nics(all, vm), err
}

// nics describes those of an inventory that a guest of that name has, or all where vm is empty.
func (m *Manager) nics(all []ours, vm string) []NIC {
	nics := []NIC{}
	for _, o := range all {
		if vm == "" || o.want.VM == vm {
			nics = append(nics, o.state(m.describe(o)))
		}
	}
	return nics
}

// ListAll returns the NICs of all guests as List does, or of one where vm is not empty, and after them those that
// libvirt has made itself, whose guest's side libvirt is asked for, a second at most. With all guests' go the taps of
// which qemu-netup knows the bridge alone, and the host accesses, which have no guest.
func (m *Manager) ListAll(ctx context.Context, vm string) ([]NIC, error) {
	links, err := m.inOwn()
	if err != nil {
		return nil, err
	}
	op, err := m.look(ctx, links)
	if err != nil {
		return nil, err
	}
	all, err := m.inventoryOf(ctx, links, op)
	if err != nil {
		return nil, err
	}
	nics := m.nics(all, vm)
	hidden, err := m.hidden(all, vm)
	if err != nil {
		return nil, err
	}
	nics = append(nics, hidden...)
	foreign, err := m.foreignNICs(ctx, vm)
	for _, f := range foreign {
		nics = append(nics, f.NIC)
	}
	if err != nil || vm != "" {
		return nics, err
	}
	nics = append(nics, m.plainNICs(ctx, links, op)...)
	accesses, err := m.HostAccesses()
	for _, h := range accesses {
		nics = append(nics, h.NIC())
	}
	return nics, err
}

// describe tells how a link of ours is, provided that its guest holds it.
func (m *Manager) describe(o ours) NIC {
	r := o.want
	return NIC{
		VM: r.VM, ID: r.NIC, Interface: o.Name, Type: r.Type, Source: r.Source, Switch: r.Switch, Limits: r.Guard.String(), Mode: r.Mode, Port: r.Port, Model: r.Model,
		MAC: r.MAC.String(), Queues: r.Queues, Vhost: onOff(r.Vhost), MTU: r.guestMTU(), State: o.ownState(), UID: o.owner(), Via: r.Via,
	}
}

// owner is the user for whom qemu-netup made a NIC, or on whose word alone it is listed.
func (o *ours) owner() int {
	if o.isHearsay() {
		return o.uid
	}
	return o.want.Owner
}

// state adds what its holders tell.
func (o *ours) state(nic NIC) NIC {
	if len(o.holders) > 0 {
		nic.PID = o.holders[0].PID
	}
	switch {
	case o.starts():
		nic.State = Starting
	case o.unheld():
		nic.State = LeftOver
	case o.want.Phase == attaching && o.stranger() != 0:
		nic.State = Attaching
	case o.want.Phase == attaching, o.want.Phase == starting:
		nic.State = Incomplete
	case o.want.Phase == detaching:
		nic.State = Detaching
	case o.master != "" && (o.want.Switch || o.master != o.want.Source):
		nic.State = OtherBridge
	}
	return nic
}

// ownState is how a link of ours, or a port of a userspace switch, is.
func (o *ours) ownState() State {
	switch {
	case o.gone:
		return Gone
	case !o.want.Switch:
		return linkState(o.Link)
	case !o.Up:
		return Down
	case o.seat.err != nil:
		return Unknown
	case o.seat.port == nil:
		return NoSwitch
	}
	return portState(o.seat.port)
}

// portState is how a port of a userspace switch is, as the switch says.
func portState(p *control.Port) State {
	switch {
	case p.Stats == nil:
	case p.Stats.State == vswitch.StateStopped:
		return Stopped
	case p.Stats.State == vswitch.StateDown:
		return Down
	}
	return State(rtnl.Forwarding.String())
}

// linkState is a tap's port state, or whether a macvtap's lower has a link.
func linkState(l *rtnl.Link) State {
	switch {
	case l.Kind == "tun" && l.Port == nil:
		return NoBridge
	case !l.Up:
		return Down
	case l.Port != nil:
		return State(l.Port.State.String())
	case !l.Carrier:
		return NoCarrier
	}
	return Up
}
