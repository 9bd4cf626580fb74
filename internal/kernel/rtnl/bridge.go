package rtnl

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
)

// PortState is the state of a bridge port (BR_STATE_* in include/uapi/linux/if_bridge.h).
type PortState uint8

// The states of IEEE 802.1D.
const (
	Disabled PortState = iota
	Listening
	Learning
	Forwarding
	Blocking
)

// String returns the state's name in IEEE 802.1D.
func (s PortState) String() string {
	names := [...]string{"disabled", "listening", "learning", "forwarding", "blocking"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Port is a bridge port's data (IFLA_BRPORT_*).
type Port struct {
	State PortState
	Timer time.Duration // until the forward delay timer expires and the next state begins

	// NeighSuppress says that the bridge answers ARP and ND requests for neighbors that it knows
	// rather than send them out of the port. It is not among PortFlags: only ports of VXLAN
	// segments have it, and code that sets the others must leave it alone.
	NeighSuppress bool

	// VLANTunnel says that the port, a VXLAN device, carries each VLAN in a tunnel of its own. It
	// is not among PortFlags either.
	VLANTunnel bool

	PortFlags
}

// PortFlags are the flags of a bridge port (IFLA_BRPORT_*). A new port learns and floods.
type PortFlags struct {
	Hairpin  bool // a frame may leave by the port on which it arrived (IFLA_BRPORT_MODE)
	Isolated bool // no frames to and from other isolated ports
	Learning bool // senders' addresses are added to the FDB
	Flood    bool // unicast frames to unknown addresses leave by this port

	NoMulticast bool // no multicast to groups without members (IFLA_BRPORT_MCAST_FLOOD is off)
	NoBroadcast bool // no broadcasts (IFLA_BRPORT_BCAST_FLOOD is off)
	Locked      bool // only frames from addresses in the FDB are accepted (IFLA_BRPORT_LOCKED)

	// Forward has a bit for each of the addresses 01:80:c2:00:00:00 to 0f. Frames to them that
	// arrive on this port are forwarded (IFLA_BRPORT_GROUP_FWD_MASK, Linux 4.15; older kernels
	// neither report it nor heed it).
	Forward uint16
}

// Bridge is a bridge's data (IFLA_BR_*).
type Bridge struct {
	STP          bool
	ForwardDelay time.Duration
	Ageing       time.Duration

	CanFilterVLANs bool // the kernel has CONFIG_BRIDGE_VLAN_FILTERING
	VLANFiltering  bool // frames pass only in VLANs that both ports are members of
	DefaultPVID    int  // the VLAN that new ports join, untagged; 0 for none
}

func parsePort(b []byte) *Port {
	p := &Port{}
	each(b, func(kind uint16, v []byte) {
		switch kind {
		case nl.IFLA_BRPORT_STATE:
			p.State = PortState(u8(v))
		case nl.IFLA_BRPORT_FORWARD_DELAY_TIMER:
			p.Timer = ticks(u64(v))
		case nl.IFLA_BRPORT_NEIGH_SUPPRESS:
			p.NeighSuppress = u8(v) != 0
		case nl.IFLA_BRPORT_VLAN_TUNNEL:
			p.VLANTunnel = u8(v) != 0
		case nl.IFLA_BRPORT_MODE:
			p.Hairpin = u8(v) != 0
		case nl.IFLA_BRPORT_ISOLATED:
			p.Isolated = u8(v) != 0
		case nl.IFLA_BRPORT_LEARNING:
			p.Learning = u8(v) != 0
		case nl.IFLA_BRPORT_UNICAST_FLOOD:
			p.Flood = u8(v) != 0
		case nl.IFLA_BRPORT_MCAST_FLOOD:
			p.NoMulticast = u8(v) == 0
		case nl.IFLA_BRPORT_BCAST_FLOOD:
			p.NoBroadcast = u8(v) == 0
		case nl.IFLA_BRPORT_LOCKED:
			p.Locked = u8(v) != 0
		case nl.IFLA_BRPORT_GROUP_FWD_MASK:
			p.Forward = u16(v)
		}
	})
	return p
}

func parseBridge(b []byte) *Bridge {
	br := &Bridge{}
	each(b, func(kind uint16, v []byte) {
		switch kind {
		case nl.IFLA_BR_STP_STATE:
			br.STP = u32(v) != 0
		case nl.IFLA_BR_FORWARD_DELAY:
			br.ForwardDelay = ticks(uint64(u32(v)))
		case nl.IFLA_BR_AGEING_TIME:
			br.Ageing = ticks(uint64(u32(v)))
		case nl.IFLA_BR_VLAN_FILTERING:
			br.VLANFiltering = u8(v) != 0
		case nl.IFLA_BR_VLAN_DEFAULT_PVID: // omitted by a kernel that cannot filter (br_fill_info)
			br.CanFilterVLANs, br.DefaultPVID = true, int(u16(v))
		}
	})
	return br
}
