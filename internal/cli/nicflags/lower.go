package nicflags

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// lower has the values of the flags of a macvtap or ipvtap.
type lower struct {
	macvtap, ipvtap string
	mode            string
	sources         []string
	noPromisc       bool
	addrs           []string
	flag            string
	rxFilter        string
}

func (o *lower) add(f *pflag.FlagSet) {
	f.StringVar(&o.macvtap, "macvtap", "", "the `PARENT` device of a macvtap, instead of --bridge")
	f.StringVar(&o.ipvtap, "ipvtap", "",
		"the `PARENT` device of an ipvtap, instead of --bridge; for Wi-Fi and where only one MAC is allowed")
	f.StringVar(&o.mode, "mode", "",
		"macvtap: bridge, vepa, private, passthru or source (default bridge); ipvtap: l2 or l3 (default l2)")
	f.StringArrayVar(&o.sources, "source-mac", nil, "mode source: a `MAC` from which the guest receives (repeatable)")
	f.BoolVar(&o.noPromisc, "nopromisc", false, "mode passthru: do not make the parent device promiscuous")
	f.StringArrayVar(&o.addrs, "ip",
		nil, "ipvtap: an `ADDR` of the guest, by which the kernel delivers packets; with or without /BITS (repeatable)")
	f.StringVar(&o.flag, "flag", "", "ipvtap: bridge, private or vepa (default bridge)")
	Choice(f, &o.rxFilter, "rx-filter", "",
		"macvtap and ipvtap: allmulti accepts all multicast, without which IPv6 and mDNS do not find the guest; mirror only groups that the guest has joined, by vmnet watch; none only frames to its address",
		nic.RxAllMulti, nic.RxMirror, nic.RxNone)
}

// spec returns what the flags ask for; nil for a NIC on a bridge or switch.
func (o *lower) spec(bridge, sw string) (*nic.Lower, error) {
	if err := o.oneOf(bridge, sw); err != nil {
		return nil, err
	}
	l := &nic.Lower{
		Kind: vtap.Macvtap, Device: o.macvtap, Mode: o.mode, NoPromisc: o.noPromisc,
		Flag: o.flag, RxFilter: o.rxFilter,
	}
	if o.ipvtap != "" {
		l.Kind, l.Device = vtap.IPVtap, o.ipvtap
	}
	if l.Device == "" {
		if o.mode != "" || o.noPromisc || o.flag != "" || len(o.sources)+len(o.addrs) > 0 {
			return nil, fmt.Errorf("--mode, --source-mac, --nopromisc, --ip and --flag go with --macvtap or --ipvtap")
		}
		return nil, nil
	}
	for _, s := range o.sources {
		mac, err := net.ParseMAC(s)
		if err != nil || len(mac) != 6 {
			return nil, fmt.Errorf("--source-mac %q: want six bytes such as 52:54:00:01:02:03", s)
		}
		l.Sources = append(l.Sources, mac)
	}
	for _, s := range o.addrs {
		p, err := parseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("--ip %q: %w", s, err)
		}
		l.Addrs = append(l.Addrs, p)
	}
	return l, nil
}

// oneOf returns an error if more than one place was given.
func (o *lower) oneOf(bridge, sw string) error {
	var given []string
	for _, p := range []struct{ flag, value string }{
		{"--bridge", bridge},
		{"--switch", sw},
		{"--macvtap", o.macvtap},
		{"--ipvtap", o.ipvtap},
	} {
		if p.value != "" {
			given = append(given, p.flag)
		}
	}
	if len(given) > 1 {
		return fmt.Errorf("%s: a NIC can have only one of them", strings.Join(given, " and "))
	}
	return nil
}

// parseAddr parses an address with or without a prefix length.
func parseAddr(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("want an IP address such as 192.0.2.7 or 192.0.2.7/24")
	}
	return p, nil
}
