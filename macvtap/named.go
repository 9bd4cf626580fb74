package macvtap

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// CreateNamed makes a device in the namespace that nl and the lower are in, for a VMM that is given
// its name. It is down, has the alias from the first on, and stays until it is deleted, whoever holds it.
func CreateNamed(nl *rtnl.Conn, cfg Config, alias string) (*rtnl.Link, error) {
	if err := cmp.Or(cfg.Validate(), cfg.checkLower()); err != nil {
		return nil, err
	}
	attrs, err := cfg.attrs()
	if err != nil {
		return nil, err
	}
	err = newLink(nl, cfg, func(index int) error {
		return nl.CreateWithAlias(string(cfg.Kind), index, alias, attrs...)
	})
	if err != nil {
		return nil, err
	}
	return nl.Link(cfg.Name)
}

// Up brings a device up. An address that another device on the same lower has is refused then.
func Up(nl *rtnl.Conn, l *rtnl.Link) error {
	err := nl.Set(l.Index, rtnl.Up(true))
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("set %s up: %w (something on the same lower has that address already)", l.Name, err)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", l.Name, err)
	}
	return nil
}

// Number is the number of a device's node, as unix.Mkdev makes it. ns is the namespace that it is in.
func Number(ns *netns.NS, l *rtnl.Link) (number uint64, err error) {
	d := &Device{Link: l, ns: ns, kind: Kind(l.Kind)}
	err = ns.Do(func() (err error) { number, err = d.number(); return err })
	return number, err
}

// nodePath is where QEMU (net/tap-linux.c) and libvirt (src/util/virnetdevmacvlan.c) look for a device's node, whatever
// netns it is in.
func nodePath(l *rtnl.Link) string { return fmt.Sprintf("/dev/%s%d", nodeName, l.Index) }

// NodeInTheWay is the node, of a macvtap in whatever netns, for which libvirt (virNetDevMacVLanIsMacvtap in
// src/util/virnetdevmacvlan.c) and QEMU take any device of that index by its name, and open the other one's; empty
// for none. Any user who may make a user namespace can make one, of any index: devtmpfs is the same for all.
func NodeInTheWay(l *rtnl.Link) string {
	if _, err := os.Lstat(nodePath(l)); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return nodePath(l)
}

// MakeNode makes /dev/tap<index>, root's alone, where neither devtmpfs nor udev has: in a container, say. One of
// that name and another number is an error that Is fs.ErrExist. It needs CAP_MKNOD.
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

// RemoveNode removes the node of a device that is deleted, unless that went with it.
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
