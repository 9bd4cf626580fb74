package nic

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"vmnet/bridge/portsec"
	"vmnet/macvtap/vtap"
	"vmnet/step"
)

// Security says which of the guest's frames are dropped (package portsec). They are compared with
// the NIC's MAC address and with the guest's own IP addresses.
type Security struct {
	Checks     portsec.Checks      `json:"checks"`
	EtherTypes []portsec.EtherType `json:"ethertypes,omitempty"` // further ones that pass
	Nets       []netip.Prefix      `json:"nets,omitempty"`       // from which the guest chooses further addresses
}

// IsZero reports whether nothing is checked.
func (s Security) IsZero() bool { return s.Checks == 0 }

// String returns the settings as text, such as "all;type:0x88f7", sorted; "none" if nothing is
// checked.
func (s Security) String() string {
	words := []string{s.Checks.String()}
	if len(s.EtherTypes) > 0 {
		words = append(words, "type:"+formatTypes(s.EtherTypes))
	}
	if len(s.Nets) > 0 {
		words = append(words, "net:"+formatNets(s.Nets))
	}
	return strings.Join(words, ";")
}

// SecurityText returns the NIC's port security for a person; empty for none.
func (n NIC) SecurityText() string {
	text := n.PortSecurity
	if len(n.Nets) > 0 {
		text += ", addresses of " + formatNets(n.Nets)
	}
	if len(n.EtherTypes) > 0 {
		text += ", also EtherType " + formatTypes(n.EtherTypes)
	}
	return text
}

// config returns what the frames of a NIC with that address are checked by, sorted.
func (s Security) config(mac net.HardwareAddr, ips []netip.Addr) portsec.Config {
	if s.IsZero() {
		return portsec.Config{}
	}
	return portsec.Config{
		Checks: s.Checks, MAC: mac, EtherTypes: slices.Sorted(slices.Values(s.EtherTypes)),
		IPs: slices.SortedFunc(slices.Values(append(hostPrefixes(ips), s.Nets...)), netip.Prefix.Compare),
	}
}

// hostPrefixes returns the addresses as prefixes of one host each.
func hostPrefixes(ips []netip.Addr) (list []netip.Prefix) {
	for _, a := range ips {
		list = append(list, netip.PrefixFrom(a, a.BitLen()))
	}
	return list
}

// PortSecurity returns what the guest's frames are checked by; its zero value is nothing.
func (r Record) PortSecurity() portsec.Config { return r.Security.config(r.MAC, r.IP) }

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

// anyMAC stands for the address of a NIC that its parent device decides.
var anyMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0}

// CheckSecurity returns an error if the port security is inconsistent, or lacks addresses. It
// matches ErrInvalid.
func (s Spec) CheckSecurity() error { return step.WithStage(ErrInvalid, s.validateSecurity()) }

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
	case len(c.Nets) > maxIPs:
		return fmt.Errorf("%d networks of addresses: at most %d", len(c.Nets), maxIPs)
	}
	mac := s.MAC
	if mac == nil {
		mac = anyMAC
	}
	return c.config(mac, s.OwnIPs()).Validate()
}

// encode writes the settings' part of a record.
func (s Security) encode(add func(key, value string)) {
	if s.IsZero() {
		return
	}
	add("security", s.Checks.String())
	add("types", formatTypes(s.EtherTypes))
	add("nets", formatNets(s.Nets))
}

// set sets one field of a record, and reports whether encode writes such a value. It ignores a key
// that is not a setting's.
func (s *Security) set(key, value string) bool {
	var err error
	switch key {
	case "security":
		s.Checks, err = portsec.ParseChecks(value)
	case "types":
		s.EtherTypes, err = parseList(value, portsec.MaxEtherTypes, portsec.ParseEtherType)
	case "nets":
		s.Nets, err = parseList(value, maxIPs, portsec.ParseIP)
	}
	return err == nil
}

func parseList[T any](text string, most int, parse func(string) (T, error)) (list []T, err error) {
	for part := range strings.SplitSeq(text, ",") {
		v, err := parse(part)
		if err != nil || len(list) == most {
			return nil, fmt.Errorf("list %q", text)
		}
		list = append(list, v)
	}
	return list, nil
}

func formatTypes(types []portsec.EtherType) string {
	var texts []string
	for _, t := range slices.Sorted(slices.Values(types)) {
		texts = append(texts, t.String())
	}
	return strings.Join(texts, ",")
}

func formatNets(nets []netip.Prefix) string {
	var texts []string
	for _, p := range slices.SortedFunc(slices.Values(nets), netip.Prefix.Compare) {
		texts = append(texts, portsec.FormatIP(p))
	}
	return strings.Join(texts, ",")
}
