package rtnl

import (
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// VethPeer is the other end of a new veth device: its name, the open namespace that it is in, and
// more of its attributes, which are no settings of its kind.
func VethPeer(name string, ns *netns.NS, more ...Attr) Attr {
	peer := nl.NewRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.Handle())))
	for _, a := range more {
		peer.AddChild(a.rta)
	}
	return Attr{rta: peer, info: true}
}
