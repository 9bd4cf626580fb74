package nic

import "net/netip"

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
