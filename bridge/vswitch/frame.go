package vswitch

import (
	"encoding/binary"

	"vmnet/bridge/vswitch/offload"
)

// Lengths in bytes. A frame's data is its vnet header and the Ethernet frame: two addresses, an
// optional 802.1Q tag, the type and the payload.
const (
	vnetLen  = offload.HeaderLen
	macsLen  = 12
	tagLen   = 4
	etherLen = macsLen + 2

	maxFrame = offload.MaxFrame

	// maxBig is the longest frame that a packet socket receives: one of BIG TCP (GSO_MAX_SIZE
	// in include/linux/netdevice.h), with room for its headers.
	maxBig = 8*65535 + offload.MaxHead
)

// etherTypeVLAN is the type of an IEEE 802.1Q tag. To this switch, 802.1ad tags are payload, as
// they are to a kernel bridge whose vlan_protocol is 802.1Q.
const etherTypeVLAN = 0x8100

// A frame is a received frame, with what input has found out about it.
type frame struct {
	data []byte // vnet header and Ethernet frame, valid until the batch is done

	// rest is what follows data, more bytes, where data is only the first vhostuser.HeadLen bytes
	// of a guest's frame. It stays in the guest's memory: nothing in it is read here but by
	// receiver.whole, so what was checked is what is sent.
	rest [][]byte
	more int

	vnet     offload.Header
	dst, src uint64
	vid      uint16 // its VLAN, from the tag or the port
	tagged   bool   // it has an 802.1Q tag, possibly of VLAN 0
	tci      uint16 // the tag's VLAN id, with the priority in the bits above; 0 without a tag
	lost     Reason // why it was dropped; data is nil if the queue has dropped it
}

// ether returns the Ethernet frame, or its start if there is more.
func (f *frame) ether() []byte { return f.data[vnetLen:] }

// size returns the length of the Ethernet frame.
func (f *frame) size() int { return max(0, len(f.data)-vnetLen) + f.more }

// headerLen returns the length of the vnet header, or 0 if data is too short for one.
func (f *frame) headerLen() int {
	if len(f.data) < vnetLen {
		return 0
	}
	return vnetLen
}

// segments returns the number of frames into which a super-frame is cut, or 1.
func (f *frame) segments() int {
	size := int(f.vnet.GSOSize)
	if f.vnet.GSOType == offload.GSONone || size == 0 {
		return 1
	}
	return max(1, (f.size()+size-1)/size)
}

// parse parses the addresses and the tag, or returns why the frame is invalid. It does not change
// the data.
func (f *frame) parse() Reason {
	if len(f.data) < vnetLen+etherLen {
		return Short
	}
	if f.size() > maxBig {
		return Giant
	}
	f.vnet, _ = offload.Parse(f.data)
	if why := offload.CheckStart(f.vnet, f.ether(), f.more); why != offload.OK {
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

// tagVID returns the VLAN id in the frame's own tag.
func (f *frame) tagVID() uint16 { return f.tci & maxVID }

// macWord returns an address in the lower 48 bits.
func macWord(b []byte) uint64 {
	return uint64(binary.BigEndian.Uint32(b))<<16 | uint64(binary.BigEndian.Uint16(b[4:]))
}

const (
	broadcast = 1<<48 - 1
	groupBit  = 1 << 40 // set in multicast addresses and in the broadcast address

	// The addresses 01:80:c2:00:00:00 to 0f are link-local: bridges do not forward them (IEEE
	// 802.1Q, table 8-1). The first is that of BPDUs, which a bridge without spanning tree does
	// forward (br_handle_frame in net/bridge/br_input.c).
	linkLocal     = 0x0180_c200_0000
	linkLocalMask = broadcast &^ 0xf
	pauseFrame    = linkLocal | 1
)

func isLinkLocal(dst uint64) bool { return dst&linkLocalMask == linkLocal && dst != linkLocal }

// maxVID covers the VLAN id in a tag.
const maxVID = 1<<vidBits - 1

// headMax is the length of the longest head that retag writes: vnet header, addresses and a tag.
const headMax = offload.MaxVnetHdr + macsLen + tagLen

// retag returns the frame with that tag, or without a tag. It writes the first piece into head,
// which must have room for headMax bytes. The others are parts of the frame itself, which does not
// change. The first begins with room for a vnet header of MaxVnetHdr. shift is the number of
// bytes by which the offsets in the frame's own vnet header change.
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
	return offload.Frame{Head: head[:n], Payload: e[rest:], Rest: f.rest}, shift
}
