package tapmgr

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"vmnet/bridge/vswitch"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap"
)

// exclusive are the kinds of masters that take all frames of their ports (by the kernel's one rx_handler), so that
// nothing can sit on these. A VRF leaves them theirs.
var exclusive = []string{"bridge", "bond", "team", "openvswitch"}

// mayBeParent refuses a device on which a macvtap, ipvtap or macvlan would hear nothing, or that the kernel refuses.
func (m *Manager) mayBeParent(kind macvtap.Kind, l *rtnl.Link) error {
	if master := m.masterOf(l); master != nil && slices.Contains(exclusive, master.Kind) {
		return macvtap.Explain(m.nl, fmt.Errorf("%s on %s: %w", kind, l.Name, syscall.EBUSY), kind, l)
	}
	claimed, err := m.claimed(l)
	if err == nil && claimed {
		err = fmt.Errorf("%w: %s", syscall.EBUSY, claimedText(l.Name, string(kind)))
	}
	return err
}

func claimedText(device, kind string) string {
	return fmt.Sprintf("%s is a port of a userspace switch, which takes all its frames, and a %s on it would hear nothing (attach with --switch instead; vmnet switch list shows those that run)", device, kind)
}

// maxParents bounds how many VLAN devices are taken for one on another.
const maxParents = 8

// claimed reports whether a switch has a device, or the one of which it is a VLAN; not where the caller lacks the privilege to see
// that.
func (m *Manager) claimed(l *rtnl.Link) (bool, error) {
	for range maxParents {
		claimed, err := vswitch.Claimed(m.ns, l.Name)
		if errors.Is(err, fs.ErrPermission) {
			return false, nil
		}
		if claimed || err != nil || l.Kind != "vlan" || l.LowerNS >= 0 {
			return claimed, err
		}
		if l, err = m.nl.LinkByIndex(l.Lower); err != nil {
			return false, rtnl.IgnoreNotExist(err)
		}
	}
	return false, nil
}
