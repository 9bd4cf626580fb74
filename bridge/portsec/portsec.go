// Package portsec describes port security: what a guest may send by its NIC, as data ([Config]),
// and which frames pass by it ([Checker]). It touches no kernel.
//
// Two engines check a guest's frames: the kernel runs a BPF program (internal/kernel/bpfguard) at
// the guest's tap or macvtap, and the userspace switch runs [Checker.Verdict]. Both have the same
// reasons, and a test compares them frame by frame.
package portsec

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Checks is a set of checks.
type Checks uint8

// The checks. Any besides MAC and VLAN also drops what hides from it: frames of other EtherTypes
// than IPv4, IPv6, ARP and RARP unless Config.EtherTypes lists them, frames of IEEE 802.3 with LLC
// (such as BPDUs), and frames with more than two VLAN tags.
const (
	// MAC: the source of a frame is the NIC's own address.
	MAC Checks = 1 << iota

	// IP: the source of IPv4 and IPv6 is one of the NIC's own addresses. Without an address,
	// DHCP clients, duplicate address detection, router solicitations, and reports of IGMP and
	// MLD pass.
	IP

	// ARP: an ARP message names the NIC's own MAC address and one of its own IP addresses as its
	// sender. A probe (RFC 5227) has no sender's IP address, and asks for one of its own. RARP
	// passes as QEMU announces a migrated guest: a request by the NIC for itself.
	ARP

	// ND: a solicitation or an advertisement of neighbors (RFC 4861) comes from one of the NIC's
	// own addresses, advertises or probes no other address, and has no other link-layer address
	// in its options. Such messages are not fragmented (RFC 6980).
	ND

	// DHCP: no message of a DHCP server or relay, to a client's port or from a server's port.
	DHCP

	// RA: no router advertisement and no redirect of IPv6, neither behind extension headers
	// (RFC 7113) nor in fragments.
	RA

	// VLAN: no VLAN tag, of IEEE 802.1Q or 802.1ad, not even of VLAN 0 (a priority tag).
	VLAN

	All = MAC | IP | ARP | ND | DHCP | RA | VLAN

	payload = All &^ (MAC | VLAN) // the checks that look behind the Ethernet header
)

// words are the checks' names, in the order of their bits.
var words = []string{"mac", "ip", "arp", "nd", "dhcp", "ra", "vlan"}

// Has reports whether all checks of some are in the set.
func (c Checks) Has(some Checks) bool { return c&some == some }

// String returns the set as ParseChecks takes it.
func (c Checks) String() string {
	switch c & All {
	case 0:
		return "none"
	case All:
		return "all"
	}
	var names []string
	for i, w := range words {
		if c.Has(1 << i) {
			names = append(names, w)
		}
	}
	return strings.Join(names, ",")
}

// ParseChecks parses a list of checks separated by commas, "all" or "none".
func ParseChecks(list string) (Checks, error) {
	switch list {
	case "none":
		return 0, nil
	case "all":
		return All, nil
	}
	var c Checks
	for w := range strings.SplitSeq(list, ",") {
		i := slices.Index(words, w)
		switch {
		case i < 0:
			return 0, fmt.Errorf("port security %q: want all, none, or a list of %s", w,
				strings.Join(words, ","))
		case c.Has(1 << i):
			return 0, fmt.Errorf("port security %q is listed twice", w)
		}
		c |= 1 << i
	}
	return c, nil
}

// MarshalText returns the set as String does.
func (c Checks) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText parses the set as ParseChecks does.
func (c *Checks) UnmarshalText(b []byte) (err error) {
	*c, err = ParseChecks(string(b))
	return err
}

// ErrInvalid is returned for port security whose description is inconsistent or out of range.
var ErrInvalid = errors.New("invalid port security")

// What a Config has room for.
const (
	MaxIPs        = 16 // of each family; with IPv6, one of them is the link-local address
	MaxEtherTypes = 8
)

