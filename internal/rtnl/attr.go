package rtnl

import (
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// An Attr is one setting of a link in a request.
type Attr struct {
	rta  *nl.RtAttr
	up   *bool // not an attribute but a flag of the header
	info bool  // belongs into IFLA_INFO_DATA of a new link
}

func attr(kind int, data []byte) Attr { return Attr{rta: nl.NewRtAttr(kind, data)} }

// Name is the interface name, at most 15 bytes.
func Name(name string) Attr { return attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)) }

// Alias is free text of at most 255 bytes (IFLA_IFALIAS).
func Alias(text string) Attr { return attr(unix.IFLA_IFALIAS, []byte(text)) }

// MAC is the link-layer address.
func MAC(mac net.HardwareAddr) Attr { return attr(unix.IFLA_ADDRESS, mac) }

// MTU is in bytes, without the Ethernet header.
func MTU(bytes int) Attr { return attr(unix.IFLA_MTU, nl.Uint32Attr(uint32(bytes))) }

// Master is the index of the bridge that the link is a port of; 0 takes it off.
func Master(index int) Attr { return attr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(index))) }

// Up sets the link administratively up or down.
func Up(up bool) Attr { return Attr{up: &up} }

// NoIPv6Autoconf keeps the host from giving the link an IPv6 address of its
// own: IFLA_INET6_ADDR_GEN_MODE is IN6_ADDR_GEN_MODE_NONE. It must be set
// before the link goes up, and works where /proc/sys cannot be written.
func NoIPv6Autoconf() Attr {
	const addrGenModeNone = 1
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{addrGenModeNone})
	return Attr{rta: spec}
}

// clockTick is USER_HZ: the kernel tells bridge times in hundredths of a second.
const clockTick = 100

// BridgeSTP switches the spanning tree protocol of a new bridge.
func BridgeSTP(on bool) Attr {
	var v uint32
	if on {
		v = 1
	}
	return Attr{rta: nl.NewRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(v)), info: true}
}

// BridgeAgeing is how long a new bridge remembers a MAC address, in seconds.
func BridgeAgeing(seconds int) Attr {
	return Attr{rta: nl.NewRtAttr(nl.IFLA_BR_AGEING_TIME, nl.Uint32Attr(uint32(seconds)*clockTick)), info: true}
}
