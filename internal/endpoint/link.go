package endpoint

import (
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/sockopt"
)

// CheckLink returns an error unless an fd can be the netlink socket by which a wire follows its
// device (rtnl.FollowFile).
func CheckLink(fd int) error { return sockopt.CheckNetlink(fd, unix.NETLINK_ROUTE, "NETLINK_ROUTE") }
