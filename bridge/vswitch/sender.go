package vswitch

import (
	"errors"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/vhostuser"
)

// A sender sends the frames of one goroutine. It has a list of frames for one queue, and the
// results of sending them. It does not allocate.
type sender struct {
	list [batchSize]offload.Frame
	n    int

	// The results of the last list.
	frames, bytes uint64 // delivered; bytes do not include vnet headers
	drops         [Reasons]uint32
	reasons       [batchSize]Reason // result of each frame
	failed        bool              // some frame was dropped
	gone          syscall.Errno     // the error if the other end is gone
	vnet          int               // length of the list's vnet headers

	msgs  [batchSize]mmsghdr
	iovs  [batchSize][2]unix.Iovec
	more  []unix.Iovec     // those of frames with a Rest; made for the first one
	room  []byte           // a copy of such a frame
	write func(fd uintptr) // the methods below, bound once
	burst func(fd uintptr)

	second secondary // of the list's queue, for frames that sendmmsg(2) cannot send; may be nil

	ring   *ring // for taps; made for the first list that is long enough
	noRing bool  // do not make a ring

	guests  vhostuser.Sender // for vhost-user wires
	results [batchSize]vhostuser.Result

	encap *encapsulator // for VXLAN wires; made for the first list
	strip *stripper     // for tun wires; made for the first list

	records *recordWriter // made for the first frame that is captured
}

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

func newSender() *sender {
	s := &sender{}
	s.write, s.burst = s.writeEach, s.sendmmsg
	return s
}

func (s *sender) add(f offload.Frame) {
	s.list[s.n] = f
	s.n++
}

// addWhole is add without a copy of the frame: its pieces are written one by one.
func (s *sender) addWhole(head []byte, rest [][]byte) {
	f := &s.list[s.n]
	f.Head, f.Payload, f.Rest = head, nil, rest
	s.n++
}

// begin resets the results for a new list, whose vnet headers have that length.
func (s *sender) begin(vnet int) {
	s.frames, s.bytes, s.vnet, s.more = 0, 0, vnet, s.more[:0]
	if s.failed {
		clear(s.drops[:])
		clear(s.reasons[:])
		s.failed, s.gone = false, 0
	}
}

// use runs do with the fd, which cannot be closed until do returns.
func (s *sender) use(conn syscall.RawConn, do func(fd uintptr)) {
	if conn.Control(do) != nil { // the port was removed
		s.drop(0, s.n, Gone)
	}
}

// drop counts the list's frames from first up to but not including end as dropped.
func (s *sender) drop(first, end int, why Reason) {
	s.drops[why] += uint32(end - first)
	for i := first; i < end; i++ {
		s.reasons[i] = why
	}
	s.failed = true
}

// note records the result of the list's frame i.
func (s *sender) note(i int, errno syscall.Errno) {
	f := &s.list[i]
	if errno != 0 {
		why := reasonOf(errno)
		switch {
		case why == Gone:
			s.gone = errno
		case errno == unix.EFAULT && f.Rest != nil:
			s.guests.From.Faulted(errno)
			why = Unreadable
		}
		s.drop(i, i+1, why)
		return
	}
	s.sent(i)
}

// sent records that the list's frame i was sent.
func (s *sender) sent(i int) {
	s.frames++
	s.bytes += uint64(s.list[i].Len() - s.vnet)
}

// ringFrom is the number of frames from which a ring pays.
const ringFrom = 4

// writeEach writes the frames to a queue of a tap, with one system call for each, or with one for
// all by a ring.
func (s *sender) writeEach(fd uintptr) {
	if s.n >= ringFrom && s.hasRing() {
		err := s.ring.write(fd, s)
		if err == nil {
			return
		}
		s.close()
		if !errors.Is(err, unix.EOPNOTSUPP) {
			return
		}
	}
	for i := range s.n {
		f := &s.list[i]
		for {
			var errno syscall.Errno
			if v := s.vector(i); len(v) == 1 {
				errno = write(fd, f.Head)
			} else {
				errno = writev(fd, v)
			}
			if errno != unix.EINTR {
				s.note(i, errno)
				break
			}
		}
	}
	runtime.KeepAlive(s)
}

// hasRing makes the ring if needed, and reports whether there is one.
func (s *sender) hasRing() bool {
	if s.ring == nil && !s.noRing {
		ring, err := newRing()
		s.ring, s.noRing = ring, err != nil
	}
	return s.ring != nil
}

