package vswitch

import (
	"encoding/binary"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
)

// A stripper writes a sender's frames to a tun, without their Ethernet headers.
type stripper struct {
	s    *sender
	q    *tunQueue
	vnet [batchSize][vnetLen]byte
	iovs [3]unix.Iovec
	do   func(fd uintptr) // the method writePackets, bound once
}

func (q *tunQueue) send(s *sender) {
	if s.strip == nil {
		s.strip = &stripper{s: s}
		s.strip.do = s.strip.writePackets
	}
	s.strip.q = q
	s.use(q.conn, s.strip.do)
	s.strip.q = nil
}

func (t *stripper) writePackets(fd uintptr) {
	for i := range t.s.n {
		t.packet(fd, i)
	}
	runtime.KeepAlive(t.s)
}

// tunHead is as much of a frame as has what packet reads: a neighbor discovery message with some
// options.
const tunHead = vnetLen + etherLen + 200

// packet takes frame i as a station does: it answers ARP and neighbor discovery, ignores frames for
// others and other protocols, and writes IP packets to the tun.
func (t *stripper) packet(fd uintptr, i int) {
	f := &t.s.list[i]
	var room [tunHead]byte
	head := f.Head
	if len(head) < tunHead && len(f.Payload) > 0 {
		n := copy(room[:], head)
		head = room[:n+copy(room[n:], f.Payload)]
	}
	why := Delivered
	h, ok := offload.Parse(head)
	ether := head[min(vnetLen, len(head)):]
	if !ok || len(ether) < etherLen {
		t.s.note(i, 0)
		return
	}
	dst := macWord(ether)
	switch kind := binary.BigEndian.Uint16(ether[macsLen:]); {
	case dst != t.q.mac && dst&groupBit == 0: // flooded, and for another station
	case kind == etherTypeARP:
		if m, ok := parseARP(ether); ok {
			t.q.found(m)
		}
	case kind == etherTypeIPv6:
		why = t.ipv6(fd, i, h, ether)
	case kind == etherTypeIPv4:
		why = t.write(fd, i, h, ether[etherLen:], 4)
	}
	if why == Delivered {
		t.s.note(i, 0)
		return
	}
	if why == Gone {
		t.s.gone = unix.EBADFD
	}
	t.s.drop(i, i+1, why)
}

func (t *stripper) ipv6(fd uintptr, i int, h offload.Header, ether []byte) Reason {
	kind, ok := icmp6Of(ether)
	switch {
	case ok && (kind == ndSolicit || kind == ndAdvertise):
		if m, ok := parseND(ether, h.Flags&offload.NeedsCsum != 0); ok {
			t.q.found(m)
		}
		return Delivered
	case ok && (kind == ndAdvertisement || kind == ndRedirect):
		return Advertised
	}
	return t.write(fd, i, h, ether[etherLen:], 6)
}

// write writes the packet in frame i, which must be of that IP version.
func (t *stripper) write(fd uintptr, i int, h offload.Header, ip []byte, version byte) Reason {
	if len(ip) == 0 || ip[0]>>4 != version {
		return Rejected
	}
	f := &t.s.list[i]
	h.Shifted(-etherLen).Put(t.vnet[i][:])
	const skip = vnetLen + etherLen
	first := f.Head[min(skip, len(f.Head)):]
	second := f.Payload[min(max(0, skip-len(f.Head)), len(f.Payload)):]
	t.iovs[0].Base = &t.vnet[i][0]
	t.iovs[0].SetLen(vnetLen)
	for n, b := range [][]byte{first, second} {
		t.iovs[1+n].Base = unsafe.SliceData(b)
		t.iovs[1+n].SetLen(len(b))
	}
	errno := syscall.Errno(unix.EINTR)
	for errno == unix.EINTR {
		_, _, errno = unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&t.iovs)), uintptr(len(t.iovs)))
	}
	return reasonOf(errno)
}

// found handles a message: it answers what asks for an address of the station, and learns.
func (q *tunQueue) found(m finding) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.mac == q.mac {
		return
	}
	asks := m.request && q.isOwn(m.target)
	if asks {
		q.answer(m)
	}
	if m.sender.IsValid() && !m.sender.IsUnspecified() && !m.sender.IsMulticast() && !q.isOwn(m.sender) {
		// Only who asks for the station gets an entry. What others say about themselves changes
		// those that there are.
		for _, data := range q.known.heard(m.sender, m.mac, q.port.sw.now(), asks && q.near(m)) {
			putMAC(data[vnetLen:], m.mac)
			putMAC(data[vnetLen+6:], q.mac)
			q.send1(data)
		}
	}
	q.wake()
}

// near reports whether the sender of a request is in one of the station's networks.
func (q *tunQueue) near(m finding) bool {
	for _, p := range q.nets {
		if p.Contains(m.sender) {
			return true
		}
	}
	return false
}

// answer answers a request. q.mu is held.
func (q *tunQueue) answer(m finding) {
	switch {
	case m.target.Is4():
		q.send1(arpMessage(arpReply, q.mac, m.target, m.mac, m.sender))
	case m.probe:
		q.send1(ndMessage(ndAdvertise, ndOverride, q.mac, m.target, allNodes, m.target, 0))
	default:
		q.send1(ndMessage(ndAdvertise, ndSolicited|ndOverride, q.mac, m.target, m.sender, m.target, m.mac))
	}
}
