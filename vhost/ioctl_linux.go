package vhost

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func getFeatures(fd int) (uint64, error) {
	var bits uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), vhostGetFeatures, uintptr(unsafe.Pointer(&bits)))
	if errno != 0 {
		return 0, errno
	}
	return bits, nil
}
