package pcapng

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/offload"
)

// Summary is a frame in a line: addresses, VLANs, what is in it, and what is left to do to it. What the frame says is shown as numbers,
// nothing of it as text.
func Summary(c vswitch.CapturedFrame) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	// Decoding ends at what is no such frame; a panic of the library's is an error there, too.
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

// tags are the frame's VLANs, from the outside in.
func tags(p gopacket.Packet) (all []string) {
	for _, l := range p.Layers() {
		if q, ok := l.(*layers.Dot1Q); ok {
			all = append(all, fmt.Sprintf("VLAN %d", q.VLANIdentifier))
		}
	}
	return all
}

// payload is what is behind the Ethernet header and its tags.
func payload(p gopacket.Packet) string {
	switch l := p.NetworkLayer().(type) {
	case *layers.IPv4:
		if l.SrcIP == nil { // its header is cut off
			break
		}
		return transport(p, ip{"IPv4", l.SrcIP, l.DstIP, l.Protocol, int(l.Length) - 4*int(l.IHL)}, l.FragOffset != 0 || l.Flags&layers.IPv4MoreFragments != 0)
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

// etherType is a type, which is the last of a header's bytes; one that is a length says that there is an LLC header (IEEE 802.3).
func etherType(kind layers.EthernetType, header []byte) string {
	if len(header) >= 2 && kind == layers.EthernetTypeLLC {
		return fmt.Sprintf("802.3 of %d bytes", binary.BigEndian.Uint16(header[len(header)-2:]))
	}
	return fmt.Sprintf("type 0x%04x", uint16(kind))
}

// arp is a request or an answer of IPv4 (RFC 826).
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

// ip is what an IP header says. The packet may have been cut off behind it.
type ip struct {
	version  string
	src, dst []byte
	proto    layers.IPProtocol
	payload  int // bytes
}

// transport is what an IP packet carries.
func transport(p gopacket.Packet, h ip, fragment bool) string {
	from, _ := netip.AddrFromSlice(h.src)
	to, _ := netip.AddrFromSlice(h.dst)
	between := func(a, b uint16) string {
		return fmt.Sprintf("%s %s > %s", h.version, netip.AddrPortFrom(from, a), netip.AddrPortFrom(to, b))
	}
	switch l := p.TransportLayer().(type) {
	case *layers.TCP:
		return fmt.Sprintf("%s TCP [%s] seq %d ack %d, %d bytes", between(uint16(l.SrcPort), uint16(l.DstPort)), flags(l), l.Seq, l.Ack, max(0, h.payload-4*int(l.DataOffset)))
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

// flags are those of TCP as tcpdump(8) writes them.
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
