package vswitch

import (
	"encoding/binary"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An encapsulator sends a sender's frames to remote hosts. Consecutive frames of one flow that have
// the same length, but for a shorter last one, are one message, which the kernel or the NIC cuts
// again (UDP_SEGMENT of udp(7)): those that a super-frame was cut into are. A frame for several
// hosts is a message for each, of the same pieces.
type encapsulator struct {
	s    *sender
	q    *vxlanQueue
	n    int // messages
	used int // pieces

	msgs  [batchSize]mmsghdr
	aux   [batchSize][encapAux]byte
	runs  [batchSize]frameRun
	iovs  [3 * batchSize]unix.Iovec
	sent  [batchSize]bool   // frame i has left to a host
	whys  [batchSize]Reason // why it has not
	first int               // of the messages of the current call
	end   int
	call  func(fd uintptr) // the method sendMessages, bound once
}

// encapAux is the room for the control message UDP_SEGMENT, a number of 16 bits.
const encapAux = unix.SizeofCmsghdr + 8

// A frameRun is what a message has: frames of the sender's list.
type frameRun struct {
	first, end int
	iov        int // its first piece
	size       int // of each packet but the last
	flow       int // the socket
	total      int // bytes of the message
	dst        int // the remote host; -1 for all
}

// Limits of UDP_SEGMENT: UDP_MAX_SEGMENTS of Linux before 6.6, and the longest datagram over IPv4.
const (
	maxDatagrams = 64
	maxDatagram  = 65507
)

func newEncapsulator(s *sender) *encapsulator {
	e := &encapsulator{s: s}
	e.call = e.sendMessages
	return e
}

func (q *vxlanQueue) send(s *sender) {
	if s.encap == nil {
		s.encap = newEncapsulator(s)
	}
	s.encap.send(q)
}

func (e *encapsulator) send(q *vxlanQueue) {
	e.q = q
	s := e.s
	for i := range s.n {
		e.sent[i], e.whys[i] = false, Delivered
	}
	for i := 0; i < s.n; {
		run := e.runAt(i)
		i = run.end
		e.post(run)
	}
	e.flush()
	for i := range s.n {
		if e.sent[i] {
			s.note(i, 0)
		} else {
			s.drop(i, i+1, e.whys[i])
		}
	}
	e.q = nil
}

// runAt returns the run that begins with frame i.
func (e *encapsulator) runAt(i int) frameRun {
	r := frameRun{first: i, end: i + 1, size: e.size(i)}
	r.dst, r.flow = e.route(i)
	r.total = r.size
	if e.q.single.Load() || r.size+e.q.over-vxlanLen > int(e.q.outer.Load()) {
		return r // it may have to be fragmented
	}
	for r.end < e.s.n && r.end-r.first < maxDatagrams {
		n := e.size(r.end)
		if n > r.size || r.total+n > maxDatagram {
			break
		}
		if dst, flow := e.route(r.end); dst != r.dst || flow != r.flow {
			break
		}
		r.total += n
		r.end++
		if n < r.size {
			break
		}
	}
	return r
}

func (e *encapsulator) size(i int) int {
	f := &e.s.list[i]
	return vxlanLen + len(f.Head) + len(f.Payload)
}

// headRead is as much of a frame as has what route reads: two addresses, a tag, an IPv6 header and
// two ports.
const headRead = 80

// route returns the remote host for a frame, or -1 for all, and the socket for its flow.
func (e *encapsulator) route(i int) (dst, flow int) {
	f := &e.s.list[i]
	var room [headRead]byte
	head := f.Head
	if len(head) < headRead {
		n := copy(room[:], head)
		n += copy(room[n:], f.Payload)
		head = room[:n]
	}
	dst = -1
	if len(head) < etherLen {
		return dst, 0
	}
	if to := macWord(head); to&groupBit == 0 {
		dst = e.q.table.Lookup(keyOf(to, tagOfEther(head)))
	}
	if len(e.q.remotes) == 1 {
		dst = 0
	}
	return dst, int(flowHash(head) >> 32 % uint64(len(e.q.senders)))
}

// flowHash hashes the addresses and ports of the packet in a frame.
func flowHash(b []byte) uint64 {
	const odd = 0x9e37_79b9_7f4a_7c15
	mix := func(h, v uint64) uint64 { return (h ^ v) * odd }
	kind, at := binary.BigEndian.Uint16(b[macsLen:]), etherLen
	if kind == etherTypeVLAN && len(b) >= etherLen+tagLen {
		kind, at = binary.BigEndian.Uint16(b[etherLen+tagLen-2:]), etherLen+tagLen
	}
	ip := b[at:]
	h := mix(macWord(b), macWord(b[6:])<<16)
	ports := 0
	switch {
	case kind == etherTypeIPv4 && len(ip) >= 20:
		h = mix(h, binary.BigEndian.Uint64(ip[12:]))
		if binary.BigEndian.Uint16(ip[6:])&0x3fff == 0 && (ip[9] == unix.IPPROTO_TCP || ip[9] == unix.IPPROTO_UDP) {
			ports = int(ip[0]&15) * 4
		}
	case kind == etherTypeIPv6 && len(ip) >= 40:
		for i := 8; i < 40; i += 8 {
			h = mix(h, binary.BigEndian.Uint64(ip[i:]))
		}
		if ip[6] == unix.IPPROTO_TCP || ip[6] == unix.IPPROTO_UDP {
			ports = 40
		}
	}
	if ports != 0 && len(ip) >= ports+4 {
		h = mix(h, uint64(binary.BigEndian.Uint32(ip[ports:])))
	}
	return h ^ h>>29
}

// post adds the messages for a run.
func (e *encapsulator) post(r frameRun) {
	first, end := r.dst, r.dst+1
	if r.dst < 0 {
		first, end = 0, len(e.q.remotes)
	}
	r.iov = e.used
	for i := r.first; i < r.end; i++ {
		f := &e.s.list[i]
		v := vectorOf(f)
		p := e.iovs[e.used : e.used+3]
		p[0].Base = &e.q.header[0]
		p[0].SetLen(vxlanLen)
		p[1], p[2] = v[0], v[1]
		e.used += 3
	}
	for remote := first; remote < end; remote++ {
		if e.n == len(e.msgs) {
			e.sendAll()
		}
		e.runs[e.n] = r
		e.message(&e.msgs[e.n], &e.aux[e.n], r, &e.q.remotes[remote])
		e.n++
	}
}

// message writes the message with a run for a remote host.
func (e *encapsulator) message(m *mmsghdr, aux *[encapAux]byte, r frameRun, to *vxlanRemote) {
	m.hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&to.name)), Namelen: to.nameLen, Iov: &e.iovs[r.iov]}
	m.hdr.SetIovlen(3 * (r.end - r.first))
	if r.end-r.first == 1 {
		return
	}
	c := (*unix.Cmsghdr)(unsafe.Pointer(aux))
	c.Level, c.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	c.SetLen(unix.SizeofCmsghdr + 2)
	binary.NativeEndian.PutUint16(aux[unix.SizeofCmsghdr:], uint16(r.size))
	m.hdr.Control = &aux[0]
	m.hdr.SetControllen(unix.SizeofCmsghdr + 8)
}

