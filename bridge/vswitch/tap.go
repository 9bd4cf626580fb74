package vswitch

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/endpoint"
)

// OpenTap makes a wire from queues of one tap (include/uapi/linux/if_tun.h). The peer is the
// kernel's stack in the tap's netns. OpenTap copies the fds; the caller keeps its own and may close
// them. It also changes settings of the original fds: they become non-blocking, with a
// little-endian vnet header and offloads. The vnet header has 10 bytes, or 24 if the kernel can
// describe super-frames of tunnels.
//
// A tap's queue does not report the device's MTU: call Follow to make the port follow it. The
// device accepts frames of any length.
func OpenTap(queues ...*os.File) (*Wire, error) {
	if len(queues) == 0 {
		return nil, errors.New("open tap: no queue")
	}
	w := &Wire{kind: "tap", pieces: true}
	for i, f := range queues {
		q, limits, err := openTapQueue(f)
		if err == nil && i > 0 && limits.VnetHdr != w.limits.VnetHdr {
			err = errors.Join(errors.New("the queues differ in IFF_VNET_HDR, so they do not belong to one tap"),
				q.close())
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open tap, queue %d: %w", i, err), w.Close())
		}
		w.limits, w.device = limits, q.device
		w.queues = append(w.queues, q)
	}
	return w, nil
}

func openTapQueue(f *os.File) (*tapQueue, offload.Limits, error) {
	var limits offload.Limits
	var device string
	own, err := duplicate(f, func(fd int) (err error) {
		device, limits, err = endpoint.SetTap(fd)
		return err
	})
	if err != nil {
		return nil, limits, err
	}
	q := &tapQueue{file: own, device: device, vnet: limits.VnetHdr, room: make([]byte, tapRoom)}
	q.drain = q.drainQueue
	return q, limits, nil
}

// tapRead is the size of one read(2) in bytes. It is one more than the longest frame, so that a
// longer one is detected by its length. tapRoom has room for a batch of ordinary frames or a few
// super-frames, and fits into the CPU's cache.
const (
	tapRead = offload.MaxVnetHdr + maxFrame + 1
	tapRoom = 256 << 10
)

// tapQueue reads frame by frame until there is no more, then waits in the runtime's poller.
type tapQueue struct {
	file
	device string
	vnet   int    // length of the tap's vnet header
	room   []byte // the frames, one after the other

	// The current receive. drain is bound once: each use of a method value would allocate.
	drain  func(fd uintptr) bool
	frames []frame
	n      int
	err    error
}

func (q *tapQueue) receive(frames []frame) (int, error) {
	q.frames, q.n, q.err = frames, 0, nil
	err := q.conn.Read(q.drain)
	switch {
	case err == nil:
		return q.n, q.err
	case errors.Is(err, os.ErrDeadlineExceeded), q.conn.Control(func(uintptr) {}) != nil: // or closed
		return 0, err
	}
	// The runtime's poller has seen EPOLLERR alone, which it calls "not pollable": the device is
	// being deleted (tun_chr_poll in drivers/net/tun.c). Reads will return EBADFD soon.
	return 0, fmt.Errorf("read: %w", unix.EBADFD)
}

// drainQueue reports whether it is done; if not, the caller waits until there is something to read.
func (q *tapQueue) drainQueue(fd uintptr) bool {
	room := q.room
	pad := max(0, vnetLen-q.vnet)
	for q.n < len(q.frames) && len(room) >= tapRead {
		n, errno := read(fd, room[pad:tapRead])
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return q.n > 0
		case errno != 0:
			if q.n == 0 { // else the next call gets it again
				q.err = fmt.Errorf("read: %w", errno)
			}
			return true
		}
		n += pad
		q.frames[q.n] = q.take(room[:n:n])
		q.n++
		room = room[min((n+63)&^63, len(room)):]
	}
	return true
}

// take makes a frame from the data of one read, into which the kernel has put the frame's tag
// (tun_put_user in drivers/net/tun.c). If the tap has no vnet header, take adds a zero
// one. It shortens a long one to its first part.
func (q *tapQueue) take(data []byte) frame {
	if q.vnet == 0 {
		clear(data[:vnetLen])
	}
	if q.vnet <= vnetLen || len(data) < q.vnet {
		return frame{data: data}
	}
	h, _ := offload.Parse(data)
	data = data[q.vnet-vnetLen:]
	h.WithoutTunnel().Put(data)
	return frame{data: data}
}

func (q *tapQueue) send(s *sender) { s.use(q.conn, s.write) }

// read, write and writev are raw system calls. Their fds do not block, so that they need not notify
// the scheduler, which would cost more than many of the calls.

func read(fd uintptr, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}

func write(fd uintptr, b []byte) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return errno
}

func writev(fd uintptr, v []unix.Iovec) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(v))), uintptr(len(v)))
	return errno
}
