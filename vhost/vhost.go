// Package vhost opens /dev/vhost-net for a VMM. A vhost-net fd serves one queue pair. It is handed
// over unused: VHOST_SET_OWNER binds it to the address space of the calling process, which must be
// the VMM (include/uapi/linux/vhost.h).
package vhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
)

// Device is the path of vhost-net's node. Opening it loads the module, since its number is static.
const Device = "/dev/vhost-net"

// VHOST_GET_FEATURES, _IOR(VHOST_VIRTIO, 0x00, __u64).
const vhostGetFeatures = 0x8008af00

// Feature bits of vhost-net (include/uapi/linux/vhost_types.h, virtio_net.h).
const (
	FeatureMrgRxbuf = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF
	FeatureVnetHdr  = 1 << 27 // VHOST_NET_F_VIRTIO_NET_HDR
)

// Open opens the device once. The caller owns the file. An error names the cause
// and the cure.
func Open() (*os.File, error) {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		return nil, explain(err)
	}
	bits, err := Features(f)
	if err == nil && bits&FeatureMrgRxbuf == 0 {
		err = fmt.Errorf(
			"%s offers features %#x without mergeable buffers: the guest would be slower with it (use --vhost off)",
			Device, bits)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Features returns the feature bits that the kernel's vhost-net offers.
func Features(f *os.File) (uint64, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var bits uint64
	var ioErr error
	err = conn.Control(func(fd uintptr) {
		bits, ioErr = getFeatures(fd)
	})
	if err = errors.Join(err, ioErr); err != nil {
		return 0, fmt.Errorf("VHOST_GET_FEATURES on %s: %w", f.Name(), err)
	}
	return bits, nil
}

func getFeatures(fd uintptr) (bits uint64, err error) {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, vhostGetFeatures, uintptr(unsafe.Pointer(&bits)))
	if errno != 0 {
		return 0, errno
	}
	return bits, nil
}

// FDs returns the vhost-net fds of a process in ascending order. The kernel does not
// report which queue each serves. The result is empty if the caller may not read the
// process's fds.
func FDs(pid int) []int {
	fds := []int{}
	procfd.Of(pid, func(f procfd.File) {
		if filepath.Base(f.Target) == filepath.Base(Device) {
			fds = append(fds, f.FD)
		}
	})
	slices.Sort(fds)
	return fds
}

func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (the kernel's vhost-net is missing or not loaded: modprobe vhost_net)", err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w (its module is not loaded and could not be loaded: modprobe vhost_net)", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (give this user access, usually through the group kvm, or run as root)", err)
	}
	return err
}