// Config is the port security of a NIC. Its zero value checks nothing.
type Config struct {
	// Checks are the checks to make.
	Checks Checks `json:"checks"`

	// MAC is the NIC's own address, of 6 bytes. MAC, ARP and ND need it.
	MAC net.HardwareAddr `json:"mac,omitempty"`

	// IPs are the NIC's own addresses, or the networks from which it chooses addresses. IP
	// needs them. Without them, ARP and ND check only the MAC addresses. With an IPv6
	// address, the link-local address that the NIC derives from its MAC address (EUI-64, RFC
	// 4291) is one of its own, too. Of a family without an address, IP lets nothing pass.
	IPs []netip.Prefix `json:"ips,omitempty"`

	// EtherTypes are further types of frames that pass.
	EtherTypes []EtherType `json:"ethertypes,omitempty"`
}

// IsZero reports whether the Config checks nothing.
func (cfg Config) IsZero() bool { return cfg.Checks == 0 }

// Validate checks that the Config is consistent. Its error matches ErrInvalid with errors.Is.
func (cfg Config) Validate() error {
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

func (cfg Config) validate() error {
	switch {
	case cfg.Checks&^All != 0:
		return fmt.Errorf("unknown checks %#x", uint8(cfg.Checks&^All))
	case cfg.MAC == nil && cfg.Checks&(MAC|ARP|ND) != 0:
		return fmt.Errorf("%s need the NIC's MAC address", cfg.Checks&(MAC|ARP|ND))
	case cfg.MAC != nil && !validMAC(cfg.MAC):
		return fmt.Errorf("address %s: want 6 bytes, not multicast and not all zeros", cfg.MAC)
	case cfg.Checks.Has(IP) && len(cfg.IPs) == 0:
		return errors.New("ip needs the NIC's own addresses (--ip ADDRESS); without them, use mac,arp,nd,dhcp,ra,vlan")
	case len(cfg.EtherTypes) > MaxEtherTypes:
		return fmt.Errorf("%d EtherTypes: at most %d", len(cfg.EtherTypes), MaxEtherTypes)
	case len(cfg.EtherTypes) > 0 && cfg.Checks&payload == 0:
		return fmt.Errorf("EtherTypes need one of %s, which restrict them", payload)
	}
	for i, t := range cfg.EtherTypes {
		if err := t.validate(); err != nil {
			return err
		}
		if slices.Contains(cfg.EtherTypes[:i], t) {
			return fmt.Errorf("EtherType %s is listed twice", t)
		}
	}
	return cfg.validateIPs()
}

func (cfg Config) validateIPs() error {
	for i, p := range cfg.IPs {
		a := p.Addr()
		switch {
		case !p.IsValid() || p != p.Masked():
			return fmt.Errorf("address %s: want an address, or a network without host bits", p)
		case a.Is4In6():
			return fmt.Errorf("address %s: want plain IPv4 or IPv6", p)
		case p.Bits() > 0 && (a.IsUnspecified() || a.IsMulticast() || a.IsLoopback()) || a == broadcast:
			return fmt.Errorf("address %s is no host's own", p)
		case slices.Contains(cfg.IPs[:i], p):
			return fmt.Errorf("address %s is listed twice", p)
		}
	}
	for _, most := range [][]netip.Prefix{family(cfg.Own(), true), family(cfg.Own(), false)} {
		if len(most) > MaxIPs {
			return fmt.Errorf("%d addresses of one family: at most %d, the link-local address included",
				len(most), MaxIPs)
		}
	}
	return nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func validMAC(mac net.HardwareAddr) bool {
	return len(mac) == 6 && mac[0]&1 == 0 && slices.Max(mac) > 0
}

// Own returns the NIC's own addresses: IPs and, if there is an IPv6 address among them and the MAC
// address is known, its link-local address.
func (cfg Config) Own() []netip.Prefix {
	own := slices.Clone(cfg.IPs)
	if len(family(own, false)) == 0 || len(cfg.MAC) != 6 {
		return own
	}
	local := netip.PrefixFrom(LinkLocal(cfg.MAC), 128)
	if !slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Contains(local.Addr()) }) {
		own = append(own, local)
	}
	return own
}

