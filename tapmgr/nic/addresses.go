package nic

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/bridge/portsec"
	"vmnet/macvtap/vtap"
	"vmnet/step"
)

// maxIPs is how many addresses a NIC has at most: the alias has room for few.
const maxIPs = 8

// minIPv6MTU is the least that IPv6 works with, in bytes (RFC 8200).
const minIPv6MTU = 1280

// TypeRouted is the type of a NIC by whose tap the host routes the guest's addresses. An older
// vmnet does not know it, and so leaves such a tap alone.
const TypeRouted = "routed"

// validateNetwork checks the network or uplink, and the guest's own addresses.
func (s Spec) validateNetwork() error {
	switch {
	case s.Routed != "" && !brport.ValidName(s.Routed):
		return fmt.Errorf("uplink name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", s.Routed)
	case s.Routed != "" && len(s.IP) == 0:
		return errors.New("a routed NIC needs an address of the LAN, by which packets find it (--ip)")
	case s.Routed != "" && s.MTU != 0 && s.MTU < minIPv6MTU && slices.ContainsFunc(s.IP, netip.Addr.Is6):
		return fmt.Errorf("MTU %d: IPv6 needs at least %d bytes", s.MTU, minIPv6MTU)
	case s.Network != "" && !brport.ValidName(s.Network):
		return fmt.Errorf("network name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", s.Network)
	case len(s.IP) > 0 && s.Network == "" && s.Routed == "" && s.Switch == nil && s.Security.IsZero():
		return errors.New("a guest's own addresses need a network, an uplink or port security " +
			"(--ip with --network, --routed or --port-security)")
	case len(s.IP) > maxIPs:
		return fmt.Errorf("%d addresses: at most %d", len(s.IP), maxIPs)
	}
	for i, a := range s.IP {
		switch {
		case !validIP(a):
			return fmt.Errorf("IP %s: want the address of one guest, without a zone", a)
		case s.Routed != "" && a.IsLinkLocalUnicast():
			return fmt.Errorf("IP %s: link-local addresses are not routed", a)
		case slices.Contains(s.IP[:i], a):
			return fmt.Errorf("IP %s is given twice", a)
		}
	}
	return nil
}

// validIP reports whether one guest can have an address: it is of one host, and written in one way.
func validIP(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// parseIPs parses the addresses of a record, and sorts them.
func parseIPs(text string) (ips []netip.Addr, err error) {
	for part := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(part)
		if err != nil || !validIP(a) || len(ips) == maxIPs || slices.Contains(ips, a) {
			return nil, fmt.Errorf("addresses %q", text)
		}
		ips = append(ips, a)
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return ips, nil
}

// FormatIPs returns addresses as text, sorted and separated by commas.
func FormatIPs(ips []netip.Addr) string {
	var texts []string
	for _, a := range slices.SortedFunc(slices.Values(ips), netip.Addr.Compare) {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ",")
}

// GuestConfig returns what the guest must be configured with for a routed NIC; nil for others.
func (n NIC) GuestConfig() *GuestConfig {
	if n.Type != TypeRouted {
		return nil
	}
	c := configOf(n.MAC, n.IP)
	return &c
}

// Security says which of the guest's frames are dropped.
type Security = portsec.Settings

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

// OwnIPs returns the guest's own addresses, as its record has them. Those of an ipvtap are in its
// record only for port security.
func (s Spec) OwnIPs() []netip.Addr {
	if !s.Lower.isIPVtap() || s.Security.IsZero() {
		return s.IP
	}
	var own []netip.Addr
	for _, p := range s.Lower.Addrs {
		own = append(own, p.Addr())
	}
	return own
}

// validateInbound checks what may come in to the guest.
func (s Spec) validateInbound() error {
	if s.Switch != nil && !s.AllowIn.IsZero() {
		return errors.New("a userspace switch keeps no state of connections (--allow-in with --bridge, --network, " +
			"--routed, --macvtap or --ipvtap; or filter in the guest)")
	}
	return s.AllowIn.Validate()
}

// anyMAC stands for the address of a NIC that its parent device decides.
var anyMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0}

// CheckSecurity returns an error if the port security is inconsistent or lacks addresses, or if
// what may come in cannot be filtered. It matches ErrInvalid.
func (s Spec) CheckSecurity() error {
	return step.WithStage(ErrInvalid, cmp.Or(s.validateSecurity(), s.validateInbound()))
}

func (s Spec) validateSecurity() error {
	c := s.Security
	switch {
	case c.IsZero() && len(c.EtherTypes) > 0:
		return errors.New("EtherTypes that pass need port security, which drops others " +
			"(--allow-ethertype with --port-security)")
	case c.IsZero() && len(c.Nets) > 0:
		return errors.New("a network as an address of the guest needs port security (--ip with --port-security)")
	case c.IsZero():
		return nil
	case c.Checks.Has(portsec.VLAN) && len(s.Port.Trunk) > 0:
		return fmt.Errorf("port security vlan drops the tagged frames that --trunk is for (--port-security %s)",
			c.Checks&^portsec.VLAN)
	case s.Lower != nil && s.Lower.Kind == vtap.IPVtap && len(s.OwnIPs()) > maxIPs:
		return fmt.Errorf("%d addresses: with port security at most %d", len(s.OwnIPs()), maxIPs)
	case len(c.Nets) > portsec.MaxNets:
		return fmt.Errorf("%d networks of addresses: at most %d", len(c.Nets), portsec.MaxNets)
	}
	mac := s.MAC
	if mac == nil {
		mac = anyMAC
	}
	return c.Config(mac, s.OwnIPs()).Validate()
}
