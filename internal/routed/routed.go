// Package routed gives guests addresses of the LAN behind one of the host's interfaces, the
// uplink, without a bridge: the host routes each address to the guest's tap, and answers for it on
// the uplink by proxy ARP and proxy neighbour discovery. The LAN sees one MAC address, the
// uplink's, as Wi-Fi and hosters that filter by MAC demand.
//
// Entries for single addresses do that, not proxy_arp=1 on the uplink: with that setting the kernel
// answers for every address that it routes elsewhere, such as all of a LAN to which the host has
// another interface (arp_fwd_proxy in net/ipv4/arp.c).
//
// What is on the tap ends with it: its addresses, routes and settings. The entries and the settings
// of the uplink do not. An entry is known by its protocol number, and orphaned if no NIC claims it;
// the settings are in a memory (memory.go).
package routed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/routed/gateway"
	"vmnet/step"
)

// NIC is what a guest's NIC needs of the host. Its tap is there unless a step has yet to make it.
type NIC struct {
	Tap    string // name of its link
	Uplink int    // index
	IPs    []netip.Addr
}

// protocol is who has made a route or an entry (rtm_protocol, NDA_PROTOCOL): a number that
// include/uapi/linux/rtnetlink.h and iproute2's rt_protos leave free.
const protocol = 118

// A Host is one network namespace.
type Host struct {
	NS *netns.NS
	NL *rtnl.Conn // in NS
	// NICs lists the NICs whose taps are there. It is read while nobody else changes what the host
	// remembers.
	NICs func() ([]NIC, error)
}

// has reports whether the NIC has an address of IPv6, or of IPv4.
func (n NIC) has(six bool) bool {
	return slices.ContainsFunc(n.IPs, func(a netip.Addr) bool { return a.Is6() == six })
}

func (h *Host) settings() forwarding.Settings { return forwarding.Settings{NS: h.NS} }

// ofTap are the settings of a tap. Of the redirects, router advertisements and sources that a guest
// sends, the host believes none that could lead another's packets to the guest. The kernel uses the
// larger of two rp_filter, that of the link and that of all links.
func ofTap(n NIC) [][2]string {
	in4, in6 := "net/ipv4/conf/"+n.Tap+"/", "net/ipv6/conf/"+n.Tap+"/"
	list := [][2]string{
		{in4 + "rp_filter", "1"},
		{in4 + "accept_redirects", "0"},
		{in4 + "forwarding", "1"},
		{in6 + "accept_ra", "0"},
		{in6 + "accept_redirects", "0"},
	}
	disable := "1" // a guest without IPv6 has no business with the host's
	if n.has(true) {
		disable = "0"
	}
	return append(list, [2]string{in6 + "disable_ipv6", disable})
}

// gateways are the host's addresses on a tap.
func gateways(n NIC) (list []netip.Prefix) {
	if n.has(false) {
		list = append(list, netip.PrefixFrom(gateway.IPv4, gateway.IPv4.BitLen()))
	}
	if n.has(true) {
		list = append(list, netip.PrefixFrom(gateway.IPv6, 64))
	}
	return list
}

// PreparedSteps return what a tap needs whose guest is still on another host. That host answers for
// the guest, so this one does not, and leaves the tap down. Mend does the rest.
func (h *Host) PreparedSteps(n NIC) ([]step.Step, error) {
	texts, err := h.uplinkTexts(n)
	if err != nil {
		return nil, err
	}
	text := "the host forwards already"
	if len(texts) > 0 {
		text = fmt.Sprintf("sysctl %s, remembered in the alias of %s", strings.Join(texts, ", "), memoryName)
	}
	return []step.Step{{
		Name: "forwarding",
		Text: text,
		Do:   func(ctx context.Context) error { return h.turnOn(ctx, n) },
		Undo: func(ctx context.Context) error { _, err := h.tidy(ctx, n.Tap, false); return err },
	}, h.settingsStep(n)}, nil
}

