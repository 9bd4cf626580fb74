package nicflags

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/pflag"
)

// addIP adds --ip. An address without a prefix length gets that of one host.
func addIP(fs *pflag.FlagSet, p *[]netip.Prefix) {
	fs.Var(Values("ADDR", func(s string) error {
		a, err := parseIP(s)
		*p = append(*p, a)
		return err
	}), "ip", "an address of the guest: on a network, the one that its server gives the guest; "+
		"routed, one of the LAN by which it is reached; "+
		"of an ipvtap, one by which the kernel delivers packets, also with /BITS; "+
		"with --port-security, one that it may send from, or a network from which it chooses one (repeatable)")
}

func parseIP(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, errors.New("want an IP address such as 192.0.2.7 or 192.0.2.7/24")
	}
	return p, nil
}

// ownIP returns the addresses of a NIC that has them to itself, and the networks from which it
// chooses others.
func (n *NIC) ownIP() (ips []netip.Addr, nets []netip.Prefix, err error) {
	isSecured := !n.spec.Security.IsZero()
	if len(n.ip) > 0 && n.spec.Network == "" && n.spec.Routed == "" && !isSecured {
		return nil, nil, errors.New("--ip goes with --network, --routed, --ipvtap or --port-security")
	}
	for _, p := range n.ip {
		switch {
		case p.IsSingleIP():
			ips = append(ips, p.Addr())
		case isSecured:
			nets = append(nets, p)
		default:
			return nil, nil,
				fmt.Errorf("--ip %s: on a network or routed want an address without /BITS: %s", p, p.Addr())
		}
	}
	return ips, nets, nil
}
