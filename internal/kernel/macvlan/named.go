package macvlan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

// CreateNamed makes a device in the namespace of nl and the parent device, for a VMM that opens it
// by its name. The device is down. It never exists without the alias, and stays until it is
// deleted.
func CreateNamed(nl *rtnl.Conn, parent *rtnl.Link, cfg vtap.Config, alias string) (*rtnl.Link, error) {
	if err := check(parent, cfg); err != nil {
		return nil, err
	}
	attrs, err := attrsOf(parent, cfg)
	if err != nil {
		return nil, err
	}
	err = newLink(nl, parent, cfg, func(index int) error {
		return nl.CreateWithAlias(string(cfg.Kind), index, alias, attrs...)
	})
	if err != nil {
		return nil, err
	}
	return nl.Link(cfg.Name)
}

// Up brings a device up. The kernel then refuses an address that another device on the same parent
// device has.
func Up(nl *rtnl.Conn, l *rtnl.Link) error {
	err := nl.Set(l.Index, rtnl.Up(true))
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("set %s up: %w (another device on the same parent device has that address)", l.Name, err)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", l.Name, err)
	}
	return nil
}

// Number returns the device number of a device's node, in the form of unix.Mkdev. ns is the
// device's namespace.
func Number(ns *netns.NS, l *rtnl.Link) (number uint64, err error) {
	d := &Device{Link: l, ns: ns, kind: vtap.Kind(l.Kind)}
	err = ns.Do(func() (err error) { number, err = d.number(); return err })
	return number, err
}

// nodePath returns where QEMU (net/tap-linux.c) and libvirt (src/util/virnetdevmacvlan.c) look for
// a device's node. The path does not depend on the netns.
func nodePath(l *rtnl.Link) string { return fmt.Sprintf("/dev/%s%d", nodeName, l.Index) }

// NodeInTheWay returns the path of an existing /dev/tap<index> with the index of l, or "". It may
// belong to a macvtap in another netns. libvirt (virNetDevMacVLanIsMacvtap in
// src/util/virnetdevmacvlan.c) and QEMU would take l for a macvtap because of it, and open the
// other device. Any user who may create a user namespace can create such a node with any index,
// since all namespaces share devtmpfs.
func NodeInTheWay(l *rtnl.Link) string {
	if _, err := os.Lstat(nodePath(l)); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return nodePath(l)
}

// Nodes returns the interface indices for which NodeInTheWay finds a node in /dev, of devices in
// any netns.
func Nodes() ([]int, error) {
	entries, err := os.ReadDir("/dev")
	if err != nil {
		return nil, err
	}
	var indices []int
	for _, e := range entries {
		if number, ok := strings.CutPrefix(e.Name(), nodeName); ok {
			if index, err := strconv.Atoi(number); err == nil {
				indices = append(indices, index)
			}
		}
	}
	return indices, nil
}

// MakeNode makes /dev/tap<index>, accessible to root only, if neither devtmpfs nor udev has made
// it, such as in a container. If the path exists with another number, the error matches fs.ErrExist
// with errors.Is. MakeNode needs CAP_MKNOD.
func MakeNode(ns *netns.NS, l *rtnl.Link) error {
	number, err := Number(ns, l)
	if err != nil {
		return err
	}
	path := nodePath(l)
	err = unix.Mknod(path, unix.S_IFCHR|0o600, int(number))
	if errors.Is(err, unix.EEXIST) && isNode(path, number) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mknod %s: %w", path, err)
	}
	return nil
}

// RemoveNode removes the node of a deleted device, unless the kernel has removed it with the
// device.
func RemoveNode(l *rtnl.Link, number uint64) error {
	path := nodePath(l)
	if !isNode(path, number) {
		return nil
	}
	if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

func isNode(path string, number uint64) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == number
}
