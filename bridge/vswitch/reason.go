package vswitch

import (
	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch/offload"
)

// A Reason says why a frame was dropped.
type Reason uint8

// The drop reasons. Those before Full are counted at the port on which the frame arrived, the
// others at the port by which it should have left. The reasons of package offload follow, then
// those of package portsec, which are counted at the port on which the frame arrived.
const (
	Delivered Reason = iota // not dropped

	Short     // the Ethernet header or the tag is missing or incomplete
	Giant     // longer than any valid frame, or than the port's buffers
	BadSource // the source is a multicast address, or all zeros
	Spoofed   // the port does not accept that source (vport.Config.MACs)

	// VLAN means that the port on which the frame arrived is not in the frame's VLAN, or is a trunk
	// without a native VLAN and the frame has no tag. If the port of a known destination is not in
	// the VLAN, the frame is flooded.
	VLAN

	LinkLocal  // link-local destination, which bridges do not forward
	Looped     // the port on which it arrived, or by which it should leave, is stopped for a loop
	SamePort   // the destination is behind the port on which the frame arrived
	Isolated   // both ports are isolated
	NoPort     // flooded to no port: all are in other VLANs, isolated, stopped or no-flood
	Broadcasts // exceeds the port's storm limit of broadcasts
	Multicasts // exceeds the limit of multicast frames
	Unknowns   // exceeds the limit of frames to unknown addresses
	Unreadable // receiving failed with an error, or the memory of the guest that sent it is gone

	Stranger     // came to a VXLAN port from a host that is not one of its remote ones
	Unanswered   // came from a tun, and no station answers for its destination
	OtherSegment // has no VXLAN header, or that of another segment than the port's

	// Indescribable is a super-frame that a packet socket cannot receive, since a vnet header
	// has no type for it.
	Indescribable

	Overrun     // the kernel's receive queue of the port was full
	Full        // the target's queue is full
	Down        // the target is down
	Gone        // the target was removed, or its other end was closed
	Rejected    // the target's kernel refused the frame
	Advertised  // a router's advertisement or redirect, for the kernel behind a tun port
	Unreachable // no remote host of the target can be reached now
	Rated       // exceeds the rate to the guest behind the target (vport.Config.Rates)
	offloadBase // the reasons of package offload follow

	securityBase = offloadBase + Reason(offload.Reasons) // those of package portsec follow
)

// Reasons is the number of reasons.
const Reasons = int(securityBase) + portsec.Reasons

func fromOffload(r offload.Reason) Reason {
	if r == offload.OK {
		return Delivered
	}
	return offloadBase + Reason(r)
}

// refused reports whether the sender is responsible for the drop of an incoming frame. It is not
// for Isolated, since another port may have lied about the destination's place. Nor is it for
// Looped, for which the other port may be the cause.
func (r Reason) refused() bool {
	return r != Delivered && r != Unreadable && r != Indescribable && r != Isolated && r != Looped && r != Stranger &&
		r != Unanswered
}

// TooBig is the reason for a frame larger than the target's MTU.
const TooBig = offloadBase + Reason(offload.TooBig)

// String returns the reason as the label of a counter.
func (r Reason) String() string {
	switch r {
	case Delivered:
		return "delivered"
	case Short:
		return "too short"
	case Giant:
		return "too long"
	case BadSource:
		return "impossible source address"
	case Spoofed:
		return "source address not allowed"
	case VLAN:
		return "VLAN not allowed"
	case LinkLocal:
		return "link-local destination"
	case Looped:
		return "port stopped for a loop"
	case SamePort:
		return "destination behind the same port"
	case Isolated:
		return "isolated ports"
	case NoPort:
		return "no port to send to"
	case Broadcasts:
		return "broadcast storm"
	case Multicasts:
		return "multicast storm"
	case Unknowns:
		return "unknown-unicast storm"
	case Unreadable:
		return "receive error"
	case Indescribable:
		return "super-frame that a packet socket cannot describe"
	case Stranger:
		return "from no remote host of the port"
	case Advertised:
		return "router advertisement or redirect to a tun"
	case Unanswered:
		return "destination does not answer"
	case OtherSegment:
		return "not of the port's VXLAN segment"
	case Overrun:
		return "receive queue overrun"
	case Full:
		return "queue full"
	case Down:
		return "link down"
	case Gone:
		return "port gone"
	case Rejected:
		return "refused by the kernel"
	case Unreachable:
		return "remote host unreachable"
	case Rated:
		return "over the rate"
	}
	if r >= securityBase {
		return portsec.Reason(r - securityBase).String()
	}
	return offload.Reason(r - offloadBase).String()
}

// cures says what an administrator can do about unintended drops. Reasons that follow from a port's
// settings, or for which only the sender is responsible, have no cure.
var cures = map[Reason]string{
	Indescribable: "let the device by which they leave, such as the container's end of a veth pair, segment them: " +
		"ethtool -K DEVICE tx-udp-segmentation off tx-sctp-segmentation off; " +
		"for an uplink that joins frames on receipt, ethtool -K DEVICE rx-udp-gro-forwarding off",
	offloadBase + Reason(offload.Tunnel): "let the device by which they leave segment them: " +
		"ethtool -K DEVICE tso off gso off",
	TooBig:       "give the devices behind all ports one MTU, or the port a larger one (mtu=BYTES)",
	Stranger:     "name that host too (remote=ADDRESS), if it has the segment",
	OtherSegment: "give all hosts of the segment the same VNI (vni=N)",
	Unreachable:  "check the route to the remote hosts, and the firewall of what this host sends",
	Looped:       "remove the other connection between the ports",
}

// Cures returns what helps against reasons of drops, by the same labels as [vport.Stats].Drops. It
// is nil if there is a cure for none of them.
func Cures(drops map[string]uint64) map[string]string {
	var found map[string]string
	for why, cure := range cures {
		if label := why.String(); drops[label] > 0 {
			if found == nil {
				found = map[string]string{}
			}
			found[label] = cure
		}
	}
	return found
}
