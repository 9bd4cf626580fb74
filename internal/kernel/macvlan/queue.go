package macvlan

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// nodeName is the name of the node on its tmpfs, and the prefix of the N in /dev/tapN.
const nodeName = "tap"

// OpenQueue opens one more queue. The kernel uses it at once.
//
// OpenQueue needs neither udev nor a node in /dev. It reads the device number from a sysfs of
// the device's netns, and makes a node on a tmpfs. Both mounts are detached (fsmount(2)), so
// that neither /sys, nor a nodev /run or /tmp, nor another device's /dev/tapN of the same
// index matters. It needs CAP_SYS_ADMIN and CAP_MKNOD.
func (d *Device) OpenQueue() error {
	if d.node == nil {
		if err := d.ns.Do(d.makeNode); err != nil {
			return fmt.Errorf("make a node for %s: %w", d.Link.Name, err)
		}
	}
	var fd int
	// Open it inside the netns, so that the queue's socket pins that netns.
	err := d.ns.Do(func() (err error) {
		fd, err = d.openNode()
		return err
	})
	if err != nil {
		return fmt.Errorf("open a queue of %s: %w", d.Link.Name, err)
	}
	if err := setIff(fd); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("TUNSETIFF on %s: %w", d.Link.Name, err)
	}
	d.queues = append(d.queues, os.NewFile(uintptr(fd), d.Link.Name))
	return nil
}

// openNode opens the node on a mount that is nodev at all other times. Otherwise a process that is
// given a queue could open the node again through /proc/self/fd if its user owns the node. Once the
// device is gone, the kernel gives its minor number to the next macvtap or ipvtap, of any user and
// on any parent device. A kept node would then open a queue of that device.
func (d *Device) openNode() (int, error) {
	dir := int(d.node.Fd())
	if err := setNodev(dir, false); err != nil {
		return -1, err
	}
	fd, err := unix.Openat(dir, nodeName, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := setNodev(dir, true); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setNodev sets or clears nodev on a mount, which forbids opening devices there. mount_setattr(2)
// appeared in Linux 5.12. On older kernels root goes on without it, since no other user may open
// root's node. For another user, who would own the node, it is an error: see openNode.
func setNodev(root int, on bool) error {
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NODEV}
	if on {
		attr = unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV}
	}
	err := unix.MountSetattr(root, "", unix.AT_EMPTY_PATH, &attr)
	switch {
	case errors.Is(err, unix.ENOSYS) && os.Getuid() == 0:
		return nil
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf(
			"mount_setattr nodev: %w (needs root or Linux 5.12: otherwise the user could open later macvtaps through this node)",
			err)
	case err != nil:
		return fmt.Errorf("mount_setattr nodev: %w", err)
	}
	return nil
}

// setIff sets the flags. The kernel ignores the name (tap_ioctl in drivers/net/tap.c).
func setIff(fd int) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}

// makeNode must run in the device's netns.
func (d *Device) makeNode() error {
	dev, err := d.number()
	if err != nil {
		return err
	}
	dir, err := netns.DetachedMount("tmpfs")
	if err != nil {
		return err
	}
	if err := unix.Mknodat(dir, nodeName, unix.S_IFCHR|0o600, int(dev)); err != nil {
		_ = unix.Close(dir)
		return fmt.Errorf("mknod: %w (needs CAP_MKNOD)", err)
	}
	d.node = os.NewFile(uintptr(dir), "tap node's directory")
	return nil
}

// number reads the character device's number from sysfs. The path is macvtap/tapN or
// ipvtap/tapN, where N is the interface index.
func (d *Device) number() (uint64, error) {
	sys, err := netns.DetachedMount("sysfs")
	if err != nil {
		return 0, err
	}
	defer unix.Close(sys)
	path := fmt.Sprintf("class/net/%s/%s/tap%d/dev", d.Link.Name, d.kind, d.Link.Index)
	fd, err := unix.Openat(sys, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open sysfs %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	text := make([]byte, 32)
	n, err := f.Read(text)
	if err != nil {
		return 0, err
	}
	return parseNumber(text[:n])
}

// parseNumber parses "MAJOR:MINOR\n".
func parseNumber(text []byte) (uint64, error) {
	major, minor, ok := bytes.Cut(bytes.TrimSpace(text), []byte(":"))
	a, err1 := strconv.ParseUint(string(major), 10, 32)
	b, err2 := strconv.ParseUint(string(minor), 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("device number %q: want MAJOR:MINOR", text)
	}
	return unix.Mkdev(uint32(a), uint32(b)), nil
}
