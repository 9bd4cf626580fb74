// Package obstacles names the chains of other programs that drop what the host forwards for routed
// guests.
package obstacles

import (
	"context"
	"errors"
	"fmt"
	"os"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/firewall"
	"vmnet/internal/network/ruleset"
	"vmnet/internal/network/tool"
	"vmnet/tapmgr/nic"
)

// Found is what stands against routed guests.
type Found struct {
	Differences []nic.Difference // chains that drop
	Notices     []string         // rules that cannot be read
}

// In is Find for the namespace of that name or path.
func In(ctx context.Context, nameOrPath, tap string) (f Found, err error) {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return f, err
	}
	defer ns.Close()
	return Find(ctx, ns, tap)
}

// Find looks at the routed NICs of ns, or at that of a tap if one is named. Only root sees rules:
// for others there is nothing, and so it is without the program nft.
func Find(ctx context.Context, ns *netns.NS, tap string) (f Found, err error) {
	if os.Geteuid() != 0 {
		return f, nil
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		return f, err
	}
	defer nl.Close()
	nics, err := (&inventory.Host{NS: ns, NL: nl}).RoutedDevices()
	var rules *firewall.Host
	for _, dev := range nics {
		if tap != "" && tap != dev.Name {
			continue
		}
		if rules == nil {
			h, err := firewall.Read(ctx, ns)
			if errors.Is(err, tool.ErrNotInstalled) {
				return f, nil
			}
			if err != nil {
				return f, fmt.Errorf("which firewalls drop what routed guests send: %w", err)
			}
			rules = &h
		}
		f.add(rules, dev)
	}
	return f, err
}

func (f *Found) add(rules *firewall.Host, dev inventory.Device) {
	for _, o := range rules.Routed(dev.Name, dev.Want.Source, ruleset.Table("")) {
		if !o.Blocks {
			f.Notices = append(f.Notices, fmt.Sprintf("%s/%s %s: %s", dev.Want.VM, dev.Want.NIC, dev.Name, o))
			continue
		}
		f.Differences = append(f.Differences, nic.Difference{
			VM: dev.Want.VM, NIC: dev.Want.NIC, Interface: dev.Name, What: "firewall",
			Want: "nothing that drops its traffic", Found: fmt.Sprintf("%s of %s %s", o.Chain, o.Owner, o.Effect),
			MendedBy: nic.MendAdmin, Mend: o.Cure,
		})
	}
}