// flush sends all messages, and forgets the pieces.
func (e *encapsulator) flush() {
	e.sendAll()
	e.used = 0
}

// sendAll sends the messages, those of each socket that follow each other in one call.
func (e *encapsulator) sendAll() {
	for e.first = 0; e.first < e.n; {
		e.end = e.first + 1
		for e.end < e.n && e.runs[e.end].flow == e.runs[e.first].flow {
			e.end++
		}
		if e.q.senders[e.runs[e.first].flow].conn.Control(e.call) != nil { // the port was removed
			for ; e.first < e.end; e.first++ {
				e.fail(e.first, Gone)
			}
		}
	}
	e.n = 0
	runtime.KeepAlive(e)
}

// sendMessages sends the messages of the current call, all of which it deals with.
func (e *encapsulator) sendMessages(fd uintptr) {
	for e.first < e.end {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&e.msgs[e.first])),
			uintptr(e.end-e.first), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == 0:
			for end := e.first + int(n); e.first < end; e.first++ {
				for i := e.runs[e.first].first; i < e.runs[e.first].end; i++ {
					e.sent[i] = true
				}
			}
			continue
		case errno == unix.EAGAIN: // the others would fail with it too
			for ; e.first < e.end; e.first++ {
				e.fail(e.first, Full)
			}
			return
		case e.runs[e.first].end-e.runs[e.first].first > 1 && unsegmented(errno):
			if errno == unix.EIO {
				e.q.single.Store(true)
			}
			e.sendEach(fd)
		default:
			e.fail(e.first, overlayReason(errno))
		}
		e.first++
	}
}

// unsegmented reports whether an error may be that of UDP_SEGMENT rather than of the frames: EIO if
// the device does not fill in checksums, the others if a segment does not fit into a packet
// (udp_send_skb in net/ipv4/udp.c).
func unsegmented(errno syscall.Errno) bool {
	return errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE
}

// sendEach sends the frames of the first message one by one.
func (e *encapsulator) sendEach(fd uintptr) {
	r, m := e.runs[e.first], &e.msgs[e.first].hdr
	m.Control = nil
	m.SetControllen(0)
	m.SetIovlen(3)
	for i := r.first; i < r.end; i++ {
		m.Iov = &e.iovs[r.iov+3*(i-r.first)]
		errno := syscall.Errno(unix.EINTR)
		for errno == unix.EINTR {
			_, _, errno = unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(m)),
				unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
		if errno == 0 {
			e.sent[i] = true
		} else {
			e.whys[i] = overlayReason(errno)
		}
	}
}

// fail notes why the frames of a message were not sent.
func (e *encapsulator) fail(message int, why Reason) {
	for i := e.runs[message].first; i < e.runs[message].end; i++ {
		e.whys[i] = why
	}
}

// overlayReason returns the reason for an error of sending a datagram (ip_make_skb and
// ip_route_output_flow of net/ipv4).
func overlayReason(errno syscall.Errno) Reason {
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return Full
	case unix.EMSGSIZE:
		return TooBig
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.EINVAL, unix.ECONNREFUSED:
		return Unreachable
	case unix.EBADF:
		return Gone
	}
	return Rejected
}
