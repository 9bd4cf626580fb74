package bridge

import (
	"bytes"
	"fmt"

	"vmnet/internal/kernel/rtnl"
)

// A bridge whose address nobody has set takes the lowest of its ports' addresses, and another one when that port goes
// (br_stp_recalculate_bridge_id in net/bridge/br_stp_if.c). Where that port is a guest's, the other guests then send to
// an address that nobody has, until their ARP caches forget it. A bridge with an uplink has the uplink's address, on
// which the network beyond it may insist: guests' taps never take that away, since their addresses begin with fe.

// pin makes a bridge keep its present address, which neighbours know, before a port joins that would give it another
// one, now or when it goes. To set an address, even the same one, is what the kernel takes for an administrator's
// choice (NET_ADDR_SET).
func pin(c *rtnl.Conn, br, joining *rtnl.Link) error {
	if bytes.Equal(br.MAC, DefaultMAC(br.Name)) { // Create has set it
		return nil
	}
	ports, err := c.Links("", br.Index)
	if err != nil {
		return err
	}
	now, err := c.LinkByIndex(br.Index) // br may have been read before it had ports
	if err == nil && wanders(now, ports, joining) {
		err = c.Set(br.Index, rtnl.MAC(now.MAC))
	}
	if err != nil {
		return fmt.Errorf("keep the address of bridge %s: %w", br.Name, explain(err))
	}
	return nil
}

// wanders reports whether the address of br may change as guests' ports come and go.
func wanders(br *rtnl.Link, ports []*rtnl.Link, joining *rtnl.Link) bool {
	low := lowest(ports)
	switch {
	case low == nil:
		return comesAndGoes(joining)
	case !bytes.Equal(low.MAC, br.MAC): // somebody has set it
		return false
	case comesAndGoes(low):
		return true
	}
	return comesAndGoes(joining) && bytes.Compare(joining.MAC, low.MAC) < 0
}

// follows names the port of a guest or container whose address br has, and with which it loses that unless it was set;
// empty for none. The kernel does not tell by netlink whether it was set.
func follows(br *rtnl.Link, ports []*rtnl.Link) string {
	if low := lowest(ports); low != nil && bytes.Equal(low.MAC, br.MAC) && comesAndGoes(low) {
		return low.Name
	}
	return ""
}

// lowest is the port with the lowest address; of several an uplink, such as that of a VLAN device on it.
func lowest(ports []*rtnl.Link) (low *rtnl.Link) {
	for _, p := range ports {
		order := -1
		if low != nil {
			order = bytes.Compare(p.MAC, low.MAC)
		}
		if order < 0 || order == 0 && !comesAndGoes(p) {
			low = p
		}
	}
	return low
}

// comesAndGoes reports whether a port is of a kind that guests and containers have.
func comesAndGoes(p *rtnl.Link) bool { return p.Kind == "tun" || p.Kind == "veth" }
