package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"vmnet/bridge/vxlan"
	"vmnet/internal/strictyaml"
)

// Uplink is how the guests of a network are on a LAN beside the host: the network's bridge has a
// device of the host as a port. The LAN may be one that hosts have among them, by VXLAN.
type Uplink struct {
	// Device is the name of an interface, or the name of one with a VLAN ID: eth1.100.
	Device string
	// VXLAN is the segment that the guests share with those of other hosts, instead of a LAN; nil
	// for none. Device is then the name of its interface.
	VXLAN *vxlan.Config
	// Move is whether the host's own addresses on the device move to the bridge.
	Move Move
	// Range has the address of the DHCP server and those that it gives to guests; the zero Range
	// without DHCP.
	Range Range
	// Router is what guests learn as their router; the zero Addr for none.
	Router netip.Addr
}

// Move says whether addresses of the host move to a network's bridge.
type Move uint8

// A move that nobody has confirmed is not made at boot: the host may be out of reach after it.
const (
	NoMove Move = iota
	Unconfirmed
	Confirmed
)

// String returns the value of the key move-address.
func (m Move) String() string { return [...]string{"false", "unconfirmed", "true"}[m] }

// Range is a range of IPv4 addresses.
type Range struct{ First, Last netip.Addr }

// String returns the range as ParseRange reads it.
func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }

// ParseRange parses FIRST-LAST.
func ParseRange(s string) (r Range, err error) {
	first, last, ok := strings.Cut(s, "-")
	if ok {
		r.First, err = netip.ParseAddr(first)
	}
	if ok && err == nil {
		r.Last, err = netip.ParseAddr(last)
	}
	if !ok || err != nil || !r.First.Is4() || !r.Last.Is4() || !r.First.Less(r.Last) {
		return Range{}, fmt.Errorf("range %q: want two IPv4 addresses, the lower one first, "+
			"such as 192.168.1.200-192.168.1.220", s)
	}
	return r, nil
}

// The IDs that IEEE 802.1Q leaves for use.
const (
	minVLAN = 1
	maxVLAN = 4094
)

// SplitVLAN returns the parts of eth1.100; ok is false for a name without a VLAN ID.
func SplitVLAN(device string) (parent string, vlan int, ok bool) {
	i := strings.LastIndexByte(device, '.')
	if i <= 0 {
		return "", 0, false
	}
	vlan, err := strconv.Atoi(device[i+1:])
	if err != nil || vlan < minVLAN || vlan > maxVLAN || strconv.Itoa(vlan) != device[i+1:] {
		return "", 0, false
	}
	return device[:i], vlan, true
}

// CheckDevice returns why no interface has that name, with or without a VLAN ID, or nil.
// dev_valid_name in net/core/dev.c says which names there are; those with bytes beyond ASCII are
// refused as well.
func CheckDevice(name string) error {
	base := name
	if parent, _, ok := SplitVLAN(name); ok {
		base = parent
	}
	odd := strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune("/:%", r)
	})
	if base == "" || base == "." || base == ".." || len(base) > maxName || odd {
		return fmt.Errorf("uplink %q: want the name of an interface, such as eth1, or with a VLAN ID, such as eth1.100",
			name)
	}
	return nil
}

// checkSubnet is checkSubnet of a network, which on an uplink needs none.
func (n *Network) checkSubnet() error {
	if n.Uplink != nil && n.Subnet == (netip.Prefix{}) {
		return nil
	}
	return checkSubnet(n.Subnet)
}

// CheckUplink returns what contradicts the uplink, or nil.
func (n *Network) CheckUplink() error {
	u := n.Uplink
	if u == nil {
		return nil
	}
	if u.Device == "" {
		return errors.New("move-address, dhcp-range and router are about an uplink (write uplink: eth1)")
	}
	if err := cmp.Or(CheckDevice(u.Device), n.checkVXLAN()); err != nil {
		return err
	}
	const lan = "guests are on the LAN of uplink "
	switch {
	case u.Device == n.Name:
		return fmt.Errorf("uplink %s: the bridge of the network has this name (choose another name for the network)",
			u.Device)
	case n.NAT:
		return fmt.Errorf(lan+"%s and need no nat (remove it, or the uplink)", u.Device)
	case n.IPv6.IsValid():
		return fmt.Errorf(lan+"%s, whose router announces ipv6 (write ipv6: none)", u.Device)
	case n.MTU != 0 && u.VXLAN == nil:
		return fmt.Errorf(lan+"%s, which has an MTU already (remove mtu)", u.Device)
	case n.Isolated:
		return fmt.Errorf(lan+"%s, so they cannot be isolated (vmnet attach --isolated does so for one guest)",
			u.Device)
	case len(n.Forwards) > 0:
		return fmt.Errorf(lan+"%s, where each is reached by its own address: forwards do not work", u.Device)
	case n.DHCP:
		return n.checkRange()
	case n.Subnet.IsValid() || u.Range != (Range{}) || u.Router.IsValid() || len(n.Hosts) > 0:
		return errors.New("on an uplink, subnet, dhcp-range, router and hosts are for a DHCP server (write dhcp: true)")
	}
	return nil
}

