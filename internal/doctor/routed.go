package doctor

import (
	"context"
	"fmt"
	"strings"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/routed/obstacles"
)

// routed checks what routed NICs need of the netns, and what former ones have left there. A host
// without either has no such check.
func (m Machine) routed(ctx context.Context) []Check {
	const name = "routed NICs"
	if m.NS == nil {
		return nil
	}
	nl, err := rtnl.Open(m.NS)
	if err != nil {
		return fail(name, "", "%v", err)
	}
	defer nl.Close()
	h := &inventory.Host{NS: m.NS, NL: nl}
	left, err := h.Routed().Tidy(ctx, true)
	if err != nil {
		return fail(name, "", "what is left of them: %v", err)
	}
	if len(left) > 0 {
		var what []string
		for _, r := range left {
			what = append(what, fmt.Sprintf("%s (%s)", r.What, r.Link))
		}
		return warn(name, "vmnet reconcile; vmnet watch does it by itself",
			"left of guests that have ended: %s", strings.Join(what, ", "))
	}
	nics, err := h.RoutedDevices()
	if err != nil {
		return fail(name, "", "%v", err)
	}
	if len(nics) == 0 {
		return nil
	}
	found, err := obstacles.Find(ctx, m.NS, "")
	if err != nil {
		return warn(name, "", "%v", err)
	}
	var checks []Check
	for _, d := range found.Differences {
		checks = append(checks, fail(name, d.Mend, "%s/%s %s: %s", d.VM, d.NIC, d.Interface, d.Found)...)
	}
	for _, notice := range found.Notices {
		checks = append(checks, warn(name, "", "%s", notice)...)
	}
	if len(checks) > 0 {
		return checks
	}
	return ok(name, "%d, nothing is left of former ones, and no other firewall drops their traffic", len(nics))
}