// Steps return what makes a tap a routed guest's, whose record it has already: so no other process
// sets back what the guest needs. All of it can be done again where it is done already.
func (h *Host) Steps(n NIC, uplink *rtnl.Link) ([]step.Step, error) {
	list, err := h.PreparedSteps(n)
	if err != nil {
		return nil, err
	}
	list = append(list, step.Step{
		Name: "probe",
		Text: fmt.Sprintf("ask %s for %s for %v, that nobody else has them", uplink.Name, Format(n.IPs), ProbeTime),
		Do:   func(ctx context.Context) error { return h.Probe(ctx, uplink, n.IPs) },
	}, step.Step{
		Name: "up",
		Text: fmt.Sprintf("RTM_SETLINK %s: up", n.Tap),
		Do:   func(context.Context) error { return h.onTap(n, h.up) },
	}, step.Step{
		Name: "gateway",
		Text: fmt.Sprintf("RTM_NEWADDR %s: %s", n.Tap, Format(gateways(n))),
		Do:   func(context.Context) error { return h.onTap(n, h.addGateways) },
	})
	for _, a := range n.IPs {
		list = append(list, step.Step{
			Name: "route " + a.String(),
			Text: fmt.Sprintf("RTM_NEWROUTE %s/%d dev %s proto %d", a, a.BitLen(), n.Tap, protocol),
			Do: func(context.Context) error {
				return h.onTap(n, func(n NIC, tap int) error { return h.addRoute(a, n, tap) })
			},
		}, step.Step{
			Name: "proxy " + a.String(),
			Text: fmt.Sprintf("RTM_NEWNEIGH %s dev %s: NTF_PROXY, protocol %d", a, uplink.Name, protocol),
			Do:   func(context.Context) error { return h.NL.AddProxy(h.entry(n, a)) },
			Undo: func(context.Context) error { return h.NL.DeleteProxy(h.entry(n, a)) },
		})
	}
	return append(list, h.announceStep(n, uplink)), nil
}

func (h *Host) entry(n NIC, a netip.Addr) rtnl.Proxy {
	return rtnl.Proxy{Link: n.Uplink, Addr: a, Protocol: protocol}
}

// settingsStep needs no undo: the settings end with the tap.
func (h *Host) settingsStep(n NIC) step.Step {
	var texts []string
	for _, s := range ofTap(n) {
		texts = append(texts, forwarding.Dotted(s[0])+"="+s[1])
	}
	return step.Step{
		Name: "sysctl",
		Text: "sysctl " + strings.Join(texts, ", "),
		Do:   func(context.Context) error { return h.setTap(n) },
	}
}

// setTap sets what ofTap lists. force_forwarding is Linux 6.17's, without which the uplink's part
// makes the whole host forward IPv6.
func (h *Host) setTap(n NIC) error {
	list := ofTap(n)
	if force := forceForwarding(n.Tap); n.has(true) {
		if _, has, err := h.settings().Read(force); err != nil {
			return err
		} else if has {
			list = append(list, [2]string{force, "1"})
		}
	}
	for _, s := range list {
		now, has, err := h.settings().Read(s[0])
		if err == nil && has && now != s[1] { // a kernel without IPv6 does not have all
			err = h.settings().Write(s[0], s[1])
		}
		if err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", forwarding.Dotted(s[0]), s[1], err)
		}
	}
	return nil
}

// onTap runs do with the tap's index.
func (h *Host) onTap(n NIC, do func(n NIC, tap int) error) error {
	l, err := h.NL.Link(n.Tap)
	if err != nil {
		return fmt.Errorf("interface %s: %w", n.Tap, err)
	}
	return do(n, l.Index)
}

func (h *Host) up(_ NIC, tap int) error { return h.NL.Set(tap, rtnl.Up(true)) }

func (h *Host) addGateways(n NIC, tap int) error {
	for _, p := range gateways(n) {
		if err := h.NL.AddAddr(tap, p); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

func (h *Host) addRoute(a netip.Addr, n NIC, tap int) error {
	err := h.NL.AddHostRoute(a, tap, protocol)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	to, err := h.routes()
	if err != nil {
		return err
	}
	if to[a] == tap {
		return nil
	}
	return h.explainRoute(a, to[a])
}

// explainRoute returns an error that names the link to which an address is routed.
func (h *Host) explainRoute(a netip.Addr, link int) error {
	where := "elsewhere"
	if l, err := h.NL.LinkByIndex(link); err == nil {
		where = "by " + l.Name
	}
	return fmt.Errorf("%w: the host routes %s %s (ip route get %[2]s)", ErrTaken, a, where)
}

// routes returns the links to which single addresses are routed.
func (h *Host) routes() (map[netip.Addr]int, error) {
	all, err := h.NL.Routes()
	if err != nil {
		return nil, err
	}
	to := map[netip.Addr]int{}
	for _, r := range all {
		if r.Dst.IsSingleIP() && to[r.Dst.Addr()] == 0 {
			to[r.Dst.Addr()] = r.Link
		}
	}
	return to, nil
}

// Format returns addresses between commas.
func Format[A fmt.Stringer](all []A) string {
	var texts []string
	for _, a := range all {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}
