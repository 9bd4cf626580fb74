// Package ethtool changes what a network device leaves to hardware (ethtool(8)).
package ethtool

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// value is struct ethtool_value (include/uapi/linux/ethtool.h).
type value struct{ cmd, data uint32 }

// ifreq is struct ifreq with a pointer in its union (include/uapi/linux/if.h).
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// NoTxChecksums has the kernel itself fill in the checksums of what it sends by a device in ns. On
// a veth device nobody else would, and some DHCP clients drop frames without them.
func NoTxChecksums(ns *netns.NS, device string) error {
	if _, err := request(ns, device, value{cmd: unix.ETHTOOL_STXCSUM}); err != nil {
		return fmt.Errorf("ethtool -K %s tx off: %w", device, err)
	}
	return nil
}

// request makes one request about a device of ns, and returns the data of the answer.
func request(ns *netns.NS, device string, v value) (data uint32, err error) {
	if len(device) >= unix.IFNAMSIZ {
		return 0, fmt.Errorf("%q is no name of a device", device)
	}
	err = ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req := ifreq{data: unsafe.Pointer(&v)}
		copy(req.name[:], device)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	return v.data, err
}
