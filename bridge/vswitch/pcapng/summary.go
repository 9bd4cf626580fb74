package pcapng

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/offload"
)

// Summary describes a frame in one line: its addresses, VLANs and contents, and the offloads still
// to be done. It shows data of the frame only as numbers, never as text.
func Summary(c capture.Frame) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	// Decoding stops at invalid data. The library also turns its own panics into an error
	// layer.
	p := gopacket.NewPacket(c.Data, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	if e, ok := p.LinkLayer().(*layers.Ethernet); ok {
		add("%s > %s", e.SrcMAC, e.DstMAC)
		parts = append(parts, tags(p)...)
	} else {
		add("no Ethernet header")
	}
	parts = append(parts, payload(p), fmt.Sprintf("length %d", c.Length))
	if h := c.Vnet; h.GSOType != offload.GSONone {
		add("segments of %d", h.GSOSize)
	} else if h.Flags&offload.NeedsCsum != 0 {
		add("checksum to fill in")
	}
	if c.Reason != "" {
		add("dropped: %s", c.Reason)
	}
	return strings.Join(parts, ", ")
}

// tags lists the frame's VLANs, the outermost first.
func tags(p gopacket.Packet) (all []string) {
	for _, l := range p.Layers() {
		if q, ok := l.(*layers.Dot1Q); ok {
			all = append(all, fmt.Sprintf("VLAN %d", q.VLANIdentifier))
		}
	}
	return all
}

// payload describes what follows the Ethernet header and its tags.
func payload(p gopacket.Packet) string {
	switch l := p.NetworkLayer().(type) {
	case *layers.IPv4:
		if l.SrcIP == nil { // the header is incomplete
			break
		}
		return transport(p, ip{"IPv4", l.SrcIP, l.DstIP, l.Protocol, int(l.Length) - 4*int(l.IHL)},
			l.FragOffset != 0 || l.Flags&layers.IPv4MoreFragments != 0)
	case *layers.IPv6:
		if l.SrcIP == nil {
			break
		}
		return transport(p, ip{"IPv6", l.SrcIP, l.DstIP, l.NextHeader, int(l.Length)}, false)
	}
	if a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		return arp(a)
	}
	kind := "nothing more"
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.Ethernet:
			kind = etherType(l.EthernetType, l.Contents)
		case *layers.Dot1Q:
			kind = etherType(l.Type, l.Contents)
		}
	}
	return kind
}

// etherType describes an EtherType. If the header's last two bytes are a length instead, an LLC
// header follows (IEEE 802.3).
func etherType(kind layers.EthernetType, header []byte) string {
	if len(header) >= 2 && kind == layers.EthernetTypeLLC {
		return fmt.Sprintf("802.3 of %d bytes", binary.BigEndian.Uint16(header[len(header)-2:]))
	}
	return fmt.Sprintf("type 0x%04x", uint16(kind))
}

// arp describes an ARP request or reply for IPv4 (RFC 826).
func arp(a *layers.ARP) string {
	from, ok1 := netip.AddrFromSlice(a.SourceProtAddress)
	to, ok2 := netip.AddrFromSlice(a.DstProtAddress)
	switch {
	case !ok1 || !ok2:
		return "ARP"
	case a.Operation == layers.ARPRequest:
		return fmt.Sprintf("ARP who has %s, tell %s", to, from)
	case a.Operation == layers.ARPReply:
		return fmt.Sprintf("ARP %s is at %s", from, net.HardwareAddr(a.SourceHwAddress))
	}
	return fmt.Sprintf("ARP operation %d", a.Operation)
}

// ip has the fields of an IP header. The captured packet may end after it.
type ip struct {
	version  string
	src, dst []byte
	proto    layers.IPProtocol
	payload  int // bytes
}

// transport describes an IP packet and what it carries.
func transport(p gopacket.Packet, h ip, fragment bool) string {
	from, _ := netip.AddrFromSlice(h.src)
	to, _ := netip.AddrFromSlice(h.dst)
	between := func(a, b uint16) string {
		return fmt.Sprintf("%s %s > %s", h.version, netip.AddrPortFrom(from, a), netip.AddrPortFrom(to, b))
	}
	switch l := p.TransportLayer().(type) {
	case *layers.TCP:
		return fmt.Sprintf("%s TCP [%s] seq %d ack %d, %d bytes", between(uint16(l.SrcPort), uint16(l.DstPort)),
			flags(l), l.Seq, l.Ack, max(0, h.payload-4*int(l.DataOffset)))
	case *layers.UDP:
		return fmt.Sprintf("%s UDP, %d bytes", between(uint16(l.SrcPort), uint16(l.DstPort)), max(0, h.payload-8))
	}
	text := fmt.Sprintf("%s %s > %s", h.version, from, to)
	switch {
	case fragment:
		return text + " fragment"
	case p.Layer(layers.LayerTypeICMPv4) != nil:
		return text + " ICMP " + p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4).TypeCode.String()
	case p.Layer(layers.LayerTypeICMPv6) != nil:
		return text + " ICMPv6 " + p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).TypeCode.String()
	}
	return fmt.Sprintf("%s protocol %d", text, h.proto)
}

// flags returns the TCP flags as tcpdump(8) writes them.
func flags(t *layers.TCP) string {
	var s strings.Builder
	for _, f := range []struct {
		set  bool
		name string
	}{{t.FIN, "F"}, {t.SYN, "S"}, {t.RST, "R"}, {t.PSH, "P"}, {t.ECE, "E"}, {t.CWR, "W"}, {t.URG, "U"}, {t.ACK, "."}} {
		if f.set {
			s.WriteString(f.name)
		}
	}
	return s.String()
}
