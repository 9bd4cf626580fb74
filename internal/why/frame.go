package why

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"vmnet/internal/network/firewall"
)

// Kind is the kind of a frame.
type Kind string

// Kinds of frames.
const (
	ARP  Kind = "arp"  // who has the target's address; neighbour solicitation with IPv6
	DHCP Kind = "dhcp" // a client's first message
	ICMP Kind = "icmp" // an echo request
	TCP  Kind = "tcp"  // the first segment of a connection, and full ones
	UDP  Kind = "udp"
)

// A Frame is what the guest sends.
type Frame struct {
	Kind Kind
	Port uint16 // of tcp and udp
	VLAN int    // of the tag with which the guest sends it; 0 for none
}

// Words are the frames as ParseFrame takes them, for completion.
var Words = []string{"arp", "dhcp", "icmp", "tcp:22", "tcp:80", "tcp:443", "udp:53"}

// ParseFrame parses "arp", "dhcp", "icmp", "tcp:PORT" or "udp:PORT".
func ParseFrame(text string) (Frame, error) {
	kind, port, hasPort := strings.Cut(text, ":")
	f := Frame{Kind: Kind(kind)}
	switch f.Kind {
	case ARP, DHCP, ICMP:
		if !hasPort {
			return f, nil
		}
	case TCP, UDP:
		if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
			f.Port = uint16(n)
			return f, nil
		}
	}
	return Frame{}, fmt.Errorf("frame %q: want arp, dhcp, icmp, tcp:PORT or udp:PORT", text)
}

// String returns the frame as ParseFrame takes it.
func (f Frame) String() string {
	if f.Port != 0 {
		return fmt.Sprintf("%s:%d", f.Kind, f.Port)
	}
	return string(f.Kind)
}

// broadcast reports whether the frame is for all hosts of the segment.
func (f Frame) broadcast() bool { return f.Kind == ARP || f.Kind == DHCP }

// TargetKind is a kind of target.
type TargetKind string

// Kinds of targets.
const (
	Outside TargetKind = "outside" // what is beyond the host
	Guest   TargetKind = "guest"
	Host    TargetKind = "host" // an address of the host itself
	Address TargetKind = "address"
)

// A Target is what the frame is for.
type Target struct {
	Kind TargetKind
	Name string     // as the user wrote it
	Addr netip.Addr // the zero value if it is not known
}

// String returns the target as the user wrote it.
func (t Target) String() string { return t.Name }

// ip is the packet of a frame as firewalls see it, on its way between two links.
func (w *walker) ip(in, out string) firewall.Packet {
	p := firewall.Packet{
		Protocol: "ip", Src: w.NIC.address(w.To.Addr), Dst: w.To.Addr, SrcMAC: w.NIC.mac().String(), In: in, Out: out,
		ToHost: w.To.Kind == Host && !w.Frame.broadcast(),
	}
	if w.To.Addr.Is6() {
		p.Protocol = "ip6"
	}
	if w.Peer != nil {
		p.DstMAC = w.Peer.mac().String()
	}
	switch w.Frame.Kind {
	case ARP:
		p.Protocol, p.DstMAC = "arp", broadcastMAC
		if w.To.Addr.Is6() {
			p.Protocol, p.Transport, p.DstMAC = "ip6", "ipv6-icmp", ""
		}
	case DHCP:
		p.Transport, p.SrcPort, p.DstPort, p.DstMAC = "udp", 68, 67, broadcastMAC
		p.Src, p.Dst = netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255})
	case ICMP:
		p.Transport = "icmp"
		if w.To.Addr.Is6() {
			p.Transport = "ipv6-icmp"
		}
	default:
		p.Transport, p.DstPort = string(w.Frame.Kind), w.Frame.Port
	}
	return p
}

const broadcastMAC = "ff:ff:ff:ff:ff:ff"

// bytes returns the frame as the guest sends it, as far as port security looks at it.
func (w *walker) bytes() []byte {
	src, dst := w.NIC.address(w.To.Addr), w.To.Addr
	mac := w.NIC.mac()
	to := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	if w.Frame.broadcast() {
		to = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	f := append(append([]byte{}, to...), mac...)
	if w.Frame.VLAN != 0 {
		f = binary.BigEndian.AppendUint16(f, 0x8100)
		f = binary.BigEndian.AppendUint16(f, uint16(w.Frame.VLAN))
	}
	switch {
	case w.Frame.Kind == DHCP:
		return ipv4(f, 17, netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255}), 68, 67)
	case w.To.Addr.Is6():
		return w.ipv6(f, src, dst)
	case w.Frame.Kind == ARP:
		return arpRequest(f, mac, src, dst)
	}
	return ipv4(f, map[Kind]byte{ICMP: 1, TCP: 6, UDP: 17}[w.Frame.Kind], src, dst, 40000, w.Frame.Port)
}

// arpRequest appends who has dst, asked by mac and src, to the addresses of a frame.
func arpRequest(f []byte, mac net.HardwareAddr, src, dst netip.Addr) []byte {
	f = append(f, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(append(f, mac...), four(src)...)
	return append(append(f, make([]byte, 6)...), four(dst)...)
}

func four(a netip.Addr) []byte {
	if !a.Is4() {
		return make([]byte, 4)
	}
	return a.AsSlice()
}

func ipv4(f []byte, proto byte, src, dst netip.Addr, from, to uint16) []byte {
	f = append(f, 0x08, 0x00, 0x45, 0, 0, 48, 0, 0, 0, 0, 64, proto, 0, 0)
	f = append(append(f, four(src)...), four(dst)...)
	f = binary.BigEndian.AppendUint16(f, from)
	f = binary.BigEndian.AppendUint16(f, to)
	return append(f, make([]byte, 24)...)
}

func (w *walker) ipv6(f []byte, src, dst netip.Addr) []byte {
	next := map[Kind]byte{ARP: 58, ICMP: 58, TCP: 6, UDP: 17}[w.Frame.Kind]
	kind := byte(128) // echo request
	payload := make([]byte, 32)
	if w.Frame.Kind == ARP {
		kind = 135 // neighbour solicitation
		payload = append(append(make([]byte, 8), dst.AsSlice()...), append([]byte{1, 1}, w.NIC.mac()...)...)
	}
	if next == 58 {
		payload[0] = kind
	} else {
		binary.BigEndian.PutUint16(payload, 40000)
		binary.BigEndian.PutUint16(payload[2:], w.Frame.Port)
	}
	if !src.Is6() {
		src = netip.IPv6Unspecified()
	}
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(payload)), next, 255)
	f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	return append(f, payload...)
}
