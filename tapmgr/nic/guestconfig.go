package nic

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vmnet/internal/routed/gateway"
)

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
