package config

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"vmnet/internal/strictyaml"
)

// none is the value of ipv6 for a network without IPv6.
const none = "none"

// Parse parses the content of a file of the network name. Its errors are of type *strictyaml.Error;
// file is for them.
func Parse(file, name string, data []byte) (*Network, error) {
	d := &decoder{Document: strictyaml.New(file, data), n: &Network{Name: name, Domain: DefaultDomain(name)}}
	if err := CheckName(name); err != nil {
		return nil, d.Errorf(nil, "%v (rename the file)", err)
	}
	root, err := d.Root()
	if err != nil {
		return nil, err
	}
	if root == nil {
		return nil, d.Errorf(nil, "the file is empty (write subnet: 10.66.0.0/24)")
	}
	if err := d.network(root); err != nil {
		return nil, err
	}
	if err := d.check(root); err != nil {
		return nil, err
	}
	return d.n, nil
}

// decoder makes a Network from a document.
type decoder struct {
	*strictyaml.Document
	n               *Network
	hosts, forwards []*token.Token // where each begins
	uplink          Uplink         // what keys about one say
	vxlanMTU        int            // which the network has, too
}

func (d *decoder) network(root ast.Node) error {
	n := d.n
	fields := []strictyaml.Field{
		d.flag("nat", &n.NAT),
		strictyaml.Key("subnet", func(node ast.Node) error {
			return d.prefix(node, "subnet", &n.Subnet, checkSubnet)
		}),
		strictyaml.Key("ipv6", func(node ast.Node) error {
			if text, err := d.Text(node, "ipv6"); err != nil || text == none {
				return err
			}
			return d.prefix(node, "ipv6", &n.IPv6, checkIPv6)
		}),
		d.flag("dhcp", &n.DHCP),
		strictyaml.Key("domain", func(node ast.Node) (err error) {
			if n.Domain, err = d.Text(node, "domain"); err != nil {
				return err
			}
			return d.at(node, checkDomain(n.Domain))
		}),
		d.flag("isolated", &n.Isolated),
		strictyaml.Key("mtu", func(node ast.Node) (err error) {
			n.MTU, err = d.Number(node, "mtu", minMTU, MaxMTU)
			return err
		}),
		d.flag("integrate", &n.Integrate),
		strictyaml.Key("hosts", func(node ast.Node) error { return d.List(node, "hosts", d.host) }),
		strictyaml.Key("forwards", func(node ast.Node) error { return d.List(node, "forwards", d.forward) }),
	}
	err := d.Mapping(root, "the file", append(fields, d.uplinkFields()...)...)
	if err == nil && d.uplink != (Uplink{}) {
		n.Uplink = &d.uplink
		err = d.at(root, d.segmentMTU())
	}
	return err
}

func (d *decoder) flag(key string, to *bool) strictyaml.Field {
	return strictyaml.Key(key, func(n ast.Node) (err error) { *to, err = d.Flag(n, key); return err })
}

// at gives an error the place of n.
func (d *decoder) at(n ast.Node, err error) error {
	if err == nil {
		return nil
	}
	return d.Errorf(strictyaml.TokenOf(n), "%v", err)
}

func (d *decoder) prefix(n ast.Node, key string, to *netip.Prefix, check func(netip.Prefix) error) error {
	text, err := d.Text(n, key)
	if err != nil {
		return err
	}
	if *to, err = netip.ParsePrefix(text); err != nil {
		return d.at(n, fmt.Errorf("%s %q: want a network with its prefix length", key, text))
	}
	return d.at(n, check(*to))
}

// text returns a key whose value take parses.
func (d *decoder) text(key string, take func(string) error) strictyaml.Field {
	return strictyaml.Key(key, func(n ast.Node) error {
		text, err := d.Text(n, key)
		if err != nil {
			return err
		}
		return d.at(n, take(text))
	})
}

func (d *decoder) host(node ast.Node) error {
	var h Host
	err := d.Mapping(
		node, "a host",
		d.text("name", func(s string) error { h.Name = s; return nil }),
		d.text("mac", func(s string) (err error) { h.MAC, err = ParseMAC(s); return err }),
		d.text("ip", func(s string) (err error) {
			if h.IP, err = netip.ParseAddr(s); err != nil {
				return fmt.Errorf("ip %q: want an IPv4 address", s)
			}
			return nil
		}),
	)
	if err == nil && (h.Name == "" || h.MAC == nil || !h.IP.IsValid()) {
		err = d.Errorf(strictyaml.TokenOf(node), "a host needs name, mac and ip")
	}
	d.n.Hosts = append(d.n.Hosts, h)
	d.hosts = append(d.hosts, strictyaml.TokenOf(node))
	return err
}

