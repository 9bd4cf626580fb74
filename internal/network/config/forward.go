package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Forward leads connections to ports of the host on to a guest.
type Forward struct {
	Protocol    string     // "tcp" or "udp"
	First, Last uint16     // the host's ports
	Listen      netip.Addr // the host's address; the zero Addr for all that it has
	Guest       string     // the name or the address of the guest
	Port        uint16     // the guest's port for First; 0 for the same ports
	Bound       Binding    // to the NIC of a guest that is no Host; zero for a Host, or an address
}

// Binding is a guest's NIC, and the address that the network's server gives it as long as a forward
// leads there.
type Binding struct {
	MAC string // as net.HardwareAddr writes it
	IP  netip.Addr
}

// ParseForward parses what is typed: "tcp:8080" or "udp:5000-5010", and "web:80", "10.66.0.11",
// "[fd66::11]:80". It cannot know whether there is such a guest.
func ParseForward(from, to, listen string) (f Forward, err error) {
	if f.Protocol, f.First, f.Last, err = ParsePorts(from); err != nil {
		return f, err
	}
	if f.Guest, f.Port, err = parseTarget(to); err != nil {
		return f, err
	}
	if f.Port != 0 && f.First != f.Last && f.Port != f.First {
		return f, fmt.Errorf("forward %s to %s: a range keeps its port numbers (leave :%d out)", from, to, f.Port)
	}
	if f.Port == f.First {
		f.Port = 0
	}
	if listen != "" {
		if f.Listen, err = netip.ParseAddr(listen); err != nil || f.Listen.Zone() != "" || f.Listen.IsUnspecified() {
			return f, fmt.Errorf("forward %s: listen %q: want an IP address of the host", from, listen)
		}
		f.Listen = f.Listen.Unmap()
	}
	return f, nil
}

// ParsePorts parses "tcp:8080" or "udp:5000-5010".
func ParsePorts(s string) (protocol string, first, last uint16, err error) {
	protocol, ports, ok := strings.Cut(s, ":")
	a, b, isRange := strings.Cut(ports, "-")
	if !isRange {
		b = a
	}
	first, errFirst := parsePort(a)
	last, errLast := parsePort(b)
	if !ok || protocol != "tcp" && protocol != "udp" || errors.Join(errFirst, errLast) != nil || last < first {
		return "", 0, 0, fmt.Errorf("forward %q: want a protocol and ports, such as tcp:8080 or udp:5000-5010", s)
	}
	return protocol, first, last, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("port %q: want 1 to 65535", s)
	}
	return uint16(n), nil
}

// parseTarget parses "web:80", "web", "10.66.0.11:80" or "[fd66::11]:80".
func parseTarget(s string) (guest string, port uint16, err error) {
	wrong := fmt.Errorf("forward to %q: want a guest and its port, such as web:80, 10.66.0.11:80 or [fd66::11]:80", s)
	guest, rest := s, ""
	if after, ok := strings.CutPrefix(s, "["); ok {
		guest, rest, ok = strings.Cut(after, "]")
		if !ok || rest != "" && rest[0] != ':' {
			return "", 0, wrong
		}
		rest = strings.TrimPrefix(rest, ":")
		if a, err := netip.ParseAddr(guest); err != nil || !a.Is6() {
			return "", 0, wrong
		}
	} else {
		var ok bool
		guest, rest, ok = strings.Cut(s, ":")
		if ok && rest == "" {
			return "", 0, wrong
		}
	}
	if rest != "" {
		if port, err = parsePort(rest); err != nil {
			return "", 0, wrong
		}
	}
	a, err := netip.ParseAddr(guest)
	name := strings.ToLower(guest) // a guest's may be typed as it is elsewhere
	switch {
	case err == nil && a.Zone() == "":
		return a.Unmap().String(), port, nil
	case !isLabel(name):
		return "", 0, wrong
	}
	return name, port, nil
}

// From returns the ports as they are typed: "tcp:8080", "udp:5000-5010".
func (f Forward) From() string {
	if f.First == f.Last {
		return fmt.Sprintf("%s:%d", f.Protocol, f.First)
	}
	return fmt.Sprintf("%s:%d-%d", f.Protocol, f.First, f.Last)
}

