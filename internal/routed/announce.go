package routed

import (
	"context"
	"fmt"
	"net/netip"

	"vmnet/internal/kernel/announce"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// announceStep has the LAN learn that the uplink's MAC address is the one of the guest's addresses:
// a neighbor that knew them elsewhere would send there until it asks again.
func (h *Host) announceStep(n NIC, uplink *rtnl.Link) step.Step {
	return step.Step{
		Name: "announce",
		Text: fmt.Sprintf("send on %s: gratuitous ARP, unsolicited neighbor advertisements: %s is at %s",
			uplink.Name, Format(n.IPs), uplink.MAC),
		Do: func(context.Context) error {
			h.announce(n.Uplink, n.IPs)
			return nil
		},
	}
}

// announce is no failure if it cannot be done: without the privilege, which Check says, or on a
// link that is down, where nobody would hear it. Neighbors ask again by themselves, later.
func (h *Host) announce(uplink int, ips []netip.Addr) {
	l, err := h.NL.LinkByIndex(uplink)
	if err != nil || len(l.MAC) != 6 || len(ips) == 0 {
		return
	}
	_ = announce.Send(h.NS, uplink, announce.Frames(l.MAC, ips)...)
}
