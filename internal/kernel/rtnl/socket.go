package rtnl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// socket is a blocking netlink socket. The kernel has handled a request when sendto(2) returns
// (netlink_rcv_skb), so the answer is there at once. Go's poller would only add the wake-up of a
// thread for each answer.
type socket struct {
	mu     sync.Mutex
	fd     int    // -1 when closed
	port   uint32 // the socket's netlink port id
	seq    uint32 // of the last request
	buffer []byte // allocated for the first answer
}

// maxMessage bounds one datagram from the kernel. A dump comes in pieces of at most 32 KiB
// (netlink_dump), and a single link with all its attributes has less than 64 KiB.
const maxMessage = 64 << 10

// openSocket opens a socket in the netns of the calling thread.
func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	s := &socket{fd: fd}
	if err := s.setUp(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) setUp() error {
	err := errors.Join(
		unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout),
		unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err != nil {
		return err
	}
	name, err := unix.Getsockname(s.fd)
	if own, ok := name.(*unix.SockaddrNetlink); ok {
		s.port = own.Pid
	}
	return err
}

// option sets an option of SOL_SOCKET.
func (s *socket) option(name, value int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, name, value)
}

// close waits for a running request.
func (s *socket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
	}
	s.fd = -1
}

// execute sends a request and collects the answers of that type, or of any type if kind is 0. If
// the request asks for an acknowledgement or a dump, the last answer is the acknowledgement.
// Otherwise there is only one answer. If a change has interrupted a dump, execute returns what it
// has read, and ErrDisturbed.
func (s *socket) execute(req *nl.NetlinkRequest, kind uint16) ([][]byte, error) {
	return s.executeUpTo(noLimit, req, kind)
}

// executeUpTo is execute that keeps only the first most answers.
func (s *socket) executeUpTo(most int, req *nl.NetlinkRequest, kind uint16) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil, fmt.Errorf("netlink: %w", fs.ErrClosed)
	}
	s.seq++
	req.Seq = s.seq
	if err := s.send(req.Serialize()); err != nil {
		return nil, err
	}
	a := answers{kind: kind, most: most, single: req.Flags&(unix.NLM_F_ACK|unix.NLM_F_DUMP) == 0}
	for !a.done {
		messages, err := s.receive()
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if m.Header.Seq != s.seq || m.Header.Pid != s.port {
				continue
			}
			if err := a.add(m); err != nil {
				return nil, err
			}
		}
	}
	if a.disturbed {
		return a.found, nl.ErrDumpInterrupted
	}
	return a.found, nil
}

// together sends requests whose only answers are acknowledgements in one datagram, and returns the
// error of each. The kernel handles the whole datagram within one sendto(2), and continues after a
// request that fails (netlink_rcv_skb in net/netlink/af_netlink.c). No signal, not even SIGKILL,
// can end this process between two of them.
func (s *socket) together(reqs ...*nl.NetlinkRequest) ([]error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil, fmt.Errorf("netlink: %w", fs.ErrClosed)
	}
	var datagram []byte // the messages are aligned, since all attributes are padded
	first := s.seq + 1
	for _, req := range reqs {
		s.seq++
		req.Seq = s.seq
		datagram = append(datagram, req.Serialize()...)
	}
	if err := s.send(datagram); err != nil {
		return nil, err
	}
	errs := make([]error, len(reqs))
	for left := len(reqs); left > 0; {
		messages, err := s.receive()
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			at := m.Header.Seq - first
			if m.Header.Pid != s.port || m.Header.Type != unix.NLMSG_ERROR || at >= uint32(len(reqs)) {
				continue
			}
			errs[at] = answerError(m)
			left--
		}
	}
	return errs, nil
}

func (s *socket) send(request []byte) error {
	for {
		err := unix.Sendto(s.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return late(err)
		}
	}
}

// receive reads one datagram from the kernel. Its messages are valid until the next call.
func (s *socket) receive() ([]syscall.NetlinkMessage, error) {
	if s.buffer == nil {
		s.buffer = make([]byte, maxMessage)
	}
	for {
		n, from, err := unix.Recvfrom(s.fd, s.buffer, unix.MSG_TRUNC)
		switch sender, ok := from.(*unix.SockaddrNetlink); {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, late(err)
		case n > len(s.buffer):
			return nil, fmt.Errorf("netlink: an answer of %d bytes, more than %d", n, len(s.buffer))
		case !ok || sender.Pid != nl.PidKernel:
			continue
		}
		return syscall.ParseNetlinkMessage(s.buffer[:n])
	}
}

// late makes the EAGAIN of SO_RCVTIMEO match os.ErrDeadlineExceeded.
func late(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("netlink: no answer within %d s: %w", timeout.Sec, os.ErrDeadlineExceeded)
	}
	return err
}

// answers are the kernel's answers to one request.
type answers struct {
	kind      uint16
	most      int // that are kept
	single    bool
	found     [][]byte
	done      bool
	disturbed bool
}

func (a *answers) add(m syscall.NetlinkMessage) error {
	a.disturbed = a.disturbed || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
	switch m.Header.Type {
	case unix.NLMSG_DONE, unix.NLMSG_ERROR:
		a.done = true
		return answerError(m)
	}
	if a.kind == 0 || m.Header.Type == a.kind {
		if len(a.found) < a.most {
			a.found = append(a.found, append([]byte(nil), m.Data...))
		}
		a.done = a.single && m.Header.Flags&unix.NLM_F_MULTI == 0
	}
	return nil
}

// answerError returns the errno of struct nlmsgerr with the kernel's own message, which follows the
// copy of the request (NLMSGERR_ATTR_MSG in include/uapi/linux/netlink.h).
func answerError(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 { // of a dump that succeeded
		return nil
	}
	errno := -int32(u32(m.Data))
	if errno == 0 {
		return nil
	}
	err := error(syscall.Errno(errno))
	rest := m.Data[4:]
	if m.Header.Flags&unix.NLM_F_ACK_TLVS == 0 || len(rest) < unix.SizeofNlMsghdr {
		return err
	}
	request := int(u32(rest)+3) &^ 3
	if m.Header.Flags&unix.NLM_F_CAPPED != 0 {
		request = unix.SizeofNlMsghdr
	}
	if request < 0 || request > len(rest) {
		return err
	}
	each(rest[request:], func(kind uint16, text []byte) {
		if kind == nl.NLMSGERR_ATTR_MSG {
			err = fmt.Errorf("%w: %s", err, unix.ByteSliceToString(text))
		}
	})
	return err
}
