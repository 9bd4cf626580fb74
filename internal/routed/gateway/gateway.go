// Package gateway has the addresses of the host on the tap of each routed guest, by which the guest
// reaches all others. A link-local address can be on any number of links.
package gateway

import "net/netip"

// IPv4 and IPv6 are the gateways of each IP version.
var (
	IPv4 = netip.MustParseAddr("169.254.0.1")
	IPv6 = netip.MustParseAddr("fe80::1")
)
