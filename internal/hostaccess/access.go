// Package hostaccess lets a host and its macvtap guests reach each other. A parent device and what
// sits on it cannot (macvlan_queue_xmit in the kernel's drivers/net/macvlan.c), but a macvlan
// beside the guests' macvtaps can. It concerns no guest and no monitor.
package hostaccess

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/internal/alias"
	"vmnet/internal/backend"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/tapmgr/nic"
)

// A Host is the network namespace in which host accesses are switched on and off. Its methods may
// be called at the same time.
type Host struct {
	maker *backend.Maker
}

// On returns the Host for what a Maker works in, which must stay open.
func On(m *backend.Maker) *Host { return &Host{m} }

// aliasPrefix begins the alias of such a macvlan. nic.ParseRecord does not take it for a NIC, since
// it names no guest.
const aliasPrefix = alias.Prefix + "host-access lower="

// accessLink is the link of a host access as it is now.
type accessLink struct {
	*rtnl.Link
	parent    string // its present name, or the alias's if it was moved to another netns
	addresses []netip.Prefix
	unnamed   bool // it has no alias yet: a vmnet was killed while it made it
}

// macOf returns the address of the host access on a parent device of that name.
func macOf(parent string) net.HardwareAddr {
	return stablemac.New([]byte{0x02}, "host-access", parent)
}

// List returns what there is, by parent device.
func (h *Host) List() ([]nic.HostAccess, error) {
	all, err := h.macvlans()
	if err != nil {
		return nil, err
	}
	list := []nic.HostAccess{}
	for _, m := range all {
		list = append(list, h.describe(m))
	}
	return list, nil
}

func (h *Host) macvlans() ([]accessLink, error) {
	links, err := h.maker.NL.Links(nic.TypeMacvlan, 0)
	if err != nil {
		return nil, err
	}
	var found []accessLink
	for _, l := range links {
		m, ok := h.recognize(l)
		if !ok {
			continue
		}
		if m.addresses, err = h.maker.NL.Addrs(l.Index); err != nil {
			return nil, err
		}
		found = append(found, m)
	}
	slices.SortFunc(found, func(a, b accessLink) int {
		return cmp.Or(strings.Compare(a.parent, b.parent), strings.Compare(a.Name, b.Name))
	})
	return found, nil
}

// recognize reports whether a macvlan is a host access.
func (h *Host) recognize(l *rtnl.Link) (accessLink, bool) {
	parent := ""
	if l.LowerNS < 0 {
		if real, err := h.maker.NL.LinkByIndex(l.Lower); err == nil {
			parent = real.Name
		}
	}
	return recognize(l, parent)
}

// recognize decides whether a macvlan is a host access: by its alias or, if that is not set yet, by
// a name and an address that nobody else would choose. parent is the present name of its parent
// device; empty if that is in another netns.
func recognize(l *rtnl.Link, parent string) (m accessLink, ok bool) {
	text, ok := strings.CutPrefix(l.Alias, aliasPrefix)
	named, err := url.PathUnescape(text)
	ok = ok && err == nil && brport.ValidName(named)
	parent = cmp.Or(parent, named)
	name, _ := nic.InterfaceName(parent, "host")
	unnamed := l.Alias == "" && l.Name == name && l.MAC.String() == macOf(parent).String()
	return accessLink{Link: l, parent: parent, unnamed: unnamed}, ok || unnamed
}

// on returns the macvlan of the host access on a parent device; nil if there is none.
func (h *Host) on(parent string) (*accessLink, error) {
	all, err := h.macvlans()
	for _, m := range all {
		if m.parent == parent {
			return &m, err
		}
	}
	return nil, err
}

func (h *Host) describe(m accessLink) nic.HostAccess {
	state := inventory.LinkState(m.Link)
	if m.unnamed {
		state = nic.Incomplete
	}
	a := nic.HostAccess{
		Parent: m.parent, Interface: m.Name, MAC: m.MAC.String(), MTU: m.MTU,
		Addresses: append([]netip.Prefix{}, m.addresses...), State: state,
	}
	if m.LowerNS >= 0 {
		return a
	}
	if addrs, err := h.maker.NL.Addrs(m.Lower); err == nil {
		a.Notices = shadowed(m, addrs)
	}
	return a
}

// shadowed names the networks in which the parent device has one of addrs as well. The kernel then
// sends what is for guests through the parent device, whose route it usually finds first.
func shadowed(m accessLink, addrs []netip.Prefix) (notices []string) {
	for _, a := range m.addresses {
		i := slices.IndexFunc(addrs, a.Overlaps)
		if i >= 0 {
			notices = append(notices,
				fmt.Sprintf(
					"%s is in the network of %s on %s, by which the host may send what is for guests "+
						"(ip route add GUEST dev %s for each, or use another network)",
					a, addrs[i], m.parent, m.Name))
		}
	}
	return notices
}

// Show describes the parent device of that name or altname: whether it has host access, and which
// guests' NICs sit on it.
func (h *Host) Show(ctx context.Context, name string) (nic.Parent, error) {
	link, err := h.parent(name)
	if err != nil {
		return nic.Parent{}, err
	}
	p := nic.Parent{Name: link.Name, NICs: []nic.NIC{}}
	m, err := h.on(link.Name)
	if err != nil {
		return p, err
	}
	if m != nil {
		a := h.describe(*m)
		p.HostAccess = &a
	}
	all, err := h.maker.Devices(ctx)
	for _, n := range inventory.NICs(all, "") {
		onBridge := n.Type == nic.TypeTap || n.Type == nic.TypeOVS
		if !onBridge && !n.Switch && (n.Source == link.Name || slices.Contains(link.AltNames, n.Source)) {
			p.NICs = append(p.NICs, n)
		}
	}
	return p, err
}

// parent reads a parent device by name or altname.
func (h *Host) parent(name string) (*rtnl.Link, error) {
	l, err := h.maker.NL.Link(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lower %s: %w (ip link shows the devices that are here)", name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("lower %s: %w", name, err)
	}
	return l, nil
}
