package backend

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// ipvlanSibling is an ipvlan or ipvtap that shares a lower.
type ipvlanSibling struct {
	*rtnl.Link
	name string // the guest and its NIC, or an interface
}

// agrees refuses an ipvtap that would change the guests beside it: a lower has one mode and one
// flag, and the kernel gives those of the latest ipvtap to all (ipvlan_link_new in
// drivers/net/ipvlan/ipvlan_main.c).
func (s *macvtapDevice) agrees(ctx context.Context) error {
	l := s.spec.Lower
	if l.Kind != vtap.IPVtap {
		return nil
	}
	all, err := s.ipvlanSiblings(ctx)
	if err != nil || len(all) == 0 {
		return err
	}
	wanted, there := l.Mode+" "+l.FlagName(), macvlan.ModeName(all[0].Link)+" "+macvlan.FlagName(all[0].Link)
	if wanted == there {
		return nil
	}
	cure := "detach or remove what is there first"
	if mode, flag, _ := strings.Cut(there, " "); slices.Contains(vtap.Modes(l.Kind), mode) {
		cure = fmt.Sprintf("use --mode %s --flag %s, or %s", mode, flag, cure)
	}
	return fmt.Errorf("%w: mode and flag are one for all ipvtaps on %s, and %s would become %s for %s (%s)",
		syscall.EBUSY, s.lower.Name, there, wanted, names(all), cure)
}

func names(all []ipvlanSibling) string {
	var list []string
	for _, o := range all {
		list = append(list, o.name)
	}
	return strings.Join(list, ", ")
}

// ipvlanSiblings lists what shares the lower with the NIC: other NICs of ours, wherever they are,
// and what else the Manager's netns shows. A lower that is an ipvlan itself shares its own lower.
func (s *macvtapDevice) ipvlanSiblings(ctx context.Context) (found []ipvlanSibling, err error) {
	all, err := s.m.AllDevices(ctx)
	if err != nil {
		return nil, err
	}
	for _, dev := range all {
		self := dev.Want.VM == s.spec.VM && dev.Want.NIC == s.spec.NIC
		if dev.IPVlan != nil && dev.Lower == s.lower.Index && !self {
			found = append(found, ipvlanSibling{dev.Link, dev.Want.VM + "/" + dev.Want.NIC})
		}
	}
	for _, kind := range []string{"ipvlan", "ipvtap"} {
		links, err := s.m.NL.Links(kind, 0)
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			_, ours := nic.ParseRecord(l.Alias)
			on := l.Lower == s.lower.Index && l.LowerNS < 0 || l.Index == s.lower.Index
			if l.Kind == kind && l.IPVlan != nil && on && !ours {
				found = append(found, ipvlanSibling{l, l.Name})
			}
		}
	}
	return found, nil
}
