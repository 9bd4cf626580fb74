package tapmgr

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

	"vmnet/bridge"
	"vmnet/internal/alias"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/tapmgr/nic"
)

// HostAccess is a macvlan through which the host and the macvtap guests on the same lower
// reach each other: a lower and what sits on it do not. It lives in the Manager's netns
// until it is switched off. Its JSON keys are stable.
type HostAccess struct {
	Lower     string         `json:"lower"`
	Interface string         `json:"interface"`
	MAC       string         `json:"mac"`
	MTU       int            `json:"mtu"`       // bytes
	Addresses []netip.Prefix `json:"addresses"` // of the host on it, without IPv6 link-local ones
	State     nic.State      `json:"state"`
	Notices   []string       `json:"notices,omitempty"` // what a person should know, though it is no error

	Added []netip.Prefix `json:"-"` // the Addresses that SetHostAccess has added
}

// TypeMacvlan is the type that a HostAccess has in a list of NICs.
const TypeMacvlan = "macvlan"

// hostAccessMode is what such a list tells instead of a mode.
const hostAccessMode = "host access"

// NIC is the host access as a row of ListAll: it has neither guest nor model nor queues.
func (h HostAccess) NIC() nic.NIC {
	return nic.NIC{
		Interface: h.Interface, Type: TypeMacvlan, Source: h.Lower, Mode: hostAccessMode,
		MAC: h.MAC, MTU: h.MTU, State: h.State,
	}
}

// hostAccessAlias begins the alias of such a macvlan. ParseRecord takes it for no NIC: it names no
// guest.
const hostAccessAlias = alias.Prefix + "host-access lower="

// hostAccess is such a macvlan as it is.
type hostAccess struct {
	*rtnl.Link
	lower     string // its name now, or the alias's where it has gone to another netns
	addresses []netip.Prefix
	unnamed   bool // without its alias: a vmnet was killed while it made it
}

func hostAccessMAC(lower string) net.HardwareAddr {
	return stablemac.New([]byte{0x02}, "host-access", lower)
}

// HostAccesses lists the host accesses in the Manager's netns, by lower.
func (m *Manager) HostAccesses() ([]HostAccess, error) {
	all, err := m.hostAccesses()
	if err != nil {
		return nil, err
	}
	list := []HostAccess{}
	for _, h := range all {
		list = append(list, m.describeHostAccess(h))
	}
	return list, nil
}

func (m *Manager) hostAccesses() ([]hostAccess, error) {
	links, err := m.host.NL.Links("macvlan", 0)
	if err != nil {
		return nil, err
	}
	var found []hostAccess
	for _, l := range links {
		h, ok := m.asHostAccess(l)
		if !ok {
			continue
		}
		if h.addresses, err = m.host.NL.Addrs(l.Index); err != nil {
			return nil, err
		}
		found = append(found, h)
	}
	slices.SortFunc(found, func(a, b hostAccess) int {
		return cmp.Or(strings.Compare(a.lower, b.lower), strings.Compare(a.Name, b.Name))
	})
	return found, nil
}

// asHostAccess tells whether a macvlan is ours: by its alias, or where that is not yet set,
// by a name and an address that nobody else would choose.
func (m *Manager) asHostAccess(l *rtnl.Link) (h hostAccess, ok bool) {
	text, ok := strings.CutPrefix(l.Alias, hostAccessAlias)
	named, err := url.PathUnescape(text)
	ok = ok && err == nil && bridge.ValidName(named)
	lower := named
	if l.LowerNS < 0 {
		if real, err := m.host.NL.LinkByIndex(l.Lower); err == nil {
			lower = real.Name
		}
	}
	name, _ := nic.InterfaceName(lower, "host")
	unnamed := l.Alias == "" && l.Name == name && l.MAC.String() == hostAccessMAC(lower).String()
	return hostAccess{Link: l, lower: lower, unnamed: unnamed}, ok || unnamed
}

// hostAccessOn returns the host access on a lower; nil for none.
func (m *Manager) hostAccessOn(lower string) (*hostAccess, error) {
	all, err := m.hostAccesses()
	for _, h := range all {
		if h.lower == lower {
			return &h, err
		}
	}
	return nil, err
}

func (m *Manager) describeHostAccess(h hostAccess) HostAccess {
	state := inventory.LinkState(h.Link)
	if h.unnamed {
		state = nic.Incomplete
	}
	return HostAccess{
		Lower: h.lower, Interface: h.Name, MAC: h.MAC.String(), MTU: h.MTU,
		Addresses: append([]netip.Prefix{}, h.addresses...), State: state, Notices: m.shadowed(h),
	}
}

// shadowed tells of networks that the lower has an address of as well: the kernel then sends
// through the lower, whose route it usually finds first, what is for guests.
func (m *Manager) shadowed(h hostAccess) (notices []string) {
	if h.LowerNS >= 0 {
		return nil
	}
	lowers, err := m.host.NL.Addrs(h.Lower)
	if err != nil {
		return nil
	}
	for _, a := range h.addresses {
		for _, l := range lowers {
			if a.Overlaps(l) {
				notices = append(notices, fmt.Sprintf("%s is in the network of %s on %s, through which the host may send what is for guests: they answer only once their addresses are routed here (ip route add GUEST dev %s), or use a network of its own", a, l, h.lower, h.Name))
				break
			}
		}
	}
	return notices
}

// A LowerInfo is what is known of a lower.
type LowerInfo struct {
	Lower      string      `json:"lower"`
	HostAccess *HostAccess `json:"host_access"` // nil where it is off
	NICs       []nic.NIC   `json:"nics"`        // of guests, on that lower
}

// ShowLower tells of a lower whether it has host access, and which NICs of guests sit on it.
func (m *Manager) ShowLower(ctx context.Context, name string) (LowerInfo, error) {
	link, err := m.lower(name)
	if err != nil {
		return LowerInfo{}, err
	}
	info := LowerInfo{Lower: link.Name, NICs: []nic.NIC{}}
	h, err := m.hostAccessOn(link.Name)
	if err != nil {
		return info, err
	}
	if h != nil {
		d := m.describeHostAccess(*h)
		info.HostAccess = &d
	}
	nics, err := m.List(ctx, "")
	for _, n := range nics {
		if n.Type != nic.TypeTap && !n.Switch && (n.Source == link.Name || slices.Contains(link.AltNames, n.Source)) {
			info.NICs = append(info.NICs, n)
		}
	}
	return info, err
}

// lower reads a lower by name or altname.
func (m *Manager) lower(name string) (*rtnl.Link, error) {
	l, err := m.host.NL.Link(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lower %s: %w (ip link shows the devices that are here)", name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("lower %s: %w", name, err)
	}
	return l, nil
}
