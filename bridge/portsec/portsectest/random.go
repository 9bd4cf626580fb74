package portsectest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"vmnet/bridge/portsec"
)

// Configs are the configurations for random frames.
func Configs() []portsec.Config {
	all := Config()
	four, typed := all, all
	four.IPs = four.IPs[:1]
	typed.EtherTypes = []portsec.EtherType{0x88f7, 0x88b5}
	configs := []portsec.Config{all, four, typed, Networks(), {Checks: noIPs, MAC: MAC}}
	for c := portsec.Checks(1); c != 0 && c <= portsec.All; c <<= 1 {
		configs = append(configs, Without(c))
		only := Config()
		only.Checks = c
		configs = append(configs, only)
	}
	return append(configs, Without(portsec.VLAN|portsec.MAC), Without(portsec.VLAN|portsec.RA))
}

// A Random makes frames that are nearly right: named ones and built ones with some changes. The
// same seed makes the same frames.
type Random struct {
	r     *rand.Rand
	named []Case
}

// NewRandom returns a source of frames.
func NewRandom(seed uint64) *Random {
	return &Random{rand.New(rand.NewPCG(seed, 0)), Table()}
}

// Next returns a frame, of less than 2 KiB.
func (x *Random) Next() []byte {
	var f []byte
	switch x.r.IntN(4) {
	case 0, 1:
		f = slices.Clone(x.named[x.r.IntN(len(x.named))].Frame)
	case 2:
		f = x.ipv6()
	default:
		f = x.ipv4()
	}
	for range x.r.IntN(4) {
		f = x.change(f)
	}
	if len(f) > 2000 {
		f = f[:2000]
	}
	return f
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func (x *Random) port() uint16 {
	return pick(x.r, 67, 68, 546, 547, 53, uint16(x.r.Uint32()))
}

// ipv6 returns a frame with a chain of extension headers.
func (x *Random) ipv6() []byte {
	src := pick(x.r, IP6, local6, any6, other6, otherLL)
	dst := pick(x.r, peer6, allNodes)
	next := pick[byte](x.r, 17, 58, 58, 58, 6, 59, byte(x.r.Uint32()))
	var payload []byte
	switch next {
	case 17:
		payload = udp(x.port(), x.port(), "x")
	case 58:
		payload = icmp6(src, dst, x.icmpType(), x.icmpBody())
	default:
		payload = make([]byte, x.r.IntN(24))
	}
	for range x.r.IntN(4) * x.r.IntN(4) {
		kind := pick[byte](x.r, 0, 43, 44, 51, 60)
		payload = append(x.header(kind, next), payload...)
		next = kind
	}
	return v6(src, dst, next, payload)
}

func (x *Random) icmpType() byte {
	return pick[byte](x.r, 128, 130, 131, 132, 133, 134, 135, 136, 137, 138, 143, byte(x.r.Uint32()))
}

func (x *Random) icmpBody() []byte {
	body := neighbor(pick(x.r, IP6, local6, peer6, other6, any6))
	if x.r.IntN(4) == 0 {
		body = make([]byte, pick(x.r, 4, 12, 16))
	}
	for range x.r.IntN(4) {
		mac := pick(x.r, MAC, MAC, OtherMAC)
		o := slices.Concat([]byte{
			pick[byte](x.r, 1, 2, 14, byte(x.r.Uint32())),
			pick[byte](x.r, 1, 1, 1, 0, 2, 255),
		}, mac)
		body = append(body, o...)
	}
	return body
}

// header returns an extension header, whose length may be wrong.
func (x *Random) header(kind, next byte) []byte {
	if kind == 44 {
		return fragment(next, pick(x.r, 0, 0, 8, 1400), x.r.IntN(2) == 0)
	}
	h := padding(next)
	units := x.r.IntN(3)
	if kind == 51 {
		h[1] = byte(units * 2)
	} else {
		h[1] = byte(units)
	}
	if x.r.IntN(10) == 0 {
		h[1] = byte(x.r.Uint32())
	}
	return append(h, make([]byte, units*8)...)
}

// ipv4 returns a frame of IPv4, ARP or RARP.
func (x *Random) ipv4() []byte {
	ips := []netip.Addr{IP4, IP4, any4, other4, router}
	macs := [][]byte{MAC, MAC, OtherMAC, zeroMAC}
	if x.r.IntN(3) == 0 {
		m := arpMessage{
			uint16(x.r.IntN(5)), pick(x.r, macs...), pick(x.r, macs...), pick(x.r, ips...), pick(x.r, ips...),
		}
		return eth(everybody, pick[uint16](x.r, 0x0806, 0x0806, 0x8035), m.bytes())
	}
	p := ip4{
		src: pick(x.r, ips...), dst: pick(x.r, peer4, all4, netip.MustParseAddr("224.0.0.22")),
		proto: pick[byte](x.r, 17, 17, 2, 6, byte(x.r.Uint32())), fragment: pick[uint16](x.r, 0, 0, 0x2000,
			0x4000, 1, 0x2001),
		options: make([]byte, 4*x.r.IntN(11)), payload: udp(x.port(), x.port(), "x"),
	}
	if p.proto == 2 {
		p.payload[0] = pick[byte](x.r, 0x11, 0x12, 0x16, 0x17, 0x22)
	}
	return v4(p)
}

// change makes one change.
func (x *Random) change(f []byte) []byte {
	if len(f) == 0 {
		return f
	}
	at := x.r.IntN(len(f))
	if x.r.IntN(2) == 0 {
		at = x.r.IntN(min(len(f), 64))
	}
	switch x.r.IntN(9) {
	case 0:
		f[at] ^= 1 << x.r.IntN(8)
	case 1:
		f[at] = byte(x.r.Uint32())
	case 2:
		f[at] = pick[byte](x.r, 0, 1, 17, 44, 58, 60, 67, 255)
	case 3:
		return f[:at]
	case 4:
		return append(f, make([]byte, x.r.IntN(64))...)
	case 5:
		if len(f) >= 14 {
			tag := [2]uint16{pick[uint16](x.r, 0x8100, 0x8100, 0x88a8, 0x9100, 0x9200), uint16(x.r.Uint32())}
			return tagged(f, tag)
		}
	case 6:
		if len(f) >= 14 {
			kind := pick[uint16](x.r, 0x0800, 0x86dd, 0x0806, 0x8035, 0x88f7, 0x88b5, 0x600, 0x5ff,
				uint16(x.r.Uint32()))
			binary.BigEndian.PutUint16(f[12:], kind)
		}
	case 7: // what follows, of another frame
		other := x.named[x.r.IntN(len(x.named))].Frame
		if at < len(other) {
			return append(f[:at:at], other[at:]...)
		}
	default: // an address at another place
		copy(f[at:], pick(x.r, MAC, OtherMAC, IP4.AsSlice(), IP6.AsSlice(), local6.AsSlice(), any6.AsSlice()))
	}
	return f
}
