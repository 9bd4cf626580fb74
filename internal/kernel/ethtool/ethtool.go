// Package ethtool reads how fast a network device is, and changes what it leaves to hardware
// (ethtool(8)).
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

// settings is struct ethtool_cmd (include/uapi/linux/ethtool.h).
type settings struct {
	cmd  uint32
	_    [2]uint32
	low  uint16 // of the speed in Mbit/s
	_    [6]uint8
	_    [2]uint32
	high uint16
	_    [2]uint8
	_    [3]uint32
}

// unknownSpeed is SPEED_UNKNOWN.
const unknownSpeed = 1<<32 - 1

// Speed returns how fast the device of that name in ns is, in bits per second; 0 if that is not
// known, as without a carrier.
func Speed(ns *netns.NS, device string) uint64 {
	s := settings{cmd: unix.ETHTOOL_GSET}
	if err := ioctl(ns, device, unsafe.Pointer(&s)); err != nil {
		return 0
	}
	mbit := uint32(s.high)<<16 | uint32(s.low)
	if mbit == unknownSpeed {
		return 0
	}
	return uint64(mbit) * 1e6
}

// request makes one request about a device of ns, and returns the data of the answer.
func request(ns *netns.NS, device string, v value) (data uint32, err error) {
	err = ioctl(ns, device, unsafe.Pointer(&v))
	return v.data, err
}

func ioctl(ns *netns.NS, device string, data unsafe.Pointer) error {
	if len(device) >= unix.IFNAMSIZ {
		return fmt.Errorf("%q: want a device name of at most 15 bytes", device)
	}
	return ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req := ifreq{data: data}
		copy(req.name[:], device)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		if errno != 0 {
			return errno
		}
		return nil
	})
}
