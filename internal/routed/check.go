package routed

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"vmnet/internal/kernel/announce"
	"vmnet/internal/kernel/rtnl"
)

// Uplink reads the link on which the host is to answer for its guests, by its name or altname. It
// must be one on which the host itself uses IP, with ARP.
func (h *Host) Uplink(name string) (*rtnl.Link, error) {
	l, err := h.NL.Link(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w (ip link shows the devices that are here)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("uplink %s: %w", name, err)
	}
	if l.Master != 0 {
		return nil, h.explainMaster(l)
	}
	if !l.ARP {
		return nil, fmt.Errorf("uplink %s is no Ethernet or Wi-Fi card, on which others ask for addresses", l.Name)
	}
	return l, nil
}

func (h *Host) explainMaster(l *rtnl.Link) error {
	m, err := h.NL.LinkByIndex(l.Master)
	switch {
	case err != nil:
		return fmt.Errorf("uplink %s: its master: %w", l.Name, err)
	case m.Kind == "vrf":
		return fmt.Errorf("uplink %s is in VRF %s, whose routes vmnet does not set (ip link set %[1]s nomaster)",
			l.Name, m.Name)
	}
	return fmt.Errorf("uplink %s is a port of %s, which has the host's addresses (--routed %[2]s)", l.Name, m.Name)
}

// Check returns an error if the host, another routed guest or the uplink stands against the NIC's
// addresses, and notices about what does not work as one may expect. It asks nobody on the LAN.
func (h *Host) Check(n NIC, uplink *rtnl.Link) (notices []string, err error) {
	all, err := h.NL.Routes()
	if err != nil {
		return nil, err
	}
	nics, err := h.NICs()
	if err != nil {
		return nil, err
	}
	entries, err := h.NL.Proxies()
	if err != nil {
		return nil, err
	}
	for _, a := range n.IPs {
		for _, other := range nics {
			if other.Tap != n.Tap && slices.Contains(other.IPs, a) {
				return nil, fmt.Errorf("%w: %s is that of the routed guest on %s (vmnet list)", ErrTaken, a, other.Tap)
			}
		}
		if slices.ContainsFunc(entries, func(e rtnl.Proxy) bool {
			return e.Link == uplink.Index && e.Addr == a && e.Protocol != protocol
		}) {
			return nil, fmt.Errorf("%w: the host answers for %s on %s already (ip neigh del proxy %[2]s dev %[3]s)",
				ErrTaken, a, uplink.Name)
		}
		if err := h.checkRoutes(a, n, all); err != nil {
			return nil, err
		}
	}
	if n.has(true) {
		if err := h.checkIPv6(uplink); err != nil {
			return nil, err
		}
	}
	filter, _, err := h.settings().Read("net/ipv4/conf/all/rp_filter")
	if err == nil && filter > "1" && n.has(false) {
		notices = append(notices, fmt.Sprintf("sysctl net.ipv4.conf.all.rp_filter=%s: "+
			"the kernel does not drop what the guest sends from others' addresses (with 0 or 1 it does)", filter))
	}
	if err := announce.May(h.NS); err != nil {
		notices = append(notices, fmt.Sprintf("the guest's addresses are not announced on %s: %v; "+
			"a neighbor that knows another machine by one finds out by itself", uplink.Name, err))
	}
	texts, err := h.uplinkTexts(n)
	if len(texts) > 0 {
		notices = append(notices, fmt.Sprintf("the host forwards for the guest: sysctl %s; "+
			"that is set back after the last routed guest", strings.Join(texts, ", ")))
	}
	return notices, err
}

// checkRoutes returns an error if an address is the host's own, or means all of a subnet.
func (h *Host) checkRoutes(a netip.Addr, n NIC, all []rtnl.Route) error {
	for _, r := range all {
		name := h.nameOf(r.Link)
		switch {
		case r.Local && r.Dst.Contains(a) && r.Dst.IsSingleIP():
			return fmt.Errorf("%w: the host has %s itself, on %s (ip addr)", ErrTaken, a, name)
		case r.Local && r.Dst.Contains(a):
			return fmt.Errorf("%w: %s is the host's own (ip route show table local)", ErrTaken, a)
		case r.Dst.IsSingleIP() && r.Dst.Addr() == a && name != n.Tap:
			return fmt.Errorf("%w: the host routes %s by %s (ip route get %[2]s)", ErrTaken, a, name)
		case a.Is4() && r.Link == n.Uplink && r.Dst.Bits() < 31 && r.Dst.Bits() > 0 && r.Dst.Contains(a) &&
			(a == r.Dst.Masked().Addr() || a == last(r.Dst)):
			return fmt.Errorf("%s is no guest's address: it means all of %s", a, r.Dst)
		}
	}
	return nil
}

// last returns the last address of an IPv4 prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// checkIPv6 returns an error if the host does not run IPv6 on the uplink.
func (h *Host) checkIPv6(uplink *rtnl.Link) error {
	value, ok, err := h.settings().Read("net/ipv6/conf/" + uplink.Name + "/disable_ipv6")
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("uplink %s has no IPv6: the kernel does not run it there "+
			"(ipv6.disable=1, or an MTU below %d)", uplink.Name, minIPv6MTU)
	case value != "0":
		return fmt.Errorf("uplink %s has no IPv6 (sysctl net.ipv6.conf.%[1]s.disable_ipv6=0)", uplink.Name)
	}
	return nil
}

// minIPv6MTU is the least MTU with which the kernel runs IPv6 on a link (IPV6_MIN_MTU).
const minIPv6MTU = 1280
