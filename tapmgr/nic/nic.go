// Package nic describes a guest's NIC as data: the request (Spec), what the host remembers (Record,
// in the alias of its interface), what verbs report (NIC, Action, Difference), and its names.
// Nothing here calls the kernel or a VMM.
package nic

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portrate"
	"vmnet/bridge/portsec"
	"vmnet/internal/routed/gateway"
)

// Via says how the VMM gets a NIC, if it is not given the files of it by its own monitor.
type Via string

// ViaLibvirt gives libvirt the name of the finished device: libvirt plugs it, and knows it.
// ViaMonitor passes fds to QEMU through libvirt's monitor commands: libvirt does not know the NIC,
// marks the domain as tainted, and cannot migrate it. ViaName leaves a tap for a VMM that opens it
// by its name, and that has no monitor which vmnet knows.
const (
	ViaLibvirt Via = "libvirt"
	ViaMonitor Via = "monitor"
	ViaName    Via = "name"
)

// NIC is one NIC of a guest as it is. Its JSON keys are stable.
type NIC struct {
	VM        string `json:"vm"` // empty for a host access, which belongs to no guest
	ID        string `json:"nic"`
	Interface string `json:"interface"` // for a socket, the name of the switch's port
	// "tap", "ovs", "routed", "macvtap", "ipvtap", "socket", "vhost-user"; of a host access:
	// "macvlan"
	Type   string `json:"type"`
	Source string `json:"source"`           // the bridge or switch that it belongs on, its uplink or parent device
	Switch bool   `json:"switch,omitempty"` // Source is a userspace switch

	Network string       `json:"network,omitempty"` // whose bridge Source is; empty for none
	IP      []netip.Addr `json:"ip,omitempty"`      // the guest's own addresses

	IfaceID string `json:"iface_id,omitempty"` // by which OVN knows it, of a port of Open vSwitch
	OVSDB   string `json:"ovsdb,omitempty"`    // socket of Open vSwitch's database; empty for the usual one

	Limits string `json:"limits,omitempty"` // of a switch's port, unless the defaults: "locked;storm:off"
	Mode   string `json:"mode,omitempty"`   // of a macvtap or ipvtap; "host access"
	// which checks the guest's frames have to pass, as --port-security takes them; empty for none
	PortSecurity string `json:"port_security,omitempty"`
	// further EtherTypes that pass, and networks whose addresses are the guest's own
	EtherTypes []portsec.EtherType `json:"ethertypes,omitempty"`
	Nets       []netip.Prefix      `json:"nets,omitempty"`
	AllowIn    inbound.Rules       `json:"allow_in,omitempty"` // what may come in besides answers; none: everything
	Rates      portrate.Config     `json:"rates,omitzero"`
	Port       string              `json:"port,omitempty"` // settings of the bridge port: "vlan:10;isolated"
	Model      string              `json:"model"`
	MAC        string              `json:"mac"` // the guest's
	Queues     int                 `json:"queues"`
	Vhost      string              `json:"vhost"` // "on" or "off"
	State      State               `json:"state"`
	MTU        int                 `json:"mtu"`           // bytes, as the guest sees it; 1500 if it was given none
	PID        int                 `json:"pid,omitempty"` // of the process that holds it; 0 if the caller sees none
	// of the user for whom qemu-netup made it, or who alone claims it; 0 for none
	UID     int  `json:"uid,omitempty"`
	Via     Via  `json:"via,omitempty"`     // how a libvirt guest got it; empty for other guests
	Foreign bool `json:"foreign,omitempty"` // made by libvirt itself; vmnet never changes it
}

// State is the state of a NIC: that of its bridge port, or one of the following.
type State string

// States besides those of a bridge port (BR_STATE_* in include/uapi/linux/if_bridge.h).
const (
	Attaching   State = "attaching"    // a vmnet is working on it
	Starting    State = "starting"     // made for a guest that libvirt is about to start, or for a VMM to open by name
	Detaching   State = "detaching"    // the guest was asked to release it
	Changing    State = "changing"     // a set works on it, or was cut short: vmnet reconcile
	Incomplete  State = "incomplete"   // an attach was cut short: vmnet reconcile
	LeftOver    State = "left-over"    // nobody holds it: vmnet reconcile
	NoBridge    State = "no-bridge"    // it has no master
	PortError   State = "port-error"   // Open vSwitch cannot use it
	NoFlows     State = "no-flows"     // OVN has not installed its flows
	OtherBridge State = "other-bridge" // it has another master than its record says
	Prepared    State = "prepared"     // it is down until vmnet commit
	Down        State = "down"
	NoCarrier   State = "no-carrier" // its parent device has no carrier
	Up          State = "up"         // a macvtap or ipvtap, which has no port
	Hidden      State = "hidden"     // the caller sees no process that holds it
	NoSwitch    State = "no-switch"  // its switch has ended, or has lost it
	Stopped     State = "stopped"    // its switch has stopped its port, since that is part of a loop
	Gone        State = "gone"       // its device was deleted, alone or with its parent device; the guest's NIC is dead
	Unknown     State = "unknown"    // its switch could not be asked
)

