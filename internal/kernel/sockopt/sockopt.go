// Package sockopt gets and sets options of sockets (socket(7)), by their fds.
package sockopt

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// CheckKind returns an error unless an fd is a socket of that domain and type, such as
// unix.AF_UNIX and unix.SOCK_DGRAM. want describes it.
func CheckKind(fd, domain, kind int, want string) error {
	d, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("%w (want %s)", err, want)
	}
	k, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err == nil && (d != domain || k != kind) {
		err = fmt.Errorf("domain %d, type %d: want %s", d, k, want)
	}
	return err
}

// CheckNetlink returns an error unless an fd is a netlink socket of that protocol, whose name is
// want.
func CheckNetlink(fd, protocol int, want string) error {
	if err := CheckKind(fd, unix.AF_NETLINK, unix.SOCK_RAW, "a netlink socket"); err != nil {
		return err
	}
	p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err == nil && p != protocol {
		err = fmt.Errorf("netlink protocol %d: want %s", p, want)
	}
	return err
}

// RaiseBuffers raises a socket's buffers for bursts. With CAP_NET_ADMIN it gets the given size in
// bytes, otherwise at most net.core.rmem_max and wmem_max.
func RaiseBuffers(fd, bytes int) error {
	var errs []error
	for _, opt := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt[0], bytes)
		if err != nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt[1], bytes)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("raise socket buffers: %w", err)
	}
	return nil
}

// SetReceiveTimeout limits how long a receive waits, after which it fails with EAGAIN.
func SetReceiveTimeout(fd int, limit time.Duration) error {
	timeout := unix.NsecToTimeval(int64(limit))
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
}
