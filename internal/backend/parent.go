package backend

import (
	"fmt"
	"slices"
	"syscall"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

// exclusive are the kinds of masters that take all frames of their ports (by the kernel's one
// rx_handler), so that nothing can sit on these. A VRF leaves them theirs.
var exclusive = []string{"bridge", "bond", "team", "openvswitch"}

// MayBeParent refuses a device on which a macvtap, ipvtap or macvlan would hear nothing, or that
// the kernel refuses.
func (m *Maker) MayBeParent(kind vtap.Kind, l *rtnl.Link) error {
	if master := m.MasterOf(l); master != nil && slices.Contains(exclusive, master.Kind) {
		return macvlan.Explain(m.NL, fmt.Errorf("%s on %s: %w", kind, l.Name, syscall.EBUSY), kind, l)
	}
	claimed, err := m.Claimed(l)
	if err == nil && claimed {
		err = fmt.Errorf("%w: %s", syscall.EBUSY, inventory.ClaimedText(l.Name, string(kind)))
	}
	return err
}
