package cni

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"vmnet/internal/nsport"
)

// assign completes a Spec with the addresses and default routes of a result. If ifname is not
// empty, the result is that of a whole list of plugins: only addresses of that interface count, and
// other plugins may have added other routes.
func assign(s *nsport.Spec, r *current.Result, ifname string) error {
	routers := map[bool]netip.Addr{} // by whether they are of IPv4
	for _, ip := range r.IPs {
		if i := ip.Interface; ifname != "" && i != nil &&
			(*i < 0 || *i >= len(r.Interfaces) || r.Interfaces[*i].Name != ifname) {
			continue
		}
		p, ok := prefixFrom(ip.Address)
		if !ok {
			return invalid("ips: %v: want an address with its prefix length", ip.Address.String())
		}
		s.Addresses = append(s.Addresses, p)
		if g, ok := netip.AddrFromSlice(ip.Gateway); ok {
			routers[p.Addr().Is4()] = g.Unmap()
		}
	}
	for _, route := range r.Routes {
		g, err := router(route, routers)
		if err != nil && ifname == "" {
			return err
		}
		if err != nil {
			continue
		}
		if !slices.Contains(s.Gateways, g) {
			s.Gateways = append(s.Gateways, g)
		}
	}
	return nil
}

// router returns the router of a default route.
func router(r *types.Route, routers map[bool]netip.Addr) (netip.Addr, error) {
	dst, ok := prefixFrom(r.Dst)
	plain := r.MTU == 0 && r.AdvMSS == 0 && r.Priority == 0 && r.Table == nil && r.Scope == nil
	if !ok || dst.Bits() != 0 || !plain {
		return netip.Addr{}, invalid(
			"route %s: only default routes without attributes are made (remove it from the routes of ipam)", r.String())
	}
	g, ok := netip.AddrFromSlice(r.GW)
	if !ok {
		g = routers[dst.Addr().Is4()]
	}
	if g = g.Unmap(); !g.IsValid() {
		return g, invalid("route %s: neither it nor the address names a router (set gateway in ipam)", dst)
	}
	return g, nil
}

// prefixFrom converts an address; ok is false for one that is not valid.
func prefixFrom(n net.IPNet) (p netip.Prefix, ok bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); !ok || bits == 0 {
		return p, false
	}
	if bits > a.BitLen() { // the mask of an IPv4 address that is mapped into IPv6
		ones -= bits - a.BitLen()
	}
	p = netip.PrefixFrom(a, ones)
	return p, p.IsValid()
}

// result describes an attachment for the runtime. sandbox is the namespace's path as the runtime
// has named it.
func result(i nsport.Info, sandbox string, dns types.DNS) *current.Result {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: dns}
	if i.Host != "" {
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: i.Host, Mtu: i.MTU})
	}
	end := len(r.Interfaces)
	r.Interfaces = append(r.Interfaces, &current.Interface{
		Name: i.Interface, Mac: i.MAC, Mtu: i.MTU, Sandbox: sandbox,
	})
	for _, a := range i.Addresses {
		ip := &current.IPConfig{Interface: current.Int(end), Address: ipNet(a)}
		for _, g := range i.Gateways {
			if a.Contains(g) {
				ip.Gateway = g.AsSlice()
			}
		}
		r.IPs = append(r.IPs, ip)
	}
	for _, g := range i.Gateways {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if g.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		r.Routes = append(r.Routes, &types.Route{Dst: ipNet(all), GW: g.AsSlice()})
	}
	return r
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// previous returns the result of the ADD that a CHECK is about.
func (n *network) previous() (*current.Result, error) {
	if n.PrevResult == nil {
		return nil, invalid("no prevResult: a check is about an earlier ADD")
	}
	c := types.PluginConf{CNIVersion: n.CNIVersion, RawPrevResult: n.PrevResult}
	if err := version.ParsePrevResult(&c); err != nil {
		return nil, invalid("prevResult: %v", err)
	}
	r, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, fmt.Errorf("prevResult: %w", err)
	}
	return r, nil
}
