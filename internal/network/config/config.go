// Package config is a network as data: what its file in /etc/vmnet/networks.d says, how that is
// read and written, and which subnets are free. docs/man/vmnet-network.8.md describes the file.
package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Network is what a network should be.
type Network struct {
	Name     string       // of its bridge too
	NAT      bool         // guests reach the world beyond the host, by the host's addresses
	Subnet   netip.Prefix // IPv4
	IPv6     netip.Prefix // a /64; the zero Prefix for none
	DHCP     bool         // the network has a server: addresses, names, router advertisements
	Domain   string       // what the names of its guests end with
	Isolated bool         // guests do not reach each other
	MTU      int          // in bytes; 0 if the network sets none
	// Integrate says that other firewalls of the host are changed so that they let the network's
	// traffic pass.
	Integrate bool
	Hosts     []Host
	Forwards  []Forward

	Uplink *Uplink // nil for a network of this host's own
}

// Host is a guest whose name and address are fixed.
type Host struct {
	Name string
	MAC  net.HardwareAddr
	IP   netip.Addr // IPv4, in the subnet
}

// Limits of what is described.
const (
	maxName    = 15 // bytes of an interface name: IFNAMSIZ of include/uapi/linux/if.h less its NUL
	maxLabel   = 63 // bytes of a DNS label (RFC 1035)
	maxDomain  = 200
	minBits    = 16
	maxBits    = 29
	ipv6Bits   = 64   // which SLAAC wants (RFC 4862)
	minMTU     = 1280 // of IPv6 (RFC 8200)
	leaseStart = 4    // the dynamic addresses begin after this fraction of the subnet
)

// GuestMTU returns the MTU of guests on the network, in bytes.
func (n *Network) GuestMTU() int { return cmp.Or(n.MTU, 1500) }

// MaxMTU is the largest MTU of a network, in bytes. passt(1) has the same; a tap takes one byte
// more (MAX_MTU of drivers/net/tun.c less an Ethernet header).
const MaxMTU = 65520

// DefaultDomain returns the domain of a network whose file names none.
func DefaultDomain(name string) string { return name + ".internal" }

// ServerLink returns the name of the bridge's port behind which the server is.
func (n *Network) ServerLink() string {
	const suffix, hash, kept = "-srv", 4, 6
	if len(n.Name)+len(suffix) <= maxName {
		return n.Name + suffix
	}
	sum := sha256.Sum256([]byte(n.Name))
	return n.Name[:kept] + "-" + hex.EncodeToString(sum[:])[:hash] + suffix
}

// Router returns the host's own IPv4 address in the network, the first one.
func (n *Network) Router() netip.Prefix { return at(n.Subnet, 1) }

// Server returns the IPv4 address of the DHCP and DNS server: the second one, or on an uplink the
// first of the range.
func (n *Network) Server() netip.Prefix {
	if n.Uplink != nil {
		return netip.PrefixFrom(n.Uplink.Range.First, n.Subnet.Bits())
	}
	return at(n.Subnet, 2)
}

// Gateway returns the address of the router that guests learn; the zero Addr for none.
func (n *Network) Gateway() netip.Addr {
	switch {
	case n.Uplink != nil:
		return n.Uplink.Router
	case n.NAT:
		return n.Router().Addr()
	}
	return netip.Addr{}
}

// Router6 returns the host's own IPv6 address in the network.
func (n *Network) Router6() netip.Prefix { return at(n.IPv6, 1) }

// Server6 returns the IPv6 address of the DNS server.
func (n *Network) Server6() netip.Prefix { return at(n.IPv6, 2) }

// Addresses returns the addresses of the host in the network, with their prefix lengths; none on an
// uplink, where the network does not choose them.
func (n *Network) Addresses() []netip.Prefix {
	if n.Uplink != nil {
		return nil
	}
	addrs := []netip.Prefix{n.Router()}
	if n.IPv6.IsValid() {
		addrs = append(addrs, n.Router6())
	}
	return addrs
}

// Leased returns the first and the last address that the server gives to guests that are no Hosts.
func (n *Network) Leased() (first, last netip.Addr) {
	if n.Uplink != nil {
		return n.Uplink.Range.First.Next(), n.Uplink.Range.Last
	}
	size := uint32(1) << (32 - n.Subnet.Bits())
	return at(n.Subnet, max(firstOfGuests, size/leaseStart)).Addr(), at(n.Subnet, size-2).Addr()
}

// Prefixes returns the subnets of the network, as far as they are known.
func (n *Network) Prefixes() []netip.Prefix {
	if !n.Subnet.IsValid() {
		return nil
	}
	if n.IPv6.IsValid() {
		return []netip.Prefix{n.Subnet, n.IPv6}
	}
	return []netip.Prefix{n.Subnet}
}

// at returns the address number i of p.
func at(p netip.Prefix, i uint32) netip.Prefix {
	b := p.Masked().Addr().AsSlice()
	last := b[len(b)-4:]
	binary.BigEndian.PutUint32(last, binary.BigEndian.Uint32(last)+i)
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, p.Bits())
}

// Host returns the Host of that name.
func (n *Network) Host(name string) (Host, bool) {
	i := slices.IndexFunc(n.Hosts, func(h Host) bool { return h.Name == name })
	if i < 0 {
		return Host{}, false
	}
	return n.Hosts[i], true
}