// checkRange returns what is wrong with the addresses of a DHCP server on an uplink, or nil.
func (n *Network) checkRange() error {
	r := n.Uplink.Range
	switch {
	case r == (Range{}):
		return fmt.Errorf("dhcp on uplink %s needs a range of addresses that nobody on the LAN has "+
			"(--dhcp-range FIRST-LAST; most LANs have a DHCP server already)", n.Uplink.Device)
	case !n.Subnet.IsValid():
		return fmt.Errorf("dhcp on uplink %s needs the LAN's subnet (--subnet 192.168.1.0/24)", n.Uplink.Device)
	case !n.usableOnUplink(r.First) || !n.usableOnUplink(r.Last):
		return fmt.Errorf("dhcp-range %s: want addresses of hosts in %s", r, n.Subnet)
	case n.Uplink.Router.IsValid() && !n.usableOnUplink(n.Uplink.Router):
		return fmt.Errorf("router %s: want the address of a host in %s", n.Uplink.Router, n.Subnet)
	case r.has(n.Uplink.Router):
		return fmt.Errorf("router %s: it is in dhcp-range %s", n.Uplink.Router, r)
	}
	return nil
}

func (r Range) has(a netip.Addr) bool { return a.IsValid() && !a.Less(r.First) && !r.Last.Less(a) }

// usableOnUplink reports whether a is the address of a host in the LAN's subnet.
func (n *Network) usableOnUplink(a netip.Addr) bool {
	last := at(n.Subnet, uint32(1)<<(32-n.Subnet.Bits())-1).Addr()
	return n.Subnet.Contains(a) && a != n.Subnet.Addr() && a != last
}

func (n *Network) checkIPOnUplink(a netip.Addr) error {
	switch {
	case !n.Subnet.IsValid() || !n.usableOnUplink(a):
		return fmt.Errorf("ip %s: want the address of a host in the LAN's subnet", a)
	case a == n.Server().Addr() || a == n.Uplink.Router:
		return fmt.Errorf("ip %s: the DHCP server or the router has it", a)
	}
	return nil
}

// uplinkFields are the keys of a file about an uplink.
func (d *decoder) uplinkFields() []strictyaml.Field {
	u := &d.uplink
	return []strictyaml.Field{
		d.uplinkField(),
		strictyaml.Key("move-address", func(n ast.Node) error {
			if text, err := d.Text(n, "move-address"); err == nil && text == Unconfirmed.String() {
				u.Move = Unconfirmed
				return nil
			}
			on, err := d.Flag(n, "move-address")
			if on {
				u.Move = Confirmed
			}
			return err
		}),
		d.text("dhcp-range", func(s string) (err error) { u.Range, err = ParseRange(s); return err }),
		d.text("router", func(s string) (err error) {
			if u.Router, err = netip.ParseAddr(s); err != nil || !u.Router.Is4() {
				return fmt.Errorf("router %q: want an IPv4 address", s)
			}
			return nil
		}),
	}
}

func (n *Network) formatUplink(b *strings.Builder) {
	if n.Uplink.VXLAN != nil {
		n.Uplink.formatVXLAN(b, n.MTU)
	} else {
		fmt.Fprintf(b, "uplink: %q\nmove-address: %s\n", n.Uplink.Device, n.Uplink.Move)
	}
	if n.Subnet.IsValid() {
		fmt.Fprintf(b, "subnet: %s\n", n.Subnet)
	}
	if n.Uplink.Range != (Range{}) {
		fmt.Fprintf(b, "dhcp-range: %q\n", n.Uplink.Range)
	}
	if n.Uplink.Router.IsValid() {
		fmt.Fprintf(b, "router: %s\n", n.Uplink.Router)
	}
}
