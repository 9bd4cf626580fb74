package vswitch

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/kernel/rtnl"
)

// batchSize is how many frames are received at a time, and sent: what offload gives at a time.
const batchSize = offload.Burst

// A Wire is where a port's frames come from and go to. There is one kind for each way: OpenTap, OpenPacket,
// OpenSocket. It has fds, and belongs to the switch once it is given to AddPort.
type Wire struct {
	kind   string
	device string         // its name; empty where it has none
	limits offload.Limits // what it takes, but for the MTU
	mtu    int            // the device's; 0 where that is not known
	link   *rtnl.Follower // of the device; nil where it is not followed
	queues []queue
	claim  func() error // undone by Close and unclaim; nil for none
}

// Kind is "tap", "packet" or "socket".
func (w *Wire) Kind() string { return w.kind }

// Close closes the wire's fds. AddPort's caller does not call it.
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
	return errors.Join(append(errs, w.unclaim())...)
}

// unclaim gives the device back to its kernel's stack, when the wire has ended or is closed: who has its name then is nobody's
// whom we know.
func (w *Wire) unclaim() error {
	if w.claim == nil {
		return nil
	}
	return w.claim()
}

// A queue is one way into a wire and out of it. One goroutine receives from it; any number send.
type queue interface {
	// receive waits for frames and tells how many came. Their data is valid until the next call, which
	// is what makes a batch. An error is the queue's end; after close there is one.
	receive(frames []frame) (n int, err error)

	// send gives away what s has in its list, each frame with the vnet header that the wire's limits
	// ask for, and notes in s what became of it. It never waits.
	send(s *sender)

	close() error
}

// file is an fd. Each use holds it: close takes effect when the last use has ended, so that no fd is
// used that has become another file's by then.
type file struct {
	os   *os.File
	conn syscall.RawConn
}

// newFile takes over fd. The runtime's poller watches it if it does not block.
func newFile(fd int, name string) (file, error) {
	f := os.NewFile(uintptr(fd), name)
	conn, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return file{}, err
	}
	return file{f, conn}, nil
}

// duplicate makes a file of a copy of f's fd, which the caller keeps. What check finds wrong with it is an error, and leaves
// f as it is. The file does not block, and the runtime's poller watches it.
func duplicate(f *os.File, check func(fd int) error) (file, error) {
	return duplicateAs(f, check, func(fd int, name string) (file, error) {
		if err := unix.SetNonblock(fd, true); err != nil {
			return file{}, errors.Join(err, unix.Close(fd))
		}
		return newFile(fd, name)
	})
}

// duplicateAs is duplicate with another way to make the file, which takes over the fd.
func duplicateAs(f *os.File, check func(fd int) error, as func(fd int, name string) (file, error)) (file, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return file{}, err
	}
	fd, dupErr := -1, error(nil)
	if err := conn.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return file{}, err
	}
	if dupErr != nil {
		return file{}, fmt.Errorf("copy the fd: %w", dupErr)
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

// control runs a few system calls on the fd that return errors.
func (f file) control(do func(fd int) error) error {
	var inner error
	if err := f.conn.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// reasonOf tells why the kernel did not take a frame: errors of tun_get_user (drivers/net/tun.c), packet_snd
// (net/packet/af_packet.c) and unix_dgram_sendmsg (net/unix/af_unix.c).
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
	case unix.EBADFD, unix.EBADF, unix.ENXIO, unix.ENODEV, unix.ECONNREFUSED, unix.ENOTCONN, unix.EPIPE, unix.ECONNRESET:
		return Gone
	}
	return Unwelcome
}
