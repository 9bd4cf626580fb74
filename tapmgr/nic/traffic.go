package nic

import (
	"net/netip"
	"strings"
)

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
