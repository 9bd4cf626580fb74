package rtnl

import (
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A Link is a network interface as the kernel reports it.
type Link struct {
	Index    int
	Name     string
	AltNames []string
	Alias    string
	Kind     string // "tun", "bridge", "veth"; empty for hardware
	MAC      net.HardwareAddr
	MTU      int // bytes
	Up       bool
	Carrier  bool
	OperUp   bool   // up and ready, also for its master (IF_OPER_UP, RFC 2863)
	AllMulti bool   // receives every multicast frame
	ARP      bool   // of Ethernet's kind, with neighbours that are asked for by ARP
	HostIPv6 bool   // the kernel assigns an IPv6 address by itself: see NoIPv6Autoconf
	AddrGen  uint8  // how it does so: IN6_ADDR_GEN_MODE_*
	TxQLen   int    // frames
	Master   int    // index of the bridge or bond of which it is a port; 0 for none
	Lower    int    // index of its parent device; 0 for none
	Group    uint32 // 0 by default
	LowerNS  int    // id of the parent device's netns; -1 if it is the link's own
	Stats    Stats

	Port    *Port    // if its master is a bridge
	Bridge  *Bridge  // if it is a bridge
	Tun     *Tun     // if it is a tun or tap device
	Macvlan *Macvlan // if it is a macvlan or macvtap
	IPVlan  *IPVlan  // if it is an ipvlan or ipvtap
	VLAN    int      // ID, if it is a VLAN subinterface; 0 if not
	VXLAN   *VXLAN   // if it is a VXLAN device
}

// Stats are the link's counters as the host sees them (struct rtnl_link_stats64).
type Stats struct {
	RxPackets uint64 `json:"rx_packets"`
	TxPackets uint64 `json:"tx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxErrors  uint64 `json:"rx_errors"`
	TxErrors  uint64 `json:"tx_errors"`
	RxDropped uint64 `json:"rx_dropped"`
	TxDropped uint64 `json:"tx_dropped"`
}

// Tun is the data of a tun or tap device (IFLA_TUN_*).
type Tun struct {
	Tap        bool
	Persist    bool
	VnetHdr    bool
	MultiQueue bool
	Queues     int  // open queues of a multi-queue device
	Attached   bool // a process has it open
}

// Macvlan is the data of a macvlan or macvtap (IFLA_MACVLAN_*).
type Macvlan struct {
	Mode      uint32 // MACVLAN_MODE_*
	NoPromisc bool
	Sources   []net.HardwareAddr
}

// IPVlan is the data of an ipvlan or ipvtap (IFLA_IPVLAN_*).
type IPVlan struct {
	Mode  uint16 // IPVLAN_MODE_*
	Flags uint16 // IPVLAN_F_*
}

// parseLink decodes an RTM_NEWLINK message.
func parseLink(msg []byte) (*Link, error) {
	if len(msg) < unix.SizeofIfInfomsg {
		return nil, fmt.Errorf("netlink link message of %d bytes", len(msg))
	}
	info := nl.DeserializeIfInfomsg(msg)
	l := &Link{
		Index: int(info.Index), LowerNS: -1,
		Up: info.Flags&unix.IFF_UP != 0, Carrier: info.Flags&unix.IFF_LOWER_UP != 0,
		AllMulti: info.Flags&unix.IFF_ALLMULTI != 0,
		ARP:      info.Type == unix.ARPHRD_ETHER && info.Flags&unix.IFF_NOARP == 0,
	}
	carrier := false
	each(msg[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(v)
		case unix.IFLA_IFALIAS:
			l.Alias = unix.ByteSliceToString(v)
		case unix.IFLA_ADDRESS:
			l.MAC = net.HardwareAddr(append([]byte(nil), v...))
		case unix.IFLA_MTU:
			l.MTU = int(u32(v))
		case unix.IFLA_MASTER:
			l.Master = int(u32(v))
		case unix.IFLA_LINK:
			l.Lower = int(u32(v))
		case unix.IFLA_LINK_NETNSID:
			l.LowerNS = int(int32(u32(v)))
		case unix.IFLA_GROUP:
			l.Group = u32(v)
		case unix.IFLA_TXQLEN:
			l.TxQLen = int(u32(v))
		case unix.IFLA_STATS64:
			l.Stats = parseStats(v)
		case unix.IFLA_PROP_LIST:
			each(v, func(kind uint16, v []byte) {
				if kind == unix.IFLA_ALT_IFNAME {
					l.AltNames = append(l.AltNames, unix.ByteSliceToString(v))
				}
			})
		case unix.IFLA_OPERSTATE:
			const up = 6 // include/uapi/linux/if.h
			l.OperUp = u8(v) == up
		case unix.IFLA_CARRIER:
			carrier = u8(v) != 0
		case unix.IFLA_AF_SPEC:
			l.AddrGen, l.HostIPv6 = hostIPv6(v)
		case unix.IFLA_LINKINFO:
			l.parseInfo(v)
		}
	})
	if l.Tun != nil { // a tap loses its carrier with its last queue
		l.Tun.Attached = carrier || l.Tun.Queues > 0
	}
	return l, nil
}

// hostIPv6 returns how and whether the kernel assigns IPv6 addresses to a link, by its
// IFLA_AF_SPEC. There is no part for IPv6 if the kernel does not run it on the link, such as with
// an MTU below 1280 bytes (inet6_fill_link_af in net/ipv6/addrconf.c).
func hostIPv6(b []byte) (mode uint8, on bool) {
	each(b, func(family uint16, v []byte) {
		if family != unix.AF_INET6 {
			return
		}
		each(v, func(kind uint16, v []byte) {
			if kind == unix.IFLA_INET6_ADDR_GEN_MODE {
				mode = u8(v)
				on = mode != addrGenModeNone
			}
		})
	})
	return mode, on
}

// MayBeOVS reports whether the link may be the local port of an Open vSwitch bridge: a device of
// the kernel's datapath, or a tap that ovs-vswitchd has made for one in user space.
func (l *Link) MayBeOVS() bool { return l.Bridge == nil && (l.Kind == "openvswitch" || l.Tun != nil) }

// parseInfo decodes IFLA_LINKINFO: the kind and data of the link, and those of the link as a port.
func (l *Link) parseInfo(b []byte) {
	var data, slave []byte
	var slaveKind string
	each(b, func(kind uint16, v []byte) {
		switch kind {
		case nl.IFLA_INFO_KIND:
			l.Kind = unix.ByteSliceToString(v)
		case nl.IFLA_INFO_DATA:
			data = v
		case nl.IFLA_INFO_SLAVE_KIND:
			slaveKind = unix.ByteSliceToString(v)
		case nl.IFLA_INFO_SLAVE_DATA:
			slave = v
		}
	})
	switch l.Kind {
	case "bridge":
		l.Bridge = parseBridge(data)
	case "tun":
		l.Tun = parseTun(data)
	case "macvlan", "macvtap":
		l.Macvlan = parseMacvlan(data)
	case "ipvlan", "ipvtap":
		l.IPVlan = parseIPVlan(data)
	case "vxlan":
		l.VXLAN = parseVXLAN(data)
	case "vlan":
		each(data, func(kind uint16, v []byte) {
			if kind == nl.IFLA_VLAN_ID {
				l.VLAN = int(u16(v))
			}
		})
	}
	if slaveKind == "bridge" {
		l.Port = parsePort(slave)
	}
}

func parseTun(b []byte) *Tun {
	t := &Tun{}
	each(b, func(kind uint16, v []byte) {
		switch kind {
		case nl.IFLA_TUN_TYPE:
			t.Tap = u8(v) == unix.IFF_TAP
		case nl.IFLA_TUN_PERSIST:
			t.Persist = u8(v) != 0
		case nl.IFLA_TUN_VNET_HDR:
			t.VnetHdr = u8(v) != 0
		case nl.IFLA_TUN_MULTI_QUEUE:
			t.MultiQueue = u8(v) != 0
		case nl.IFLA_TUN_NUM_QUEUES, nl.IFLA_TUN_NUM_DISABLED_QUEUES:
			t.Queues += int(u32(v))
		}
	})
	return t
}

func parseMacvlan(b []byte) *Macvlan {
	m := &Macvlan{}
	each(b, func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_MACVLAN_MODE:
			m.Mode = u32(v)
		case unix.IFLA_MACVLAN_FLAGS:
			m.NoPromisc = len(v) >= 2 && binary.NativeEndian.Uint16(v)&1 != 0
		case unix.IFLA_MACVLAN_MACADDR_DATA:
			each(v, func(_ uint16, mac []byte) {
				m.Sources = append(m.Sources, append(net.HardwareAddr(nil), mac...))
			})
		}
	})
	return m
}

func parseIPVlan(b []byte) *IPVlan {
	i := &IPVlan{}
	each(b, func(kind uint16, v []byte) {
		switch {
		case len(v) < 2:
		case kind == unix.IFLA_IPVLAN_MODE:
			i.Mode = binary.NativeEndian.Uint16(v)
		case kind == unix.IFLA_IPVLAN_FLAGS:
			i.Flags = binary.NativeEndian.Uint16(v)
		}
	})
	return i
}

// parseStats decodes the start of struct rtnl_link_stats64, which only grows at its end.
func parseStats(b []byte) Stats {
	at := func(i int) uint64 {
		if len(b) < 8*(i+1) {
			return 0
		}
		return binary.NativeEndian.Uint64(b[8*i:])
	}
	return Stats{at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)}
}

// each walks attributes (struct nlattr, include/uapi/linux/netlink.h); what is cut short ends the
// walk.
func each(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[unix.SizeofRtAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// A number that is shorter than the kernel's headers say reads as zero.

func u8(b []byte) uint8 {
	if len(b) < 1 {
		return 0
	}
	return b[0]
}

func u16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.NativeEndian.Uint16(b)
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func u64(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.NativeEndian.Uint64(b)
}

func ticks(n uint64) time.Duration { return time.Duration(n) * time.Second / clockTick }
