package vswitch

import (
	"encoding/binary"

	"vmnet/bridge/vswitch/offload"
)

// Lengths in bytes. A frame's data is its vnet header, then the Ethernet frame: two addresses, an 802.1Q tag
// or none, the type, the payload.
const (
	vnetLen  = offload.HeaderLen
	macsLen  = 12
	tagLen   = 4
	etherLen = macsLen + 2

	// maxFrame is the longest Ethernet frame that leaves, and that comes but by a packet socket: a
	// super-frame of 64 KiB (GSO_LEGACY_MAX_SIZE in include/linux/netdevice.h) with room for its headers.
	maxFrame = 64<<10 + 256

	// maxBig is the longest that a packet socket gives: one of BIG TCP (GSO_MAX_SIZE there), with room for
	// its headers.
	maxBig = 8*65535 + offload.MaxHead
)

// etherTypeVLAN is the type of a tag of IEEE 802.1Q. Those of 802.1ad, which a provider puts in front,
// are payload to this switch, as they are to a kernel bridge whose vlan_protocol is 802.1Q.
const etherTypeVLAN = 0x8100

// A frame is one that came in, and what input found out about it.
type frame struct {
	data []byte // vnet header and Ethernet frame, valid until the batch is done

	vnet     offload.Header
	dst, src uint64
	vid      uint16 // its VLAN, from the tag or the port
	tagged   bool   // it carries an 802.1Q tag, if only of VLAN 0
	tci      uint16 // of the tag: the VLAN's id, and a priority above it; 0 without one
	lost     Reason // why it was dropped; if by the queue already, data is nil
}

// ether is the Ethernet frame.
func (f *frame) ether() []byte { return f.data[vnetLen:] }

// vnetLen is the length of the vnet header; data that has no room for one has none.
func (f *frame) vnetLen() int {
	if len(f.data) < vnetLen {
		return 0
	}
	return vnetLen
}

// segments is how many frames it is where it has to be cut.
func (f *frame) segments() int {
	size := int(f.vnet.GSOSize)
	if f.vnet.GSOType == offload.GSONone || size == 0 {
		return 1
	}
	return max(1, (len(f.data)-vnetLen+size-1)/size)
}

// parse reads addresses and tag, or tells why the frame is none. It changes nothing.
func (f *frame) parse() Reason {
	if len(f.data) < vnetLen+etherLen {
		return Short
	}
	if len(f.data) > vnetLen+maxBig {
		return Giant
	}
	f.vnet, _ = offload.Parse(f.data)
	if why := offload.Check(f.vnet, f.ether()); why != offload.OK {
		return fromOffload(why)
	}
	e := f.ether()
	f.dst, f.src = macWord(e), macWord(e[6:])
	f.tagged, f.tci = binary.BigEndian.Uint16(e[macsLen:]) == etherTypeVLAN, 0
	if f.tagged {
		if len(e) < etherLen+tagLen {
			return Short
		}
		f.tci = binary.BigEndian.Uint16(e[macsLen+2:])
	}
	return Delivered
}

// tagVID is the VLAN id in the frame's own tag.
func (f *frame) tagVID() uint16 { return f.tci & maxVID }

// macWord is an address in the lower 48 bits.
func macWord(b []byte) uint64 {
	return uint64(binary.BigEndian.Uint32(b))<<16 | uint64(binary.BigEndian.Uint16(b[4:]))
}

const (
	broadcast = 1<<48 - 1
	groupBit  = 1 << 40 // of a multicast address, and of broadcast

	// The addresses 01:80:c2:00:00:00 to 0f are for the next bridge only (IEEE 802.1Q, table 8-1).
	// The first is that of spanning trees, which a bridge that takes no part in one passes on
	// (br_handle_frame in net/bridge/br_input.c).
	linkLocal     = 0x0180_c200_0000
	linkLocalMask = broadcast &^ 0xf
	pauseFrame    = linkLocal | 1
)

func isLinkLocal(dst uint64) bool { return dst&linkLocalMask == linkLocal && dst != linkLocal }

// maxVID covers the VLAN id in a tag.
const maxVID = 1<<vidBits - 1

// headMax is the most that is put in front of a frame's rest: vnet header, addresses and a tag.
const headMax = offload.MaxVnetHdr + macsLen + tagLen

// retag is the frame with that tag, or with none, in two pieces: the first is written into head, which
// has room for headMax bytes, the second is the frame's own, which stays as it came. The first begins
// with room for a vnet header of MaxVnetHdr. What the frame's own says moves by shift.
func (f *frame) retag(head []byte, tci uint16, tagged bool) (out offload.Frame, shift int) {
	e, n, rest := f.ether(), offload.MaxVnetHdr+macsLen, macsLen
	copy(head[offload.MaxVnetHdr:], e[:macsLen])
	if f.tagged {
		rest, shift = rest+tagLen, shift-tagLen
	}
	if tagged {
		binary.BigEndian.PutUint16(head[n:], etherTypeVLAN)
		binary.BigEndian.PutUint16(head[n+2:], tci)
		n, shift = n+tagLen, shift+tagLen
	}
	return offload.Frame{Head: head[:n], Payload: e[rest:]}, shift
}
