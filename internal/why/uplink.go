package why

import (
	"fmt"
	"slices"

	"vmnet/internal/kernel/rtnl"
)

// maxStack bounds how many links are on top of each other.
const maxStack = 8

// uplink follows the frame out of the host, by a link and those below it.
func (w *walker) uplink(l *rtnl.Link) {
	if w.below(l); w.stopped {
		return
	}
	if w.NIC.MTU > l.MTU && w.bridgeLink() == nil {
		w.fits("uplink "+l.Name, l)
	}
	w.pass("uplink "+l.Name, "the frame leaves this host; tcpdump -eni %s shows what comes back", l.Name)
}

// below stops the frame at a link, or one below it, that sends nothing.
func (w *walker) below(l *rtnl.Link) {
	if w.radio(l); w.stopped {
		return
	}
	for range maxStack {
		where := "uplink " + l.Name
		switch {
		case !l.Up:
			w.stop(where, "ip link set "+l.Name+" up", "it is down")
		case l.Tun == nil && !l.Carrier:
			w.stop(where, "plug in its cable, or ip link set its other end up", "it has no carrier")
		}
		lower := w.at(l.Lower)
		if w.stopped || lower == nil || l.LowerNS >= 0 || l.Kind == "veth" {
			return
		}
		l = lower
	}
}

// radio stops the frame of a guest at a port that is a Wi-Fi card.
func (w *walker) radio(l *rtnl.Link) {
	if l.Port != nil && slices.Contains(w.Radios, l.Name) {
		w.stop("uplink "+l.Name, fmt.Sprintf("vmnet attach --routed %s --ip ADDRESS, or a network with --nat", l.Name),
			"it is a Wi-Fi card: access points take no frames from other addresses than its own")
	}
}
