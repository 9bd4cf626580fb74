package endpoint

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/sockopt"
)

// oversizeSocket opens the socket and binds it to the device and no protocol.
func oversizeSocket(ns *netns.NS, d Device) (*os.File, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err == nil {
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2),
			unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: d.Index}))
		if err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open a socket for frames with several tags: %w", err)
	}
	return os.NewFile(uintptr(fd), "packet socket for frames with several tags"), nil
}

// CheckOversize returns an error unless an fd can be a packet socket of oversizeSocket for the
// device with that index.
func CheckOversize(fd, index int) error {
	if err := sockopt.CheckKind(fd, unix.AF_PACKET, unix.SOCK_RAW, "a raw packet socket"); err != nil {
		return err
	}
	name, err := unix.Getsockname(fd)
	if ll, ok := name.(*unix.SockaddrLinklayer); err == nil && (!ok || ll.Ifindex != index || ll.Protocol != 0) {
		err = errors.New("it is not bound to the device and no protocol")
	}
	return err
}
