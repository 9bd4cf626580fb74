package rtnl

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// Changes reports that something of a namespace has changed, and not how: links, addresses,
// forwarding and nftables, or qdiscs and filters.
type Changes struct {
	// C receives a value after a change. Changes that follow before the value is taken are not
	// counted.
	C <-chan struct{}

	files []*os.File
	all   sync.WaitGroup
}

// groupsOfChanges returns the multicast groups that are joined, by netlink family
// (include/uapi/linux/rtnetlink.h, include/uapi/linux/netfilter/nfnetlink.h).
func groupsOfChanges() map[int][]int {
	return map[int][]int{
		unix.NETLINK_ROUTE: {
			unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_NETCONF,
			unix.RTNLGRP_IPV6_NETCONF,
		},
		unix.NETLINK_NETFILTER: {unix.NFNLGRP_NFTABLES},
	}
}

// OpenChanges begins to follow the changes in ns. The caller may close ns, and closes what it gets.
func OpenChanges(ns *netns.NS) (*Changes, error) { return openChanges(ns, groupsOfChanges()) }

// OpenFilterChanges is OpenChanges for the qdiscs and filters of all links in ns.
func OpenFilterChanges(ns *netns.NS) (*Changes, error) {
	return openChanges(ns, map[int][]int{unix.NETLINK_ROUTE: {unix.RTNLGRP_TC}})
}

func openChanges(ns *netns.NS, all map[int][]int) (*Changes, error) {
	changed := make(chan struct{}, 1)
	c := &Changes{C: changed}
	err := ns.Do(func() error {
		for family, groups := range all {
			f, err := openGroups(family, groups)
			if err != nil {
				return err
			}
			c.files = append(c.files, f)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("follow changes: %w", err), c.Close())
	}
	for _, f := range c.files {
		c.all.Go(func() { forwardChanges(f, changed) })
	}
	return c, nil
}

func openGroups(family int, groups []int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, group := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		}
	}
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("netlink groups", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink changes"), nil
}

// forwardChanges reports each message, and that messages were lost, until f is closed.
func forwardChanges(f *os.File, changed chan<- struct{}) {
	b := make([]byte, 1) // what is said is not read
	for {
		_, err := f.Read(b)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// Close ends the reports.
func (c *Changes) Close() error {
	var errs []error
	for _, f := range c.files {
		errs = append(errs, f.Close())
	}
	c.all.Wait()
	return errors.Join(errs...)
}
