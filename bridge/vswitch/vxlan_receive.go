package vswitch

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
)

// A datagram is what one message has: a VXLAN packet, or several that the kernel has joined
// (UDP_GRO of udp(7)).
type datagram struct {
	slot   []byte // the data follows vxlanFront bytes
	end    int    // of the data
	at     int    // of the next packet
	size   int    // of each packet but the last
	inside int    // of the segments inside of the only packet, if that is known
	remote int    // the host that has sent it; -1 for a stranger
}

func (q *vxlanQueue) receive(frames []frame) (int, error) {
	q.frames = frames
	if n := q.take(); n > 0 {
		return n, nil
	}
	return q.read(q.fill)
}

// fillFrames returns 0 if there is nothing to receive.
func (q *vxlanQueue) fillFrames(fd uintptr) (int, error) {
	for i := range q.msgs { // the kernel has set the lengths to what it wrote
		hdr := &q.msgs[i].hdr
		hdr.Namelen = unix.SizeofSockaddrInet6
		hdr.Control = &q.aux[i][0]
		hdr.SetControllen(vxlanAux)
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&q.msgs[0])), vxlanMessages,
			unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		case 0:
			q.got, q.at = int(n), 0
			q.open()
			return q.take(), nil
		default:
			return q.failed(errno)
		}
	}
}

// failed returns a lost frame for an error of the socket, or the error if it ends the port.
func (q *vxlanQueue) failed(errno syscall.Errno) (int, error) {
	if errno == unix.EBADF || errno == unix.ENOTSOCK {
		return 0, fmt.Errorf("receive: %w", errno)
	}
	q.frames[0] = frame{lost: Unreadable}
	return 1, nil
}

// open begins with the current message, if there is one.
func (q *vxlanQueue) open() {
	if q.at == q.got {
		return
	}
	m := &q.msgs[q.at]
	d := datagram{slot: q.slots[q.at*vxlanSlot : (q.at+1)*vxlanSlot], at: vxlanFront, end: vxlanFront + int(m.len)}
	d.remote = q.remoteAt(&q.names[q.at], m.hdr.Namelen)
	d.size = segmentSize(&m.hdr, &q.aux[q.at])
	// What another kernel's VXLAN device has sent as a super-frame of UDP may arrive in one piece,
	// with the size of the segments inside.
	whole := offload.Whole(d.slot[min(d.at+vxlanLen, d.end):d.end])
	if d.size == 0 || d.size > int(m.len) || whole {
		d.inside, d.size = d.size, int(m.len)
	}
	q.now = d
}

// remoteAt returns which remote host has an address, or -1.
func (q *vxlanQueue) remoteAt(name *unix.RawSockaddrInet6, length uint32) int {
	var a netip.Addr
	switch {
	case name.Family == unix.AF_INET6 && length >= unix.SizeofSockaddrInet6:
		a = netip.AddrFrom16(name.Addr)
	case name.Family == unix.AF_INET && length >= unix.SizeofSockaddrInet4:
		a = netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr)
	}
	if q.last >= 0 && q.remotes[q.last].addr == a {
		return q.last
	}
	i, ok := q.by[a]
	if !ok {
		return -1
	}
	q.last = i
	return i
}

// segmentSize returns the number in the control message UDP_GRO, or 0.
func segmentSize(hdr *unix.Msghdr, aux *[vxlanAux]byte) int {
	c := (*unix.Cmsghdr)(unsafe.Pointer(aux))
	if int(hdr.Controllen) < unix.SizeofCmsghdr+4 || c.Level != unix.SOL_UDP || c.Type != unix.UDP_GRO {
		return 0
	}
	return max(0, int(int32(binary.NativeEndian.Uint32(aux[unix.SizeofCmsghdr:]))))
}

// take takes frames from the messages that were received, and returns their number.
func (q *vxlanQueue) take() (n int) {
	copies := q.copies
	for n < len(q.frames) && q.at < q.got {
		d := &q.now
		rest := vnetLen + d.end - d.at
		if first := d.at == vxlanFront; !first && rest > len(copies) {
			return n // the next batch has room
		}
		room := &copies
		q.frames[n] = q.packet(d, room)
		n++
		if d.at >= d.end {
			q.at++
			q.open()
		}
	}
	return n
}

// packet returns the frame of the next packet. If it is a TCP segment, those that follow it in the
// same datagram are joined to it. The first packet's frame stays where it is: its vnet header takes
// the place of the VXLAN header. Others are copied to room, of which they take a part.
func (q *vxlanQueue) packet(d *datagram, room *[]byte) frame {
	if d.remote < 0 {
		d.at = d.end
		return frame{lost: Stranger}
	}
	start := d.at
	b := d.next()
	if why := q.check(b); why != Delivered {
		return frame{lost: why}
	}
	var data []byte
	if start == vxlanFront {
		from := start + vxlanLen - vnetLen
		data = d.slot[from : start+len(b)]
	} else {
		data = (*room)[:vnetLen+copy((*room)[vnetLen:], b[vxlanLen:])]
	}
	q.join.Start(data[vnetLen:])
	for d.at < d.end {
		was := d.at
		b := d.next()
		if q.check(b) != Delivered || !q.join.Add(b[vxlanLen:]) {
			d.at = was
			break
		}
	}
	ether, h := q.join.End()
	data = data[:vnetLen+len(ether)]
	if start != vxlanFront {
		*room = (*room)[min((len(data)+63)&^63, len(*room)):]
	}
	if h.GSOType == offload.GSONone {
		h = offload.Recover(ether, q.port.limits.Load().MTU, d.inside)
	}
	h.Put(data)
	q.learn(ether, d.remote)
	return frame{data: data}
}

// next returns the next packet, which may be empty.
func (d *datagram) next() []byte {
	end := min(d.at+d.size, d.end)
	b := d.slot[d.at:end]
	d.at = end
	return b
}

// check returns Delivered if a packet has a VXLAN header of the port's segment. Reserved bits are
// ignored, as RFC 7348 demands.
func (q *vxlanQueue) check(b []byte) Reason {
	if len(b) < vxlanLen || b[0]&(vxlanFlag|vxlanGPE) != vxlanFlag || binary.BigEndian.Uint32(b[4:])>>8 != q.vni {
		return OtherSegment
	}
	return Delivered
}

// learn records behind which remote host a frame's source is. Unlike the switch's FDB, the table
// has the VLAN of the frame's own tag.
func (q *vxlanQueue) learn(ether []byte, remote int) {
	if len(ether) < etherLen {
		return
	}
	src := macWord(ether[6:])
	set := q.port.set.Load()
	if src&groupBit != 0 || src == 0 || set.cfg.NoLearning || !set.admits(src) {
		return
	}
	q.table.Learn(keyOf(src, tagOfEther(ether)), remote)
}

// tagOfEther returns the VLAN id in a frame's tag, or 0.
func tagOfEther(ether []byte) uint16 {
	if len(ether) < etherLen+tagLen || binary.BigEndian.Uint16(ether[macsLen:]) != etherTypeVLAN {
		return 0
	}
	return binary.BigEndian.Uint16(ether[macsLen+2:]) & maxVID
}
