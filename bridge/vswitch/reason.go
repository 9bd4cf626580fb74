package vswitch

import "vmnet/bridge/vswitch/offload"

// A Reason tells why a frame did not go where it should have.
type Reason uint8

// What a frame is dropped for. The first ones are counted at the port that it came in by,
// those from Full on at the port that it was for. Behind them come those of package offload.
const (
	Delivered Reason = iota // not dropped

	Short      // no Ethernet header, or a tag that is cut off
	Giant      // longer than any frame may be, or than the port's buffers
	Source     // the source is a multicast address, or all zeros
	Spoofed    // the port is locked to other sources
	VLAN       // the port has no part in that VLAN
	LinkLocal  // for the next bridge only
	Looped     // the port that it came by, or is for, is stopped for a loop
	Back       // the destination is behind the port that the frame came from
	Isolated   // both ports are isolated
	NoPort     // nobody else is in that VLAN
	Broadcasts // more broadcasts than the port's storm limit
	Multicasts // more multicast frames than that
	Unknowns   // more frames to unknown addresses than that
	Unreadable // the kernel gave an error instead of a frame

	// Indescribable is a super-frame that a packet socket cannot give, because a vnet header has no type for it.
	Indescribable

	Overrun     // the kernel had no room left in the port's own queue
	Full        // the target has no room
	Down        // the target is down
	Gone        // the target was removed, or its other end was closed
	Unwelcome   // the target's kernel refused the frame
	offloadBase // offload's reasons follow
)

// Reasons is how many there are.
const Reasons = int(offloadBase) + int(offload.Reasons)

func fromOffload(r offload.Reason) Reason {
	if r == offload.OK {
		return Delivered
	}
	return offloadBase + Reason(r)
}

// refused tells whether a frame that came in goes nowhere, for a reason that who sent it answers for. Isolated is none: behind which port
// a destination is, others may lie about; nor is Looped, of which the other port may be the reason.
func (r Reason) refused() bool {
	return r != Delivered && r != Unreadable && r != Indescribable && r != Isolated && r != Looped
}

// TooBig is a frame larger than the target's MTU.
const TooBig = offloadBase + Reason(offload.TooBig)

// String is the reason as a counter is labelled.
func (r Reason) String() string {
	switch r {
	case Delivered:
		return "delivered"
	case Short:
		return "too short"
	case Giant:
		return "too long"
	case Source:
		return "impossible source address"
	case Spoofed:
		return "source address not allowed"
	case VLAN:
		return "VLAN not allowed"
	case LinkLocal:
		return "link-local destination"
	case Looped:
		return "port stopped for a loop"
	case Back:
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
	case Overrun:
		return "receive queue overrun"
	case Full:
		return "queue full"
	case Down:
		return "link down"
	case Gone:
		return "port gone"
	case Unwelcome:
		return "refused by the kernel"
	}
	return offload.Reason(r - offloadBase).String()
}

// cures are what an administrator does about frames that are dropped although nobody meant them to
// be. Reasons that a port's own settings are, or that only the sender answers for, have none.
var cures = map[Reason]string{
	Indescribable: "have the device that they leave by cut them: " +
		"ethtool -K DEVICE tx-udp-segmentation off tx-sctp-segmentation off, " +
		"such as the container's end of a veth pair; for a network card that joins what it receives, " +
		"ethtool -K DEVICE rx-udp-gro-forwarding off",
	offloadBase + Reason(offload.Tunnel): "have the device that they leave by cut them: ethtool -K DEVICE tso off gso off",
	TooBig:                               "give the devices behind all ports one MTU, or the port a larger one (mtu=BYTES)",
	Looped:                               "take away what joins the ports beside the switch",
}

// Cures are what helps against some reasons for which frames were dropped, by the same labels as
// [PortStats].Drops; nil if nothing helps against any.
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
