package rtnl

import (
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// An Attr is one setting of a link in a request.
type Attr struct {
	rta  *nl.RtAttr
	info bool // belongs in IFLA_INFO_DATA

	// What goes into the header, struct ifinfomsg, instead.
	flagMask, flags uint32
	index           int
}

func attr(kind int, data []byte) Attr { return Attr{rta: nl.NewRtAttr(kind, data)} }

// Name is the interface's name, of at most 15 bytes.
func Name(name string) Attr { return attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)) }

// Alias is free text of at most 255 bytes (IFLA_IFALIAS).
func Alias(text string) Attr { return attr(unix.IFLA_IFALIAS, []byte(text)) }

// MAC is the link-layer address.
func MAC(mac net.HardwareAddr) Attr { return attr(unix.IFLA_ADDRESS, mac) }

// MTU is the largest frame in bytes, without the Ethernet header.
func MTU(bytes int) Attr { return attr(unix.IFLA_MTU, nl.Uint32Attr(uint32(bytes))) }

// Master is the index of the bridge or bond that the link is a port of; 0 removes it from there.
func Master(index int) Attr { return attr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(index))) }

// Up sets the link up or down (IFF_UP).
func Up(up bool) Attr { return flag(unix.IFF_UP, up) }

// AllMulti makes the link receive every multicast frame.
func AllMulti(on bool) Attr { return flag(unix.IFF_ALLMULTI, on) }

func flag(mask uint32, on bool) Attr {
	if on {
		return Attr{flagMask: mask, flags: mask}
	}
	return Attr{flagMask: mask}
}

// Index is the index that a new link should have.
func Index(index int) Attr { return Attr{index: index} }

// Netns is the open namespace that a new link should be in.
func Netns(ns *netns.NS) Attr {
	return attr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.Handle())))
}

// Lower is the index of a new link's parent device, in the namespace of the socket.
func Lower(index int) Attr { return attr(unix.IFLA_LINK, nl.Uint32Attr(uint32(index))) }

// TxQLen is the length of the transmit queue in frames. A macvtap's ring has that many entries.
func TxQLen(frames int) Attr { return attr(unix.IFLA_TXQLEN, nl.Uint32Attr(uint32(frames))) }

// Carrier says whether a tap has a link partner (IFLA_CARRIER). Only drivers with
// ndo_change_carrier accept it.
func Carrier(on bool) Attr { return attr(unix.IFLA_CARRIER, boolByte(on)) }

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE (include/uapi/linux/if_link.h).
const addrGenModeNone = 1

// NoIPv6Autoconf keeps the kernel from assigning an IPv6 address to the link
// (IFLA_INET6_ADDR_GEN_MODE). It must be set before the link goes up. Unlike a sysctl, it does not
// need a writable /proc/sys.
func NoIPv6Autoconf() Attr { return AddrGen(addrGenModeNone) }

// AddrGen says how the kernel assigns an IPv6 address to the link: IN6_ADDR_GEN_MODE_*. Of a link
// that is up, it changes no address.
func AddrGen(mode uint8) Attr {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{mode})
	return Attr{rta: spec}
}

// VLANID is the ID of a new VLAN subinterface, whose frames have tags of IEEE 802.1Q.
func VLANID(id int) Attr { return infoAttr(nl.IFLA_VLAN_ID, nl.Uint16Attr(uint16(id))) }

// clockTick is USER_HZ: the kernel reports a bridge's times in hundredths of a second.
const clockTick = 100

// BridgeSTP turns the spanning tree protocol of a new bridge on or off.
func BridgeSTP(on bool) Attr {
	var v uint32
	if on {
		v = 1
	}
	return infoAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(v))
}

// BridgeAgeing is how long a new bridge remembers a MAC address, in seconds.
func BridgeAgeing(seconds int) Attr {
	return infoAttr(nl.IFLA_BR_AGEING_TIME, nl.Uint32Attr(uint32(seconds)*clockTick))
}

// BridgeNoSnooping makes a new bridge send all multicast to all ports.
func BridgeNoSnooping() Attr { return infoAttr(nl.IFLA_BR_MCAST_SNOOPING, boolByte(false)) }

// BridgeVLANFiltering says whether a bridge filters VLANs. A kernel without
// CONFIG_BRIDGE_VLAN_FILTERING answers EOPNOTSUPP (br_vlan_filter_toggle).
func BridgeVLANFiltering(on bool) Attr { return infoAttr(nl.IFLA_BR_VLAN_FILTERING, boolByte(on)) }

// MacvlanMode is the mode of a macvlan or macvtap, MACVLAN_MODE_* (include/uapi/linux/if_link.h).
func MacvlanMode(mode uint32) Attr { return infoAttr(unix.IFLA_MACVLAN_MODE, nl.Uint32Attr(mode)) }

// MacvlanNoPromisc keeps a passthru macvlan from making its parent device promiscuous
// (MACVLAN_FLAG_NOPROMISC).
func MacvlanNoPromisc() Attr {
	const flagNoPromisc = 1
	return infoAttr(unix.IFLA_MACVLAN_FLAGS, nl.Uint16Attr(flagNoPromisc))
}

// MacvlanSources are the only senders whose frames a macvlan in source mode receives. They take two
// attributes: the operation (MACVLAN_MACADDR_SET) and the list.
func MacvlanSources(macs []net.HardwareAddr) []Attr {
	list := nl.NewRtAttr(unix.IFLA_MACVLAN_MACADDR_DATA, nil)
	for _, mac := range macs {
		list.AddRtAttr(unix.IFLA_MACVLAN_MACADDR, mac)
	}
	return []Attr{
		infoAttr(unix.IFLA_MACVLAN_MACADDR_MODE, nl.Uint32Attr(nl.MACVLAN_MACADDR_SET)),
		{rta: list, info: true},
	}
}

// IPVlanMode is the mode of an ipvlan or ipvtap, IPVLAN_MODE_*.
func IPVlanMode(mode uint16) Attr { return infoAttr(unix.IFLA_IPVLAN_MODE, nl.Uint16Attr(mode)) }

// IPVlanFlags are the flags of an ipvlan or ipvtap, IPVLAN_F_*.
func IPVlanFlags(flags uint16) Attr { return infoAttr(unix.IFLA_IPVLAN_FLAGS, nl.Uint16Attr(flags)) }

func infoAttr(kind int, data []byte) Attr { return Attr{rta: nl.NewRtAttr(kind, data), info: true} }

// MoveTo moves an existing link to an open namespace, and gives it that index there (Linux 5.12;
// an older kernel keeps the link's index if it is free there). If the link's name is taken there,
// the error matches fs.ErrExist with errors.Is, and the link stays. The link must be down.
func MoveTo(ns *netns.NS, index int) []Attr {
	return []Attr{Netns(ns), attr(unix.IFLA_NEW_IFINDEX, nl.Uint32Attr(uint32(index)))}
}
