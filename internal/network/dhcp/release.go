package dhcp

import (
	"net"
	"net/netip"
)

// ServerPort is the UDP port of a DHCP server.
const ServerPort = 67

// What a message of DHCP has where (RFC 2131 section 2, RFC 2132 sections 9.6 and 9.7).
const (
	atClientIP  = 12
	atHardware  = 28
	atOptions   = 236
	leastLength = 300 // bytes, of BOOTP

	optionType, optionServer, optionEnd = 53, 54, 255
	typeRelease                         = 7
)

// Release returns the message by which the guest of a lease tells the server at an address that it
// no longer uses its own.
func Release(server netip.Addr, l Lease) ([]byte, error) {
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return nil, err
	}
	m := make([]byte, leastLength)
	m[0], m[1], m[2] = 1, 1, byte(len(mac)) // a request, Ethernet
	copy(m[atClientIP:], l.IP.AsSlice())
	copy(m[atHardware:atHardware+16], mac)
	options := append(m[:atOptions], 99, 130, 83, 99, optionType, 1, typeRelease, optionServer, 4)
	options = append(options, server.AsSlice()...)
	_ = append(options, optionEnd)
	return m, nil
}

// Stale returns the leases that keep a guest or host of a network from its own address, and whose
// holders are no longer there.
func Stale(reserved []Guest, present []Guest, leases []Lease) (stale []Lease) {
	here := map[string]bool{}
	for _, g := range present {
		here[g.MAC.String()] = true
	}
	for _, l := range leases {
		for _, g := range reserved {
			if g.Reserved() == l.IP && g.MAC.String() != l.MAC && !here[l.MAC] {
				stale = append(stale, l)
			}
		}
	}
	return stale
}
