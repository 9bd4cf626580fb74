package offload

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// A packet is what a tunnel carries, without the outer Ethernet header. It begins with a header of
// the EtherType kind.
type packet struct {
	kind uint16
	b    []byte
}

// A wrap puts the headers of a tunnel or shim in front of a packet. Lengths and checksums are those
// that the kernel gives them in a super-frame.
type wrap func(r *rand.Rand, p packet) packet

// over4 and over6 put the outer IP header in front of a payload of that protocol.
func over4(r *rand.Rand, proto byte, b []byte) packet {
	ip := random(r, ipv4Len)
	ip[0], ip[6], ip[7], ip[8], ip[9] = 0x45, 0x40, 0, 64, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Len+len(b)))
	copy(ip[12:], []byte{10, 9, 8, 1, 10, 9, 8, 2})
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^plainSum(ip, 0))
	return packet{typeIPv4, append(ip, b...)}
}

func over6(r *rand.Rand, proto byte, b []byte) packet {
	ip := random(r, ipv6Len)
	ip[0], ip[6] = 0x60, proto
	ip[8], ip[24] = 0xfd, 0xfd
	binary.BigEndian.PutUint16(ip[4:], uint16(len(b)))
	return packet{typeIPv6, append(ip, b...)}
}

// encapLimit is over6 with the destination option of ip6tnl (RFC 2473, 4.1.1).
func encapLimit(r *rand.Rand, proto byte, b []byte) packet {
	return over6(r, protoDstOpts, slices.Concat([]byte{proto, 0, 4, 1, 4, 1, 1, 0}, b))
}

type over func(r *rand.Rand, proto byte, b []byte) packet

// udp is the UDP header of a tunnel, with the sum of the pseudo header if it has a checksum.
func udp(ip over, port uint16, csum bool, shim func(r *rand.Rand, p packet) []byte) wrap {
	return func(r *rand.Rand, p packet) packet {
		b := slices.Concat(random(r, udpLen), shim(r, p))
		binary.BigEndian.PutUint16(b[2:], port)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
		clear(b[6:8])
		out := ip(r, protoUDP, b)
		if csum {
			at := len(out.b) - len(b)
			addresses := out.b[12:20]
			if out.kind == typeIPv6 {
				addresses = out.b[8:40]
			}
			binary.BigEndian.PutUint16(out.b[at+6:], plainSum(addresses, uint32(protoUDP+len(b))))
		}
		return out
	}
}

func ethernet(r *rand.Rand, p packet, tags ...uint16) []byte {
	b := random(r, macs)
	b[0] &^= 1
	for _, tag := range tags {
		b = append(binary.BigEndian.AppendUint16(b, tag), 0, 5)
	}
	return append(binary.BigEndian.AppendUint16(b, p.kind), p.b...)
}

const macs = 12

func vxlan(r *rand.Rand, p packet) []byte {
	return slices.Concat([]byte{8, 0, 0, 0, 0, 0, 42, 0}, ethernet(r, p))
}

func vxlanTagged(r *rand.Rand, p packet) []byte {
	return slices.Concat([]byte{8, 0, 0, 0, 0, 0, 42, 0}, ethernet(r, p, typeQinQ, typeVLAN))
}

func geneve(r *rand.Rand, p packet) []byte {
	options := random(r, 4*r.IntN(30))
	return slices.Concat([]byte{byte(len(options) / 4), 0, 0x65, 0x58, 0, 0, 42, 0}, options, ethernet(r, p))
}

func fou(_ *rand.Rand, p packet) []byte { return p.b }

func gue(r *rand.Rand, p packet) []byte {
	return slices.Concat([]byte{1, protoIPIP, 0, 0}, random(r, 4), p.b)
}

func mplsLabels(_ *rand.Rand, p packet) []byte {
	return slices.Concat([]byte{0, 0, 0x10, 64, 0, 0, 0x21, 64}, p.b)
}

func mpls(r *rand.Rand, p packet) packet { return packet{0x8847, mplsLabels(r, p)} }

func nsh(r *rand.Rand, p packet) packet {
	return packet{0x894f, slices.Concat([]byte{0x0f, 0xc6, 1, 1, 0, 0, 1, 255}, random(r, 16), p.b)}
}

func pppoe(_ *rand.Rand, p packet) packet {
	b := []byte{0x11, 0, 0, 7, 0, 0, 0, 0x21}
	if p.kind == typeIPv6 {
		b[7] = 0x57
	}
	binary.BigEndian.PutUint16(b[4:], uint16(2+len(p.b)))
	return packet{typePPPoE, append(b, p.b...)}
}

// gre has the flags, followed by the fields that they announce (RFC 2784, RFC 2890).
func gre(ip over, flags byte, teb bool) wrap {
	return func(r *rand.Rand, p packet) packet {
		b := []byte{flags, 0, byte(p.kind >> 8), byte(p.kind)}
		if teb {
			b[2], b[3] = 0x65, 0x58
			p.b = ethernet(r, p)
		}
		if flags&0x80 != 0 {
			b = append(b, 0, 0, 0, 0)
		}
		if flags&0x20 != 0 {
			b = append(b, random(r, 4)...)
		}
		return ip(r, protoGRE, append(b, p.b...))
	}
}

func ipip(ip over) wrap {
	return func(r *rand.Rand, p packet) packet {
		proto := byte(protoIPIP)
		if p.kind == typeIPv6 {
			proto = protoIPv6
		}
		return ip(r, proto, p.b)
	}
}

