package nicflags

import (
	"fmt"
	"net"
	"net/netip"

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
	f.StringVar(&o.flag, "flag", "", "ipvtap: bridge, private or vepa (default bridge)")
	Choice(f, &o.rxFilter, "rx-filter", "",
		"macvtap and ipvtap: allmulti accepts all multicast, without which IPv6 and mDNS do not find the guest; mirror only groups that the guest has joined, by vmnet watch; none only frames to its address",
		nic.RxAllMulti, nic.RxMirror, nic.RxNone)
}

// spec returns what the flags ask for, with the guest's addresses; nil for a NIC that is on no
// parent device.
func (o *lower) spec(addrs []netip.Prefix) (*nic.Lower, error) {
	l := &nic.Lower{
		Kind: vtap.Macvtap, Device: o.macvtap, Mode: o.mode, NoPromisc: o.noPromisc,
		Flag: o.flag, RxFilter: o.rxFilter,
	}
	if o.ipvtap != "" {
		l.Kind, l.Device = vtap.IPVtap, o.ipvtap
	}
	if l.Device == "" {
		if o.mode != "" || o.noPromisc || o.flag != "" || len(o.sources) > 0 {
			return nil, fmt.Errorf("--mode, --source-mac, --nopromisc and --flag go with --macvtap or --ipvtap")
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
	l.Addrs = addrs
	return l, nil
}
