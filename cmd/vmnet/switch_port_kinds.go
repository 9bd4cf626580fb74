package main

import (
	"errors"
	"net"
	"net/netip"

	"github.com/spf13/pflag"

	"vmnet/bridge/vxlan"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/stablemac"
)

// ownHelp describes the options that only --vxlan or --tun has.
const ownHelp = `

A port of --vxlan is written [NAME,]vni=N,remote=ADDRESS[,OPTION...], with these options besides:

    vni=N                  the segment, 1 to 16777215
    remote=ADDRESS         another host of the segment (repeatable); no other host is heard
    local=ADDRESS          this host's address by which the others know it (default: the one that
                           the route to each of them has)
    port=N                 UDP port of the segment (default 4789)

A port of --tun has these besides:

    address=ADDRESS/BITS   an address of the host at the tun, for which the switch answers ARP and
                           neighbor discovery (repeatable); a tun that is made gets it
    mac=MAC                the MAC address behind which they are (default one of this host's own)`

// ownMAC derives the MAC address of a tun's port, which stays the same: stations remember it.
func (w *wantedPort) ownMAC() net.HardwareAddr {
	texts := []string{"tun", w.Device}
	for _, p := range w.Tun.Addresses {
		texts = append(texts, p.Addr().String())
	}
	return stablemac.New([]byte{2}, texts...)
}

func (w *wantedPort) vxlanOptions(f *pflag.FlagSet) {
	v := w.VXLAN
	upTo(f, "vni", &v.VNI, vxlan.MaxVNI)
	upTo(f, "port", &v.Port, 65535)
	f.Var(nicflags.Value("ADDRESS", "", func(s string) error {
		a, err := hostAddress(s)
		v.Remotes = append(v.Remotes, a)
		return err
	}), "remote", "")
	f.Var(nicflags.Value("ADDRESS", "", func(s string) (err error) {
		v.Local, err = hostAddress(s)
		return err
	}), "local", "")
}

func (w *wantedPort) tunOptions(f *pflag.FlagSet) {
	f.Var(nicflags.Value("ADDRESS/BITS", "", func(s string) error {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return errors.New("want an address with its prefix length, such as 10.7.0.1/24")
		}
		w.Tun.Addresses = append(w.Tun.Addresses, p)
		return nil
	}), "address", "")
}