// To returns the guest and its port as they are typed: "web:80".
func (f Forward) To() string {
	guest := f.Guest
	if strings.Contains(guest, ":") {
		guest = "[" + guest + "]"
	}
	if f.Port == 0 {
		return guest
	}
	return fmt.Sprintf("%s:%d", guest, f.Port)
}

// Target returns the address that a forward leads to.
func (n *Network) Target(f Forward) (netip.Addr, error) {
	if f.Bound.IP.IsValid() {
		return f.Bound.IP, nil
	}
	if h, ok := n.Host(f.Guest); ok {
		return h.IP, nil
	}
	a, err := netip.ParseAddr(f.Guest)
	switch {
	case err != nil:
		return a, fmt.Errorf("forward %s: network %s has no host %s, and no such guest is on it "+
			"(attach it first, name it with --host %[3]s=MAC, or write its address)", f.From(), n.Name, f.Guest)
	case n.Subnet.Contains(a) || n.IPv6.IsValid() && n.IPv6.Contains(a):
		return a, nil
	}
	return a, fmt.Errorf("forward %s: %s is not in network %s (%s)", f.From(), a, n.Name, n.subnets())
}

func (n *Network) subnets() string {
	var texts []string
	for _, p := range n.Prefixes() {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ", ")
}

// checkForward returns what is wrong with a forward, or contradicts one before it.
func (n *Network) checkForward(i int) error {
	f := n.Forwards[i]
	target, err := n.Target(f)
	if err == nil {
		err = n.checkBinding(f)
	}
	if err != nil {
		return err
	}
	if f.Listen.IsValid() && f.Listen.Is4() != target.Is4() {
		return fmt.Errorf("forward %s: listen %s and %s are of different IP versions", f.From(), f.Listen, target)
	}
	for _, other := range n.Forwards[:i] {
		otherTarget, err := n.Target(other)
		if err == nil && otherTarget.Is4() == target.Is4() && Collide(f, other) {
			return fmt.Errorf("forward %s: %s to %s has the same ports", f.From(), other.From(), other.To())
		}
	}
	return nil
}

// checkBinding returns what is wrong with the NIC that a forward is bound to, or contradicts a host
// or another forward.
func (n *Network) checkBinding(f Forward) error {
	if f.Bound == (Binding{}) {
		return nil
	}
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("forward %s: "+format, append([]any{f.From()}, args...)...)
	}
	_, err := ParseMAC(f.Bound.MAC)
	switch {
	case !isLabel(f.Guest):
		return wrong("mac and ip go with the name of a guest, not with %q", f.Guest)
	case err != nil:
		return wrong("%w", err)
	case !f.Bound.IP.Is4():
		return wrong("ip %s: want an IPv4 address", f.Bound.IP)
	}
	if err := n.CheckIP(f.Bound.IP); err != nil {
		return wrong("%w", err)
	}
	for _, h := range n.Fixed() {
		same := []bool{h.Name == f.Guest, h.MAC.String() == f.Bound.MAC, h.IP == f.Bound.IP}
		if slices.Contains(same, true) && slices.Contains(same, false) {
			return wrong(
				"guest %s with mac %s and ip %s: host %s has mac %s and ip %s",
				f.Guest,
				f.Bound.MAC,
				f.Bound.IP,
				h.Name,
				h.MAC,
				h.IP,
			)
		}
	}
	return nil
}

// Fixed returns the Hosts, and the guests to which forwards are bound.
func (n *Network) Fixed() []Host {
	all := slices.Clone(n.Hosts)
	for _, f := range n.Forwards {
		mac, err := ParseMAC(f.Bound.MAC)
		known := slices.ContainsFunc(
			all,
			func(h Host) bool { return h.Name == f.Guest && h.MAC.String() == f.Bound.MAC },
		)
		if err == nil && !known {
			all = append(all, Host{f.Guest, mac, f.Bound.IP})
		}
	}
	return all
}

// Collide reports whether two forwards, of one IP version, take the same connections.
func Collide(a, b Forward) bool {
	sameAddr := !a.Listen.IsValid() || !b.Listen.IsValid() || a.Listen == b.Listen
	return a.Protocol == b.Protocol && sameAddr && a.First <= b.Last && b.First <= a.Last
}
