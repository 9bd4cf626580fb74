package bridges

import (
	"bytes"
	"fmt"
	"net"

	"vmnet/internal/kernel/rtnl"
)

// A bridge without an administrator's address takes the lowest of its ports' addresses, and changes
// it when that port leaves (br_stp_recalculate_bridge_id in net/bridge/br_stp_if.c). If the port
// belonged to a guest, the other guests then send to an address that no longer exists, until their
// ARP caches expire. A bridge with an uplink has the uplink's address, and the network beyond it
// may require that one. Guests' taps never replace it, since their addresses begin with fe.

// pin makes a bridge keep its current address, which its neighbours know. The caller pins it before
// it adds a port that would change the address, either by joining or by leaving later. The kernel
// treats any address that is set, even the same one, as an administrator's choice (NET_ADDR_SET).
//
// A bridge that has lost its last port has the address 00:00:00:00:00:00. The kernel would keep it
// if it was set, and a host with that address reaches no guest, so the bridge gets DefaultMAC.
func pin(c *rtnl.Conn, br, joining *rtnl.Link) error {
	if isDefault(br) { // set by Create
		return nil
	}
	ports, err := c.Links("", br.Index)
	now := br
	if err == nil && (len(ports) > 0 || !valid(br.MAC)) {
		now, err = c.LinkByIndex(br.Index) // br may have been read before it had ports
	}
	switch {
	case err != nil:
	case !valid(now.MAC):
		err = c.Set(br.Index, rtnl.MAC(DefaultMAC(br.Name)))
	case wanders(now, ports, joining):
		err = c.Set(br.Index, rtnl.MAC(now.MAC))
	}
	if err != nil {
		return fmt.Errorf("keep the address of bridge %s: %w", br.Name, Explain(err))
	}
	return nil
}

// isDefault reports whether a bridge has DefaultMAC, which costs a look at the machine's id only if
// the address begins like one.
func isDefault(br *rtnl.Link) bool {
	return bytes.HasPrefix(br.MAC, defaultPrefix) && bytes.Equal(br.MAC, DefaultMAC(br.Name))
}

// valid reports whether an address can be a host's (is_valid_ether_addr in
// include/linux/etherdevice.h).
func valid(mac net.HardwareAddr) bool {
	return len(mac) == 6 && mac[0]&1 == 0 && !bytes.Equal(mac, make([]byte, 6))
}

// wanders reports whether the address of br may change as guests' ports come and go.
func wanders(br *rtnl.Link, ports []*rtnl.Link, joining *rtnl.Link) bool {
	low := lowest(ports)
	switch {
	case low == nil:
		return comesAndGoes(joining)
	case !bytes.Equal(low.MAC, br.MAC): // an administrator has set it
		return false
	case comesAndGoes(low):
		return true
	}
	return comesAndGoes(joining) && bytes.Compare(joining.MAC, low.MAC) < 0
}

// MACOf returns the name of the port from which br has its address, if a guest or container has
// that port, or "". Unless the address was set, br loses it when that port leaves. Netlink does not
// report whether it was set.
func MACOf(br *rtnl.Link, ports []*rtnl.Link) string {
	if low := lowest(ports); low != nil && bytes.Equal(low.MAC, br.MAC) && comesAndGoes(low) {
		return low.Name
	}
	return ""
}

// lowest returns the port with the lowest address. If several ports share it, an uplink is
// preferred: a VLAN device has the address of its parent device.
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

// comesAndGoes reports whether a port is of a kind that guests and containers use.
func comesAndGoes(p *rtnl.Link) bool { return p.Kind == "tun" || p.Kind == "veth" }