// family returns those of the prefixes that are of IPv4, or those of IPv6.
func family(all []netip.Prefix, four bool) (some []netip.Prefix) {
	for _, p := range all {
		if p.Addr().Is4() == four {
			some = append(some, p)
		}
	}
	return some
}

// LinkLocal returns the link-local address with the modified EUI-64 of the MAC address (RFC 4291,
// appendix A).
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe,
		13: mac[3], 14: mac[4], 15: mac[5],
	})
}

// Equal reports whether both let the same frames pass, for the same reasons. The order of addresses
// and types does not matter, nor whether the link-local address is listed.
func (cfg Config) Equal(other Config) bool {
	cfg.IPs, other.IPs = cfg.Own(), other.Own()
	return cfg.String() == other.String()
}

// String returns the Config as text: the checks, and what they compare with.
func (cfg Config) String() string {
	if cfg.IsZero() {
		return "none"
	}
	text := cfg.Checks.String()
	if cfg.MAC != nil {
		text += " mac:" + cfg.MAC.String()
	}
	ips := slices.SortedFunc(slices.Values(cfg.IPs), netip.Prefix.Compare)
	for i, p := range ips {
		text += separator(" ip:", i) + FormatIP(p)
	}
	for i, t := range slices.Sorted(slices.Values(cfg.EtherTypes)) {
		text += separator(" type:", i) + t.String()
	}
	return text
}

func separator(first string, i int) string {
	if i == 0 {
		return first
	}
	return ","
}

// ParseIP parses an address, or a network such as 2001:db8::/64.
func ParseIP(text string) (netip.Prefix, error) {
	if strings.Contains(text, "/") {
		return netip.ParsePrefix(text)
	}
	a, err := netip.ParseAddr(text)
	if err == nil && a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("address %s: want one without a zone", text)
	}
	return netip.PrefixFrom(a, a.BitLen()), err
}

// FormatIP returns an address or a network as ParseIP takes it.
func FormatIP(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// An EtherType says what a frame carries (IEEE 802.3, clause 3.2.6).
type EtherType uint16

const (
	typeIPv4 EtherType = 0x0800
	typeARP  EtherType = 0x0806
	typeRARP EtherType = 0x8035
	typeIPv6 EtherType = 0x86dd

	minEtherType EtherType = 0x600 // lower numbers are lengths, of frames with LLC
)

// isTag reports whether a VLAN tag follows: of IEEE 802.1Q, of 802.1ad, or one of the types that
// switches used for double tags before 802.1ad.
func (t EtherType) isTag() bool { return t == 0x8100 || t == 0x88a8 || t == 0x9100 || t == 0x9200 }

func (t EtherType) validate() error {
	switch {
	case t < minEtherType:
		return fmt.Errorf("EtherType %s: want 0x600 to 0xffff", t)
	case t.isTag() || t == typeIPv4 || t == typeARP || t == typeRARP || t == typeIPv6:
		return fmt.Errorf("EtherType %s has checks of its own (leave it out)", t)
	}
	return nil
}

// String returns the type as 0x88f7.
func (t EtherType) String() string { return fmt.Sprintf("%#04x", uint16(t)) }

// ParseEtherType parses a type such as 0x88f7.
func ParseEtherType(text string) (EtherType, error) {
	n, err := strconv.ParseUint(text, 0, 16)
	if err != nil {
		return 0, fmt.Errorf("EtherType %q: want a number such as 0x88f7", text)
	}
	return EtherType(n), EtherType(n).validate()
}

// MarshalText returns the type as String does.
func (t EtherType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText parses the type as ParseEtherType does.
func (t *EtherType) UnmarshalText(b []byte) (err error) {
	*t, err = ParseEtherType(string(b))
	return err
}
