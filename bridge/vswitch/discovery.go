package vswitch

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
)

// This file reads and writes the messages by which a tun port and stations find each other: ARP
// (RFC 826) and neighbor discovery (RFC 4861, section 4).

const (
	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd
	etherTypeARP  = 0x0806

	arpLen     = 28
	arpRequest = 1
	arpReply   = 2

	ipv6Len         = 40
	ndLen           = 24 // a solicitation or advertisement without options
	ndOptionLen     = 8  // an option with an Ethernet address
	ndAdvertisement = 134
	ndSolicit       = 135
	ndAdvertise     = 136
	ndRedirect      = 137
	ndSource        = 1 // option: the source's address
	ndTarget        = 2 // option: the target's address
	ndSolicited     = 0x40
	ndOverride      = 0x20
)

// A finding is what an ARP or neighbor discovery message says.
type finding struct {
	request   bool
	target    netip.Addr // whom a request asks for
	sender    netip.Addr // who says its address; not valid if nobody does
	mac       uint64     // of the sender
	probe     bool       // the sender has no address yet, and asks whether somebody has the target
	solicited bool       // an answer to a request
}

// parseARP parses the ARP message in an Ethernet frame.
func parseARP(ether []byte) (f finding, ok bool) {
	b := ether[etherLen:]
	if len(b) < arpLen || binary.BigEndian.Uint64(b)>>16 != 0x0001_0800_0604 {
		return f, false
	}
	op := binary.BigEndian.Uint16(b[6:])
	f.mac = macWord(b[8:])
	f.sender, f.target = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	f.request, f.solicited = op == arpRequest, op == arpReply
	f.probe = f.sender.IsUnspecified()
	return f, (op == arpRequest || op == arpReply) && f.mac != 0 && f.mac&groupBit == 0 && f.mac == macWord(ether[6:])
}

// icmp6Of reports whether an IPv6 packet in an Ethernet frame is an ICMPv6 message, and returns its
// type.
func icmp6Of(ether []byte) (kind byte, ok bool) {
	b := ether[etherLen:]
	if len(b) < ipv6Len+1 || b[6] != unix.IPPROTO_ICMPV6 {
		return 0, false
	}
	return b[ipv6Len], true
}

// parseND parses the neighbor solicitation or advertisement in an Ethernet frame. Unless partial,
// it verifies the checksum.
func parseND(ether []byte, partial bool) (f finding, ok bool) {
	ip := ether[etherLen:]
	if len(ip) < ipv6Len+ndLen || ip[7] != 255 || int(binary.BigEndian.Uint16(ip[4:])) != len(ip)-ipv6Len {
		return f, false
	}
	m := ip[ipv6Len:]
	if !partial && !offload.ICMPv6Summed(ip) || m[1] != 0 {
		return f, false
	}
	source := netip.AddrFrom16([16]byte(ip[8:24]))
	f.target = netip.AddrFrom16([16]byte(m[8:24]))
	if f.target.IsMulticast() {
		return f, false
	}
	want := byte(ndSource)
	switch m[0] {
	case ndSolicit:
		f.request, f.sender, f.probe = true, source, source.IsUnspecified()
	case ndAdvertise:
		f.sender, f.solicited, want = f.target, m[4]&ndSolicited != 0, ndTarget
	default:
		return f, false
	}
	f.mac = macWord(ether[6:])
	for options := m[ndLen:]; len(options) > 0; {
		if len(options) < 2 || options[1] == 0 || int(options[1])*8 > len(options) {
			return f, false
		}
		if options[0] == want {
			f.mac = macWord(options[2:])
		}
		options = options[int(options[1])*8:]
	}
	return f, f.mac != 0 && f.mac&groupBit == 0
}

// newMessage returns a frame with its vnet header, which is empty, and room for a payload.
func newMessage(dst, src uint64, kind uint16, payload int) (data, at []byte) {
	data = make([]byte, vnetLen+etherLen+payload)
	putEther(data[vnetLen:], dst, src, kind)
	return data, data[vnetLen+etherLen:]
}

func putEther(b []byte, dst, src uint64, kind uint16) {
	putMAC(b, dst)
	putMAC(b[6:], src)
	binary.BigEndian.PutUint16(b[macsLen:], kind)
}

func putMAC(b []byte, mac uint64) {
	binary.BigEndian.PutUint16(b, uint16(mac>>32))
	binary.BigEndian.PutUint32(b[2:], uint32(mac))
}

// arpMessage returns a frame with an ARP message from an own address. to is 0 for one to all.
func arpMessage(op uint16, mac uint64, own netip.Addr, to uint64, target netip.Addr) []byte {
	dst := to
	if dst == 0 {
		dst = broadcast
	}
	data, b := newMessage(dst, mac, etherTypeARP, arpLen)
	binary.BigEndian.PutUint64(b, 0x0001_0800_0604<<16|uint64(op))
	putMAC(b[8:], mac)
	copy(b[14:], own.AsSlice())
	putMAC(b[18:], to)
	copy(b[24:], target.AsSlice())
	return data
}

// allNodes is the multicast address of all hosts of a link.
var allNodes = netip.MustParseAddr("ff02::1")

// ndMessage returns a frame with a solicitation or advertisement about a target, from an own
// address. dst is 0 for the multicast address of to.
func ndMessage(kind byte, flags byte, mac uint64, own, to, target netip.Addr, dst uint64) []byte {
	if dst == 0 {
		dst = multicastMAC(to)
	}
	data, ip := newMessage(dst, mac, etherTypeIPv6, ipv6Len+ndLen+ndOptionLen)
	ip[0] = 0x60
	binary.BigEndian.PutUint16(ip[4:], ndLen+ndOptionLen)
	ip[6], ip[7] = unix.IPPROTO_ICMPV6, 255
	copy(ip[8:], own.AsSlice())
	copy(ip[24:], to.AsSlice())
	m := ip[ipv6Len:]
	m[0], m[4] = kind, flags
	copy(m[8:], target.AsSlice())
	m[ndLen], m[ndLen+1] = ndTarget, 1
	if kind == ndSolicit {
		m[ndLen] = ndSource
	}
	putMAC(m[ndLen+2:], mac)
	offload.SumICMPv6(ip)
	return data
}

// solicitedNode returns the multicast address by which a station is asked for an address.
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	to := [16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]}
	return netip.AddrFrom16(to)
}

// multicastMAC returns the Ethernet address of a multicast IP address (RFC 1112, RFC 2464).
func multicastMAC(a netip.Addr) uint64 {
	if a.Is4() {
		b := a.As4()
		return 0x0100_5e00_0000 | uint64(binary.BigEndian.Uint32(b[:]))&0x7f_ffff
	}
	b := a.As16()
	return 0x3333_0000_0000 | uint64(binary.BigEndian.Uint32(b[12:]))
}