// TypeTap is the type of a NIC on a Linux bridge. The other types are below, in switch.go, and the
// kinds of package vtap.
const TypeTap = "tap"

// TypeOVS is the type of a NIC whose tap is a port of a bridge of Open vSwitch.
const TypeOVS = "ovs"

// Holder is a process that holds queues of a tap, or the netns that a macvtap is in. Only holders
// decide what is in use and what is left over, never a guest's name.
type Holder struct {
	PID int   `json:"pid"`
	FDs []int `json:"fds"` // its queues, ascending
}

// Result is the result of an attach.
type Result struct {
	NIC       NIC
	Changed   bool          // false if the NIC existed already, as asked for
	ForwardIn time.Duration // until the bridge port forwards; 0 if it does
	Notices   []string      // for the user; they are no errors

	// Differences lists what differs from the record and cannot be mended by an attach.
	Differences []Difference
}

// Action is one thing that Reconcile did, would do, or left alone.
type Action struct {
	VM        string `json:"vm"`
	NIC       string `json:"nic"`
	Interface string `json:"interface"`
	Action    string `json:"action"`          // in words
	Changed   bool   `json:"changed"`         // it changes something
	Error     string `json:"error,omitempty"` // why it did not succeed
}

// Difference is one property of a NIC that differs from its record.
type Difference struct {
	VM        string `json:"vm"`
	NIC       string `json:"nic"`
	Interface string `json:"interface"`
	What      string `json:"what"`
	Want      string `json:"want"`
	Found     string `json:"found"`
	MendedBy  Mender `json:"mended_by"`
	Mend      string `json:"mend"` // the command that mends it, or what to do
}

// Mender is what can mend a Difference.
type Mender string

// What mends a Difference; reconcile includes the same attach again.
const (
	MendReconcile Mender = "reconcile" // vmnet reconcile, as root
	MendAttach    Mender = "attach"    // the same attach again, which replaces the NIC
	MendDetach    Mender = "detach"    // a detach, and another attach if the NIC is still wanted
	MendApply     Mender = "apply"     // vmnet apply, which makes it as the guest's file says
	MendAdmin     Mender = "admin"     // the administrator who has changed the host
)

// Errors that errors.Is finds in those of package tapmgr, besides the cause: the errno,
// fs.ErrNotExist, the errors of packages qmp and qemu.
var (
	// ErrInvalid is returned for a Spec that is inconsistent.
	ErrInvalid = errors.New("invalid request")
	// ErrExist is returned if another NIC has that id, or another device that name.
	ErrExist = errors.New("exists already")
	// ErrLink is returned if the host's part fails: device, port, vhost.
	ErrLink = errors.New("host side")
	// ErrHandover is returned if the VMM cannot be given the NIC.
	ErrHandover = errors.New("hand-over")
	// ErrOtherGuest is returned if a process or monitor is not that of the named guest.
	ErrOtherGuest = errors.New("another guest")
	// ErrInUse is returned if a running process still holds the device.
	ErrInUse = errors.New("in use")
)

// IsSocket reports whether the NIC has no interface on the host; see [Record.IsSocket].
func (n NIC) IsSocket() bool { return isSocket(n.Type) }

// SecurityText returns the NIC's port security for a person; empty for none.
func (n NIC) SecurityText() string {
	text := n.PortSecurity
	if len(n.Nets) > 0 {
		text += ", addresses of " + portsec.FormatNets(n.Nets)
	}
	if len(n.EtherTypes) > 0 {
		text += ", also EtherType " + portsec.FormatEtherTypes(n.EtherTypes)
	}
	return text
}

// TypeRouted is the type of a NIC by whose tap the host routes the guest's addresses. An older
// vmnet does not know it, and so leaves such a tap alone.
const TypeRouted = "routed"

// A Change is one thing that a set changes of a NIC, in the words of the flags.
type Change struct {
	Flag string `json:"flag"` // that asks for it, without dashes
	From string `json:"from"` // empty for what is not set
	To   string `json:"to"`
}

// Persistence is the change of whether libvirt stores the NIC.
func Persistence(stored bool) Change {
	if stored {
		return Change{Flag: "persistent", To: "true"}
	}
	return Change{Flag: "persistent", From: "true"}
}

