package macvlan

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

// SetGroups makes groups the multicast addresses that a device receives by SIOCADDMULTI. It keeps
// those that the kernel itself has joined. The device passes them on to its parent device and
// filters by a hash of 256 values, so that frames for other groups may pass too
// (macvlan_set_mac_lists, ipvlan_set_multicast_mac_filter). With allmulti the device receives all
// groups anyway. changed reports whether the kernel has changed the list. SetGroups needs
// CAP_NET_ADMIN over the device's netns, and CAP_SYS_ADMIN to enter it.
func SetGroups(ns *netns.NS, l *rtnl.Link, groups []net.HardwareAddr) (changed bool, err error) {
	if err := validGroups(groups); err != nil {
		return false, err
	}
	err = ns.Do(func() (err error) {
		changed, err = setGroups(l, groups)
		return err
	})
	if err != nil {
		return changed, fmt.Errorf("set the multicast addresses of %s: %w", l.Name, err)
	}
	return changed, nil
}

func validGroups(groups []net.HardwareAddr) error {
	if len(groups) > vtap.MaxGroups {
		return fmt.Errorf("%d multicast addresses: want at most %d", len(groups), vtap.MaxGroups)
	}
	for _, g := range groups {
		if len(g) != 6 || g[0]&1 == 0 {
			return fmt.Errorf("%s is not a multicast address", g)
		}
	}
	return nil
}

func setGroups(l *rtnl.Link, groups []net.HardwareAddr) (changed bool, err error) {
	have, err := groupsOf(l.Index)
	if err != nil {
		return false, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var errs []error
	ask := func(request uint, g net.HardwareAddr) {
		err := multicastIoctl(fd, request, l.Name, g)
		changed = changed || err == nil
		errs = append(errs, err)
	}
	for _, g := range groups { // add before removing: an address in both lists is never missing
		if !contains(have, g) {
			ask(unix.SIOCADDMULTI, g)
		}
	}
	for _, g := range have {
		if !contains(groups, g) {
			ask(unix.SIOCDELMULTI, g)
		}
	}
	return changed, errors.Join(errs...)
}

func contains(all []net.HardwareAddr, one net.HardwareAddr) bool {
	return slices.ContainsFunc(all, func(g net.HardwareAddr) bool { return slices.Equal(g, one) })
}

// Groups returns the multicast addresses that a device receives by SIOCADDMULTI.
func Groups(ns *netns.NS, l *rtnl.Link) (groups []net.HardwareAddr, err error) {
	err = ns.Do(func() (err error) {
		groups, err = groupsOf(l.Index)
		return err
	})
	return groups, err
}

// groupsOf must run in the device's netns.
func groupsOf(index int) ([]net.HardwareAddr, error) {
	text, err := os.ReadFile("/proc/thread-self/net/dev_mcast")
	if err != nil {
		return nil, fmt.Errorf("read the multicast addresses: %w", err)
	}
	return parseGroups(string(text), index), nil
}

// parseGroups parses lines of five fields: the index, the name, the number of users of the address,
// whether SIOCADDMULTI is one of them, and the address (dev_mc_seq_show in net/core/net-procfs.c,
// or in dev_addr_lists.c).
func parseGroups(text string, index int) (groups []net.HardwareAddr) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 5 || f[0] != strconv.Itoa(index) || f[3] == "0" {
			continue
		}
		if mac, err := hex.DecodeString(f[4]); err == nil && len(mac) == 6 {
			groups = append(groups, mac)
		}
	}
	return groups
}

// ifreqAddr is struct ifreq with ifr_hwaddr (include/uapi/linux/if.h).
type ifreqAddr struct {
	name   [unix.IFNAMSIZ]byte
	family uint16
	addr   [14]byte
	_      [8]byte // the union has longer members
}

// multicastIoctl calls SIOCADDMULTI or SIOCDELMULTI (netdevice(7)), which want the family
// AF_UNSPEC. It is no error if nothing is left to change.
func multicastIoctl(fd int, request uint, name string, group net.HardwareAddr) error {
	req := ifreqAddr{family: unix.AF_UNSPEC}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	copy(req.addr[:], group)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&req)))
	switch {
	case errno == 0, errno == unix.EEXIST && request == unix.SIOCADDMULTI, errno == unix.ENOENT &&
		request == unix.SIOCDELMULTI:
		return nil
	case errno == unix.EPERM:
		return fmt.Errorf("%s: %w (needs CAP_NET_ADMIN)", group, errno)
	}
	return fmt.Errorf("%s: %w", group, errno)
}