// close closes the ring. The sender does not make another one.
func (s *sender) close() {
	if s.ring != nil {
		s.ring.close()
	}
	s.ring, s.noRing = nil, true
}

// vector returns the pieces of the list's frame i that are not empty. The first one is the Head.
func (s *sender) vector(i int) []unix.Iovec {
	f := &s.list[i]
	s.iovs[i] = vectorOf(f)
	v := s.iovs[i][:1+min(len(f.Payload), 1)]
	if f.Rest == nil {
		return v
	}
	if s.more == nil {
		s.more = make([]unix.Iovec, 0, len(s.iovs)*len(s.iovs[0])+vhostuser.MaxPieces) // those of a batch
	}
	first := len(s.more)
	s.more = append(s.more, v...)
	for _, piece := range f.Rest {
		v := unix.Iovec{Base: unsafe.SliceData(piece)}
		v.SetLen(len(piece))
		s.more = append(s.more, v)
	}
	return s.more[first:]
}

// whole returns the list's frame i, with a copy of its Rest in its Payload. It reports false if the
// memory of the guest that has sent it is gone. The copy is valid until the next one.
func (s *sender) whole(i int) (offload.Frame, bool) {
	f := s.list[i]
	if f.Rest == nil {
		return f, true
	}
	s.room = append(s.room[:0], f.Payload...)
	n := f.Len() - len(f.Head)
	s.room = slices.Grow(s.room, n)[:n]
	ok := s.guests.From.Copy(s.room[len(f.Payload):], f.Rest...)
	f.Payload, f.Rest = s.room, nil
	return f, ok
}

func vectorOf(f *offload.Frame) (v [2]unix.Iovec) {
	v[0].Base, v[1].Base = unsafe.SliceData(f.Head), unsafe.SliceData(f.Payload)
	v[0].SetLen(len(f.Head))
	v[1].SetLen(len(f.Payload))
	return v
}

// socketVector is vector for a socket, whose vnet header has the length vnetLen. It shortens a
// longer header at its start. Such a header is in the sender's own memory. A message of one part
// costs the kernel less.
func (s *sender) socketVector(i int) {
	v := s.vector(i)
	s.msgs[i].hdr.Iov = &v[0]
	s.msgs[i].hdr.SetIovlen(len(v))
	if s.vnet > vnetLen {
		head := s.list[i].Head
		copy(head[s.vnet-vnetLen:], head[:vnetLen])
		v[0].Base = &head[s.vnet-vnetLen]
		v[0].SetLen(len(head) - (s.vnet - vnetLen))
	}
}

// sendSecond sends the list's frame i by the secondary.
func (s *sender) sendSecond(i int) {
	f, ok := s.whole(i)
	if !ok {
		s.drop(i, i+1, Unreadable)
		return
	}
	s.note(i, s.second.send(&f))
}

// onlySecond reports whether only the secondary can send frame i.
func (s *sender) onlySecond(i int) bool {
	return s.vnet > vnetLen && offload.DescribesTunnel(s.list[i].Head)
}

// sendmmsg sends the list to a socket. The system call stops before the first frame that the kernel
// refuses. The next call begins with that frame and returns its error.
func (s *sender) sendmmsg(fd uintptr) {
	for i := range s.n {
		if !s.onlySecond(i) {
			s.socketVector(i)
		}
	}
	for i := 0; i < s.n; {
		if s.onlySecond(i) {
			s.sendSecond(i)
			i++
			continue
		}
		end := i + 1
		for end < s.n && !s.onlySecond(end) {
			end++
		}
		i = s.sendRun(fd, i, end)
	}
	runtime.KeepAlive(s)
}

// sendRun sends the frames from i up to but not including end in one call, and returns the index at
// which to go on.
func (s *sender) sendRun(fd uintptr, i, end int) (next int) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.msgs[i])), uintptr(end-i),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	switch {
	case errno == unix.EINTR:
		return i
	case errno == unix.EAGAIN: // the others would fail with it too
		s.drop(i, s.n, Full)
		return s.n
	case errno == unix.EMSGSIZE && s.second != nil:
		s.sendSecond(i)
		return i + 1
	case errno != 0:
		s.note(i, errno)
		return i + 1
	}
	for end := i + int(n); i < end; i++ {
		s.note(i, 0)
	}
	return i
}
