package inventory

import (
	"errors"
	"fmt"
	"io/fs"

	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/rtnl"
)

func ClaimedText(device, kind string) string {
	return fmt.Sprintf("%s is a port of a userspace switch, which takes all its frames, and a %s on it would hear nothing (attach with --switch instead; vmnet switch list shows those that run)", device, kind)
}

// maxParents bounds how many VLAN devices are taken for one on another.
const maxParents = 8

// Claimed reports whether a switch has a device, or the one of which it is a VLAN; not where the
// caller lacks the privilege to see that.
func (h *Host) Claimed(l *rtnl.Link) (bool, error) {
	for range maxParents {
		claimed, err := endpoint.Claimed(h.NS, l.Name)
		if errors.Is(err, fs.ErrPermission) {
			return false, nil
		}
		if claimed || err != nil || l.Kind != "vlan" || l.LowerNS >= 0 {
			return claimed, err
		}
		if l, err = h.NL.LinkByIndex(l.Lower); err != nil {
			return false, rtnl.IgnoreNotExist(err)
		}
	}
	return false, nil
}