// ParseMAC parses the address of a guest.
func ParseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, fmt.Errorf("mac %q: want six bytes, not multicast, such as 52:54:00:12:34:56", s)
	}
	return mac, nil
}

func (d *decoder) forward(node ast.Node) error {
	var texts [5]string
	var fields []strictyaml.Field
	for i, key := range []string{"from", "to", "listen", "mac", "ip"} {
		fields = append(fields, strictyaml.Key(key, func(n ast.Node) (err error) {
			texts[i], err = d.Text(n, key)
			if err == nil && texts[i] == "" {
				err = d.Errorf(strictyaml.TokenOf(n), "%s is empty", key)
			}
			return err
		}))
	}
	if err := d.Mapping(node, "a forward", fields...); err != nil {
		return err
	}
	if texts[0] == "" || texts[1] == "" {
		return d.Errorf(strictyaml.TokenOf(node), "a forward needs from and to")
	}
	f, err := ParseForward(texts[0], texts[1], texts[2])
	if mac, ip := texts[3], texts[4]; err == nil && mac+ip != "" {
		f.Bound, err = parseBinding(mac, ip)
	}
	d.n.Forwards = append(d.n.Forwards, f)
	d.forwards = append(d.forwards, strictyaml.TokenOf(node))
	return d.at(node, err)
}

// parseBinding parses the mac and ip of a forward.
func parseBinding(mac, ip string) (b Binding, err error) {
	addr, err := ParseMAC(mac)
	if err != nil {
		return b, err
	}
	if b.IP, err = netip.ParseAddr(ip); err != nil {
		return b, fmt.Errorf("ip %q: want an IPv4 address", ip)
	}
	b.MAC = addr.String()
	return b, nil
}

// check runs last, since keys may come in any order.
func (d *decoder) check(root ast.Node) error {
	if !d.n.Subnet.IsValid() && d.n.Uplink == nil {
		return d.Errorf(strictyaml.TokenOf(root), "subnet is missing (write subnet: 10.66.0.0/24)")
	}
	if err := d.n.CheckUplink(); err != nil {
		return d.Errorf(strictyaml.TokenOf(root), "%v", err)
	}
	for i, t := range d.hosts {
		if err := d.n.checkHost(i); err != nil {
			return d.Errorf(t, "%v", err)
		}
	}
	for i, t := range d.forwards {
		if err := d.n.checkForward(i); err != nil {
			return d.Errorf(t, "%v", err)
		}
	}
	return nil
}

// Format returns the content of a file that Parse reads as n.
func (n *Network) Format() []byte {
	var b strings.Builder
	fmt.Fprintf(
		&b,
		"# Network %s of vmnet: see vmnet-network(8). After a change: vmnet network apply %s\n",
		n.Name,
		n.Name,
	)
	switch {
	case n.Uplink != nil:
		n.formatUplink(&b)
	case n.IPv6.IsValid():
		fmt.Fprintf(&b, "nat: %v\nsubnet: %s\nipv6: %q\n", n.NAT, n.Subnet, n.IPv6)
	default:
		fmt.Fprintf(&b, "nat: %v\nsubnet: %s\nipv6: %s\n", n.NAT, n.Subnet, none)
	}
	fmt.Fprintf(&b, "dhcp: %v\ndomain: %q\n", n.DHCP, n.Domain)
	if n.Isolated {
		b.WriteString("isolated: true\n")
	}
	if n.MTU != 0 && (n.Uplink == nil || n.Uplink.VXLAN == nil) {
		fmt.Fprintf(&b, "mtu: %d\n", n.MTU)
	}
	if n.Integrate {
		b.WriteString("integrate: true\n")
	}
	if len(n.Hosts) > 0 {
		b.WriteString("hosts:\n")
	}
	for _, h := range n.Hosts {
		fmt.Fprintf(&b, "  - {name: %q, mac: %q, ip: %s}\n", h.Name, h.MAC, h.IP)
	}
	if len(n.Forwards) > 0 {
		b.WriteString("forwards:\n")
	}
	for _, f := range n.Forwards {
		more := ""
		if f.Listen.IsValid() {
			more = fmt.Sprintf(", listen: %q", f.Listen)
		}
		if f.Bound.IP.IsValid() {
			more += fmt.Sprintf(", mac: %q, ip: %s", f.Bound.MAC, f.Bound.IP)
		}
		fmt.Fprintf(&b, "  - {from: %q, to: %q%s}\n", f.From(), f.To(), more)
	}
	return []byte(b.String())
}
