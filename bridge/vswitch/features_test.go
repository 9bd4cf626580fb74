package vswitch_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

func addrOf(s string) netip.Addr { return netip.MustParseAddr(s) }

// ethtool runs an ioctl of include/uapi/linux/ethtool.h, whose request is answered in place.
func ethtool(device string, request []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifr.name[:], device)
	ifr.data = unsafe.Pointer(&request[0])
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL,
		uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return fmt.Errorf("ethtool %s: %w", device, errno)
	}
	return nil
}

// trySetFeatures changes features of a device by their names (ETHTOOL_SFEATURES).
func trySetFeatures(device string, want map[string]bool) error {
	const featureNames, nameLen = 4, 32 // ETH_SS_FEATURES, ETH_GSTRING_LEN
	count := make([]byte, 20)
	binary.NativeEndian.PutUint32(count, unix.ETHTOOL_GSSET_INFO)
	binary.NativeEndian.PutUint64(count[8:], 1<<featureNames)
	if err := ethtool(device, count); err != nil {
		return err
	}
	n := int(binary.NativeEndian.Uint32(count[16:]))
	names := make([]byte, 12+n*nameLen)
	binary.NativeEndian.PutUint32(names, unix.ETHTOOL_GSTRINGS)
	binary.NativeEndian.PutUint32(names[4:], featureNames)
	binary.NativeEndian.PutUint32(names[8:], uint32(n))
	if err := ethtool(device, names); err != nil {
		return err
	}
	blocks := (n + 31) / 32
	set := make([]byte, 8+8*blocks)
	binary.NativeEndian.PutUint32(set, unix.ETHTOOL_SFEATURES)
	binary.NativeEndian.PutUint32(set[4:], uint32(blocks))
	found := 0
	for i := range n {
		name := unix.ByteSliceToString(names[12+i*nameLen : 12+(i+1)*nameLen])
		on, ok := want[name]
		if !ok {
			continue
		}
		found++
		for at, is := range map[int]bool{8 + i/32*8: true, 12 + i/32*8: on} {
			if is {
				binary.NativeEndian.PutUint32(set[at:], binary.NativeEndian.Uint32(set[at:])|1<<(i%32))
			}
		}
	}
	if found != len(want) {
		return fmt.Errorf("%s has %d of the features %v: %w", device, found, want, unix.EOPNOTSUPP)
	}
	return ethtool(device, set)
}