// ChooseIPs gives each Host without an address a free one, from the start of the subnet.
func (n *Network) ChooseIPs() error {
	if err := n.checkSubnet(); err != nil {
		return err
	}
	if n.Uplink != nil {
		for _, h := range n.Hosts {
			if !h.IP.IsValid() {
				return fmt.Errorf("host %s: on an uplink it needs an address (write %[1]s=%s,ADDRESS)",
					h.Name, h.MAC)
			}
		}
		return nil
	}
	taken := map[netip.Addr]bool{}
	for _, h := range n.Hosts {
		taken[h.IP] = true
	}
	_, last := n.Leased()
	next := at(n.Subnet, firstOfGuests).Addr()
	for i := range n.Hosts {
		if n.Hosts[i].IP.IsValid() {
			continue
		}
		for taken[next] {
			next = next.Next()
		}
		if last.Less(next) {
			return fmt.Errorf("host %s: %s has no address left (use a larger subnet)", n.Hosts[i].Name, n.Subnet)
		}
		n.Hosts[i].IP, taken[next] = next, true
	}
	return nil
}

// Validate checks all that can be checked without the machine.
func (n *Network) Validate() error {
	for _, err := range []error{
		CheckName(n.Name), n.checkSubnet(), checkIPv6(n.IPv6), checkDomain(n.Domain), checkMTU(n.MTU), n.CheckUplink(),
	} {
		if err != nil {
			return err
		}
	}
	for i := range n.Hosts {
		if err := n.checkHost(i); err != nil {
			return err
		}
	}
	for i := range n.Forwards {
		if err := n.checkForward(i); err != nil {
			return err
		}
	}
	return nil
}

// CheckName returns why a network cannot have that name, or nil.
func CheckName(name string) error {
	if len(name) > maxName || !isLabel(name) {
		return fmt.Errorf("network name %q: want 1 to %d lower-case letters, digits or hyphens, "+
			"with no hyphen at either end", name, maxName)
	}
	return nil
}

// isLabel reports whether s is a label of a domain name, in lower case.
func isLabel(s string) bool {
	for _, c := range []byte(s) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s != "" && len(s) <= maxLabel && s[0] != '-' && s[len(s)-1] != '-'
}

func checkSubnet(p netip.Prefix) error {
	switch {
	case !p.IsValid() || !p.Addr().Is4() || p.Bits() < minBits || p.Bits() > maxBits:
		return fmt.Errorf("subnet %s: want an IPv4 network with a prefix length of %d to %d, such as 10.66.0.0/24",
			p, minBits, maxBits)
	case p != p.Masked():
		return fmt.Errorf("subnet %s: it is an address, not a network (write %s)", p, p.Masked())
	case !usable(p.Addr()):
		return fmt.Errorf("subnet %s: guests cannot have such addresses", p)
	}
	return nil
}

func checkIPv6(p netip.Prefix) error {
	switch {
	case p == netip.Prefix{}:
		return nil
	case !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() != ipv6Bits:
		return fmt.Errorf(
			"ipv6 %s: want none, or a network with prefix length %d, such as fd66:1:2:3::/64",
			p,
			ipv6Bits,
		)
	case p != p.Masked():
		return fmt.Errorf("ipv6 %s: it is an address, not a network (write %s)", p, p.Masked())
	case !usable(p.Addr()):
		return fmt.Errorf("ipv6 %s: guests cannot have such addresses", p)
	}
	return nil
}

// usable reports whether guests may have addresses like a.
func usable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && (!a.Is4() || a.As4()[0] != 0 && a.As4()[0] < 240)
}

func checkDomain(domain string) error {
	labels := strings.Split(domain, ".")
	if len(domain) > maxDomain || slices.ContainsFunc(labels, func(l string) bool { return !isLabel(l) }) {
		return fmt.Errorf("domain %q: want a lower-case domain name of at most %d bytes, such as lab.internal",
			domain, maxDomain)
	}
	return nil
}

// checkHost returns what is wrong with a host, or contradicts one before it.
func (n *Network) checkHost(i int) error {
	h := n.Hosts[i]
	switch {
	case !isLabel(h.Name):
		return fmt.Errorf("host name %q: want 1 to %d lower-case letters, digits or hyphens", h.Name, maxLabel)
	case len(h.MAC) != 6 || h.MAC[0]&1 != 0:
		return fmt.Errorf("host %s: mac %s: want six bytes, not multicast", h.Name, h.MAC)
	case !h.IP.Is4():
		return fmt.Errorf("host %s: ip %s: want an IPv4 address", h.Name, h.IP)
	}
	if err := n.CheckIP(h.IP); err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	return n.checkHostAlone(i)
}

// checkHostAlone returns what a host has in common with one before it.
func (n *Network) checkHostAlone(i int) error {
	h := n.Hosts[i]
	for _, other := range n.Hosts[:i] {
		switch {
		case other.Name == h.Name:
			return fmt.Errorf("host %s: there are two of that name", h.Name)
		case other.MAC.String() == h.MAC.String():
			return fmt.Errorf("host %s: host %s has the mac %s as well", h.Name, other.Name, h.MAC)
		case other.IP == h.IP:
			return fmt.Errorf("host %s: host %s has the ip %s as well", h.Name, other.Name, h.IP)
		}
	}
	return nil
}

func checkMTU(mtu int) error {
	if mtu != 0 && (mtu < minMTU || mtu > MaxMTU) {
		return fmt.Errorf("mtu %d: want %d to %d", mtu, minMTU, MaxMTU)
	}
	return nil
}
