package nic

import (
	"time"
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

// Holder is a process that holds queues of a tap, or the netns that a macvtap is in. What
// is alive and what is left over is told by that alone, never by a guest's name.
type Holder struct {
	PID int   `json:"pid"`
	FDs []int `json:"fds"` // its queues, ascending
}

// Result is what Attach did.
type Result struct {
	NIC       NIC
	Changed   bool          // false where the NIC was there already, as asked for
	ForwardIn time.Duration // until the bridge port forwards; 0 where it does
	Notices   []string      // what a person should know, though it is no error

	// Differences is what of the NIC is not as it should be, and is not for an attach to mend.
	Differences []Difference
}