// ChangeResult is the result of a set.
type ChangeResult struct {
	NIC     NIC
	Changes []Change
	Changed bool     // false if the NIC was as asked for
	Notices []string // for the user; they are no errors

	// Differences lists what differs from the record and cannot be mended.
	Differences []Difference
}

// An Address is one that a NIC has, and from where that is known. Its JSON keys are stable.
type Address struct {
	IP   netip.Addr `json:"ip"`
	From []string   `json:"from"` // "lease", "neighbour", "agent", "port security", "routed", "configured"
}

// String returns the address with its sources in parentheses.
func (a Address) String() string { return a.IP.String() + " (" + strings.Join(a.From, ", ") + ")" }

// Traffic counts what passed a NIC since its host interface was made. Its JSON keys are stable.
type Traffic struct {
	FromGuest Direction `json:"from_guest"`
	ToGuest   Direction `json:"to_guest"`
}

// Direction counts one direction of a NIC's traffic.
type Direction struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	Errors  uint64 `json:"errors"`
	Dropped uint64 `json:"dropped"`
}

// HostAccess is a macvlan in mode bridge by which the host and the macvtap guests on the same
// parent device reach each other. It stays until it is switched off. Its JSON keys are stable.
type HostAccess struct {
	Parent    string         `json:"lower"` // the parent device's name
	Interface string         `json:"interface"`
	MAC       string         `json:"mac"`
	MTU       int            `json:"mtu"`       // bytes
	Addresses []netip.Prefix `json:"addresses"` // of the host on it, without IPv6 link-local ones
	State     State          `json:"state"`
	Notices   []string       `json:"notices,omitempty"` // what a person should know although it is no error

	Added []netip.Prefix `json:"-"` // the Addresses that switching it on has added
}

// TypeMacvlan is the type that a HostAccess has in a list of NICs.
const TypeMacvlan = "macvlan"

// hostAccessMode is what such a list shows as the mode of a HostAccess.
const hostAccessMode = "host access"

// NIC returns the HostAccess as a row of a list of NICs. It has neither guest nor model nor queues.
func (a HostAccess) NIC() NIC {
	return NIC{
		Interface: a.Interface, Type: TypeMacvlan, Source: a.Parent, Mode: hostAccessMode,
		MAC: a.MAC, MTU: a.MTU, State: a.State,
	}
}

// Parent describes a parent device.
type Parent struct {
	Name       string      `json:"lower"`
	HostAccess *HostAccess `json:"host_access"` // nil if it is off
	NICs       []NIC       `json:"nics"`        // of guests, on that device
}

// GuestConfig is what a routed guest must be configured with, which no server sends it. Its JSON
// keys are stable.
type GuestConfig struct {
	Addresses []string `json:"addresses"` // with the prefix lengths of single addresses
	Gateways  []string `json:"gateways"`  // one for each IP version; on the link, though no route says so
	CloudInit string   `json:"cloud_init"`
}

// configOf returns the configuration for a guest's NIC of that MAC address. CloudInit is a
// network-config of version 2, which netplan takes as well.
func configOf(mac string, ips []netip.Addr) GuestConfig {
	var c GuestConfig
	var quoted, routes []string
	for _, a := range ips {
		text := netip.PrefixFrom(a, a.BitLen()).String()
		c.Addresses, quoted = append(c.Addresses, text), append(quoted, fmt.Sprintf("%q", text))
	}
	for _, v := range []struct {
		six bool
		to  string
		via netip.Addr
	}{{false, "0.0.0.0/0", gateway.IPv4}, {true, "::/0", gateway.IPv6}} {
		if slices.ContainsFunc(ips, func(a netip.Addr) bool { return a.Is6() == v.six }) {
			c.Gateways = append(c.Gateways, v.via.String())
			routes = append(routes, fmt.Sprintf("      - {to: %q, via: %q, on-link: true}\n", v.to, v.via))
		}
	}
	const form = "version: 2\nethernets:\n  lan:\n    match: {macaddress: %q}\n    addresses: [%s]\n    routes:\n%s"
	c.CloudInit = fmt.Sprintf(form, mac, strings.Join(quoted, ", "), strings.Join(routes, ""))
	return c
}

// String returns the configuration for people, in lines.
func (c GuestConfig) String() string {
	return fmt.Sprintf("In the guest: address %s; default route on link via %s. As cloud-init's network-config:\n%s",
		strings.Join(c.Addresses, ", "), strings.Join(c.Gateways, ", "), indent(c.CloudInit))
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n  ")
}

// GuestConfig returns what the guest must be configured with for a routed NIC; nil for others.
func (n NIC) GuestConfig() *GuestConfig {
	if n.Type != TypeRouted {
		return nil
	}
	c := configOf(n.MAC, n.IP)
	return &c
}
