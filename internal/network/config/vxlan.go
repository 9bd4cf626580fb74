package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"vmnet/bridge/vxlan"
	"vmnet/internal/strictyaml"
)

// ethernetMTU is what the network between the hosts of a segment carries if a file says nothing of
// the segment's MTU, in bytes.
const ethernetMTU = 1500

// NewVXLAN returns the uplink of the network name, whose guests share a VXLAN segment with those of
// other hosts, or with a map one for each VLAN.
func NewVXLAN(name string, cfg vxlan.Config) Uplink {
	return Uplink{Device: cfg.Interface(name), VXLAN: &cfg}
}

// Clone returns a copy that shares nothing with u; nil of nil.
func (u *Uplink) Clone() *Uplink {
	if u == nil {
		return nil
	}
	c := *u
	if u.VXLAN != nil {
		v := *u.VXLAN
		v.Remotes, v.Map = slices.Clone(v.Remotes), slices.Clone(v.Map)
		c.VXLAN = &v
	}
	return &c
}

// Flags returns the flags of network create for the uplink.
func (u *Uplink) Flags() string {
	if u.VXLAN == nil {
		return "--uplink " + u.Device
	}
	if u.VXLAN.Map != nil {
		return fmt.Sprintf("--vxlan-map %s --local %s", u.VXLAN.Map, u.VXLAN.Local)
	}
	return fmt.Sprintf("--vxlan %d --local %s", u.VXLAN.VNI, u.VXLAN.Local)
}

// uplinkField is the key uplink: an interface of the host, or {vxlan: {...}}.
func (d *decoder) uplinkField() strictyaml.Field {
	return strictyaml.Key("uplink", func(n ast.Node) error {
		if m, is := n.(*ast.MappingNode); is {
			if len(m.Values) == 0 {
				return d.Errorf(strictyaml.TokenOf(n), "uplink is empty (write uplink: eth1)")
			}
			return d.Mapping(n, "uplink", strictyaml.Key("vxlan", d.vxlan))
		}
		text, err := d.Text(n, "uplink")
		if err != nil {
			return err
		}
		d.uplink.Device = text
		return d.at(n, CheckDevice(text))
	})
}

// vxlan reads a segment. Its MTU is that of the network.
func (d *decoder) vxlan(n ast.Node) error {
	var v vxlan.Config
	number := func(key string, to *int, least, most int) strictyaml.Field {
		return strictyaml.Key(key, func(n ast.Node) (err error) {
			*to, err = d.Number(n, key, least, most)
			return err
		})
	}
	address := func(n ast.Node, what string) (netip.Addr, error) {
		text, err := d.Text(n, what)
		if err != nil {
			return netip.Addr{}, err
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			err = fmt.Errorf("%s %q: want the address of a host, such as 192.0.2.1", what, text)
		}
		return a, d.at(n, err)
	}
	err := d.Mapping(n, "vxlan",
		number("id", &v.VNI, 1, vxlan.MaxVNI),
		d.text("map", func(s string) (err error) { v.Map, err = vxlan.ParseMap(s); return err }),
		strictyaml.Key("local", func(n ast.Node) (err error) { v.Local, err = address(n, "local"); return err }),
		strictyaml.Key("remote", func(n ast.Node) error {
			return d.List(n, "remote", func(n ast.Node) error {
				a, err := address(n, "remote")
				v.Remotes = append(v.Remotes, a)
				return err
			})
		}),
		number("port", &v.Port, 1, 65535),
		number("mtu", &d.vxlanMTU, minMTU, MaxMTU))
	if err != nil {
		return err
	}
	d.uplink = withRest(NewVXLAN(d.n.Name, v), d.uplink)
	return d.at(n, v.Validate())
}

// withRest returns u with what other keys say of an uplink.
func withRest(u, rest Uplink) Uplink {
	u.Move, u.Range, u.Router = rest.Move, rest.Range, rest.Router
	return u
}

// segmentMTU sets the MTU of a network on a segment. It runs after all keys.
func (d *decoder) segmentMTU() error {
	v := d.uplink.VXLAN
	switch {
	case v == nil:
		return nil
	case d.n.MTU != 0 && d.vxlanMTU != 0 && d.n.MTU != d.vxlanMTU:
		return fmt.Errorf("mtu %d, and %d of vxlan: they are the same MTU (remove one)", d.n.MTU, d.vxlanMTU)
	}
	d.n.MTU = cmp.Or(d.n.MTU, d.vxlanMTU, ethernetMTU-v.Overhead())
	return nil
}

// checkVXLAN returns what contradicts a segment as uplink, or nil.
func (n *Network) checkVXLAN() error {
	u := n.Uplink
	if u.VXLAN == nil {
		return nil
	}
	switch err := u.VXLAN.Validate(); {
	case err != nil:
		return err
	case u.Move != NoMove:
		return errors.New("vxlan has no addresses of the host to move (remove move-address)")
	case u.VXLAN.Map != nil && n.DHCP:
		return errors.New("with a map, each VLAN is a LAN of its own, and a DHCP server serves one (remove dhcp)")
	case u.Device != u.VXLAN.Interface(n.Name):
		return fmt.Errorf("uplink %s: guests are on the segment of %s, and on no LAN besides (remove one)",
			u.Device, u.VXLAN)
	}
	return nil
}

// formatVXLAN writes a segment with the MTU of the network.
func (u *Uplink) formatVXLAN(b *strings.Builder, mtu int) {
	v := u.VXLAN
	which := fmt.Sprintf("id: %d", v.VNI)
	if v.Map != nil {
		which = fmt.Sprintf("map: %q", v.Map)
	}
	fmt.Fprintf(b, "uplink:\n  vxlan: {%s, local: %q", which, v.Local)
	if v.Static() {
		var hosts []string
		for _, a := range v.Remotes {
			hosts = append(hosts, fmt.Sprintf("%q", a))
		}
		fmt.Fprintf(b, ", remote: [%s]", strings.Join(hosts, ", "))
	}
	if v.Port != 0 {
		fmt.Fprintf(b, ", port: %d", v.Port)
	}
	if mtu != 0 {
		fmt.Fprintf(b, ", mtu: %d", mtu)
	}
	b.WriteString("}\n")
}