func mplsInIP(ip over) wrap {
	return func(r *rand.Rand, p packet) packet { return ip(r, protoMPLS, mplsLabels(r, p)) }
}

var wraps = map[string]wrap{
	"VXLAN":                    udp(over4, 4789, false, vxlan),
	"VXLAN, checksum":          udp(over4, 4789, true, vxlan),
	"VXLAN, IPv6":              udp(over6, 8472, false, vxlan),
	"VXLAN, IPv6, checksum":    udp(over6, 8472, true, vxlan),
	"VXLAN, tags inside":       udp(over4, 4789, true, vxlanTagged),
	"Geneve":                   udp(over4, 6081, false, geneve),
	"Geneve, IPv6, checksum":   udp(over6, 6081, true, geneve),
	"FOU":                      udp(over4, 5555, false, fou),
	"FOU, checksum":            udp(over4, 5555, true, fou),
	"GUE":                      udp(over4, 5556, false, gue),
	"GUE, IPv6, checksum":      udp(over6, 5556, true, gue),
	"MPLS over UDP":            udp(over4, 6635, true, mplsLabels),
	"GRE":                      gre(over4, 0, false),
	"GRE, checksum":            gre(over4, 0x80, false),
	"GRE, key":                 gre(over4, 0x20, false),
	"GRE, IPv6, key, checksum": gre(over6, 0xa0, false),
	"GRE tap":                  gre(over4, 0, true),
	"GRE tap, checksum":        gre(over4, 0x80, true),
	"GRE tap, encap limit":     gre(encapLimit, 0, true),
	"IPIP":                     ipip(over4),
	"IP6 tunnel":               ipip(over6),
	"IP6 tunnel, encap limit":  ipip(encapLimit),
	"MPLS":                     mpls,
	"MPLS in IP":               mplsInIP(over4),
	"NSH":                      nsh,
	"PPPoE":                    pppoe,
}

// onlyIP are the wraps that identify their payload by the version of IP.
var onlyIP = map[string]bool{"PPPoE": true, "IPIP": true, "IP6 tunnel": true, "IP6 tunnel, encap limit": true}

// in puts the wraps in front of a frame, the innermost first, after the frame's own tags.
func in(r *rand.Rand, h Header, frame []byte, around ...wrap) (Header, []byte) {
	kind, at := etherType(frame)
	p := packet{kind, frame[at:]}
	for _, w := range around {
		p = w(r, p)
	}
	out := slices.Concat(frame[:at-2], []byte{byte(p.kind >> 8), byte(p.kind)}, p.b)
	if h.Flags&NeedsCsum != 0 {
		h.CsumStart += uint16(len(out) - len(frame))
	}
	return h, out
}

// wrapped puts random headers around a frame.
func wrapped(r *rand.Rand, h Header, frame []byte) (Header, []byte) {
	names := []string{}
	for name := range wraps {
		names = append(names, name)
	}
	slices.Sort(names)
	return in(r, h, frame, wraps[names[r.IntN(len(names))]])
}

func TestTunnels(t *testing.T) {
	var f Finisher
	cut := func(t *testing.T, h Header, frame []byte, gso int) {
		t.Helper()
		if why := Check(h, frame); why != OK {
			t.Fatalf("%v: %x", why, frame[:150])
		}
		everything := Limits{CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, VnetHdr: HeaderLen}
		if Fits(h, frame, everything) {
			t.Error("it fits a target that would take it for the protocol of the outer headers")
		}
		for _, l := range []Limits{{}, {VnetHdr: HeaderLen, CSum: true}, everything} {
			out, heads, why := finish(&f, h, frame, l)
			if why != OK || len(out) < 2 {
				t.Fatalf("%v, %d segments", why, len(out))
			}
			partial := l.CSum && heads[0].Flags&NeedsCsum != 0
			if err := rightTunnel(h, frame, out, partial); err != nil {
				t.Fatalf("%+v: %v", l, err)
			}
			inner := func(b []byte) []byte { // as a frame of its own, for a plain parser
				p, _ := parse(h, b)
				kind := uint16(typeIPv4)
				if p.ip().kind == layerIPv6 {
					kind = typeIPv6
				}
				return slices.Concat(make([]byte, macs), binary.BigEndian.AppendUint16(nil, kind), b[p.ip().at:])
			}
			var inners [][]byte
			for _, o := range out {
				inners = append(inners, inner(o))
			}
			if err := verify(inner(frame), gso, inners, partial); err != nil {
				t.Fatalf("%+v: %v", l, err)
			}
		}
	}
	for name, w := range wraps {
		t.Run(name, func(t *testing.T) {
			r := rng(7)
			for range 30 {
				s := randomShape(r)
				s.payload, s.gso = 3000+r.IntN(50000), 500+r.IntN(1000)
				s.full = false
				h, frame := s.build()
				h, frame = in(r, h, frame, w)
				cut(t, h, frame, s.gso)
			}
		})
		for other, v := range wraps {
			t.Run(fmt.Sprintf("%s in %s", name, other), func(t *testing.T) {
				r := rng(8)
				s := shape{payload: 3000, gso: 700, seed: 9}
				h, frame := s.build()
				p := w(r, packet{typeIPv4, frame[14:]})
				if name == "PPPoE" || p.kind != typeIPv4 && p.kind != typeIPv6 && onlyIP[other] {
					return // no sender does that
				}
				h, frame = in(r, h, frame, w, v)
				cut(t, h, frame, s.gso)
			})
		}
	}
}
