package announce

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// May returns why Send cannot work in ns for any link, or nil.
func May(ns *netns.NS) error {
	return withSocket(ns, func(int) error { return nil })
}

// Send sends frames by the link of that index in ns. It needs CAP_NET_RAW.
func Send(ns *netns.NS, link int, frames ...[]byte) error {
	return withSocket(ns, func(fd int) (err error) {
		for _, f := range frames {
			err = errors.Join(err, unix.Sendto(fd, f, unix.MSG_DONTWAIT, &unix.SockaddrLinklayer{Ifindex: link}))
		}
		return err
	})
}

// withSocket calls use with a socket of packet(7), of protocol 0: it receives nothing.
func withSocket(ns *netns.NS, use func(fd int) error) error {
	return ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("packet socket: %w (needs CAP_NET_RAW)", err)
		}
		return errors.Join(use(fd), unix.Close(fd))
	})
}
