package vswitch

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/rtnl"
)

// batchSize is the number of frames that are received and sent at a time, which is also what
// offload returns at a time.
const batchSize = offload.Burst

// A Wire is the link endpoint of a port: it receives and sends the port's frames. OpenTap,
// OpenPacket, OpenSocket, OpenStream, OpenTun, OpenVhostUser and OpenVXLAN make the seven kinds. A
// Wire owns its fds. AddPort takes ownership of the Wire.
type Wire struct {
	kind   string
	device string         // name of the device; empty if it has none
	limits offload.Limits // what it takes, without the MTU
	mtu    int            // MTU of the device; 0 if it is not known
	most   int            // largest MTU whose frames it receives; 0 for any
	link   *rtnl.Follower // follows the device; may be nil
	queues []queue
	claim  func() error // gives up the claim; called by Close and unclaim; may be nil

	// pieces says that the queues send frames that are not whole (frame.rest). Frames for other
	// wires are copied first.
	pieces bool

	verified bool // see Verified

	fast   *fastPort // of a packet wire whose files have one, otherwise nil
	noFast string    // why a packet wire has none

	frontends *frontends   // of a vhost-user wire, otherwise nil
	stream    *streamQueue // of a stream wire, otherwise nil
	overlay   *vxlanQueue  // of a VXLAN wire, otherwise nil
	tun       *tunQueue    // of a tun wire, otherwise nil
}

// Kind returns "tap", "packet", "socket", "stream", "tun", "vhost-user" or "vxlan".
func (w *Wire) Kind() string { return w.kind }

// Verified says that something at the other end verifies the checksums of all frames that it sends
// and that come from elsewhere, and sends and takes IP packets of up to 64 KiB, as a kernel that
// routes between two taps does. Then:
//
//   - Targets that can leave checksums to others do not verify those of TCP again.
//   - The other end sends TCP connections whose maximum segment size is that of a guest's MTU in
//     segments that are as long as they can be, and targets get them as super-frames, or cut.
//
// Call it before AddPort.
func (w *Wire) Verified() { w.verified = true }

// Close closes the wire's fds. A caller of AddPort must not call it.
func (w *Wire) Close() error {
	var errs []error
	for _, q := range w.queues {
		errs = append(errs, q.close())
	}
	if w.link != nil {
		if err := w.link.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if w.frontends != nil {
		errs = append(errs, w.frontends.close())
	}
	errs = append(errs, w.fast.close())
	return errors.Join(append(errs, w.unclaim())...)
}

// takes returns what the wire takes now, and the MTU of its device, or 0 if that is not known.
func (w *Wire) takes() (limits offload.Limits, mtu int) {
	if w.frontends != nil {
		limits = w.frontends.device.State().Limits
		return limits, limits.MTU
	}
	if w.overlay != nil {
		return w.limits, w.overlay.mtu()
	}
	return w.limits, w.mtu
}

// unclaim gives the device back to the kernel's stack when the wire has ended or is closed. Another
// device may have its name by then, which must not stay claimed.
func (w *Wire) unclaim() error {
	if w.claim == nil {
		return nil
	}
	return w.claim()
}

// A queue receives and sends frames of a wire. One goroutine receives from it; any number may send.
type queue interface {
	// receive waits for frames and returns their number. They are a batch; their data is valid
	// until the next call. An error ends the queue. After close, receive returns an error.
	receive(frames []frame) (n int, err error)

	// send sends the list of s and records the results in s. Each frame has a vnet header of
	// the length in the wire's limits. send never waits.
	send(s *sender)

	close() error
}

// file is an fd. Each use holds a reference: close takes effect when the last use has ended, so
// that no use can hit another file with the same number.
type file struct {
	os   *os.File
	conn syscall.RawConn
}

// newFile takes ownership of fd. The runtime's poller watches it if it is non-blocking.
func newFile(fd int, name string) (file, error) {
	f := os.NewFile(uintptr(fd), name)
	conn, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return file{}, err
	}
	return file{f, conn}, nil
}

// duplicate makes a file from a copy of f's fd. The caller keeps f. An error of check leaves f
// unchanged. The file is non-blocking, and the runtime's poller watches it.
func duplicate(f *os.File, check func(fd int) error) (file, error) {
	return duplicateAs(f, check, func(fd int, name string) (file, error) {
		if err := unix.SetNonblock(fd, true); err != nil {
			return file{}, errors.Join(err, unix.Close(fd))
		}
		return newFile(fd, name)
	})
}

// duplicateAs is duplicate with the function as to make the file, which takes ownership of the fd.
func duplicateAs(f *os.File, check func(fd int) error, as func(fd int, name string) (file, error)) (file, error) {
	fd, err := fdpass.DuplicateFD(f)
	if err != nil {
		return file{}, fmt.Errorf("copy the fd: %w", err)
	}
	if err := check(fd); err != nil {
		return file{}, errors.Join(err, unix.Close(fd))
	}
	return as(fd, f.Name())
}

// close closes the fd, once.
func (f file) close() error {
	if err := f.os.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// control runs do with the fd and returns its error.
func (f file) control(do func(fd int) error) error {
	var inner error
	if err := f.conn.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// reasonOf returns the reason for an error of sending a frame. The errors are those of tun_get_user
// (drivers/net/tun.c), packet_snd (net/packet/af_packet.c) and unix_dgram_sendmsg
// (net/unix/af_unix.c).
func reasonOf(errno syscall.Errno) Reason {
	switch errno {
	case 0:
		return Delivered
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return Full
	case unix.EIO, unix.ENETDOWN:
		return Down
	case unix.EMSGSIZE:
		return TooBig
	case unix.EBADFD, unix.EBADF, unix.ENXIO, unix.ENODEV, unix.ECONNREFUSED, unix.ENOTCONN,
		unix.EPIPE, unix.ECONNRESET:
		return Gone
	}
	return Rejected
}
