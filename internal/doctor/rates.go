package doctor

import (
	"context"
	"fmt"
	"strings"

	"vmnet/bridge/portrate"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/ethtool"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// rates checks the limits of NICs in the netns. A host without such NICs has no such check.
func (m Machine) rates(ctx context.Context) (checks []Check) {
	const name = "rates"
	if m.NS == nil {
		return nil
	}
	nl, err := rtnl.Open(m.NS)
	if err != nil {
		return fail(name, "", "%v", err)
	}
	defer nl.Close()
	h := &inventory.Host{NS: m.NS, NL: nl}
	all, err := h.Devices(ctx)
	if err != nil {
		return fail(name, "", "%v", err)
	}
	left, err := ratelimit.Tidy(nl, true)
	switch {
	case err != nil:
		checks = fail(name, "", "%v", err)
	case len(left) > 0:
		checks = warn(name, "vmnet reconcile; vmnet watch does it by itself",
			"left of shaped NICs that have gone: %s", strings.Join(left, ", "))
	}
	limited := 0
	for _, dev := range all {
		if dev.Want.Rates.IsZero() || dev.Want.Switch || !dev.HasLink() || dev.IsUnconfirmed() {
			continue
		}
		limited++
		checks = append(checks, m.rateOf(h, dev)...)
	}
	if limited > 0 && len(checks) == 0 {
		return ok(name, "those of %d NICs are in force", limited)
	}
	return checks
}

// rateOf checks the limits of one NIC.
func (m Machine) rateOf(h *inventory.Host, dev inventory.Device) (checks []Check) {
	name := "rates of " + dev.Title()
	v, err := h.View(&dev)
	if err != nil {
		checks = append(checks, warn(name, "", "%v", err)...)
	}
	for _, f := range v.Compare() {
		if f.What == inventory.Rates {
			checks = append(checks, fail(name, f.Cure, "want %s, found %s", f.Want, f.Found)...)
		}
	}
	if queued := queued(dev.Want); queued.Bits != 0 && dev.Want.Queues > 1 {
		checks = append(checks, warn(name, "attach it with --queues 1, if the guest's load allows it",
			"its %d queues wait for one another at the rate of %s: there is one tbf qdisc for all",
			dev.Want.Queues, portrate.Limit{Bits: queued.Bits})...)
	}
	if v.Home == nil {
		return checks
	}
	for _, device := range m.ways(h, v.Home) {
		checks = append(checks, tooFast(name, dev.Want.Rates, device, ethtool.Speed(m.NS, device))...)
	}
	return checks
}

// queued returns the limit of a NIC whose frames wait in its device's root qdisc.
func queued(r nic.Record) portrate.Limit {
	if nic.HasTap(r.Type) {
		return r.Rates.Down
	}
	return r.Rates.Up
}

// ways returns the devices by which a NIC's frames leave the host: its parent device or uplink, or
// those ports of its bridge that lead out of it.
func (m Machine) ways(h *inventory.Host, home *rtnl.Link) (names []string) {
	if home.Bridge == nil {
		return []string{home.Name}
	}
	ports, err := h.NL.Links("", home.Index)
	if err != nil {
		return nil
	}
	for _, l := range ports {
		if bridges.LeadsOut(l) {
			names = append(names, l.Name)
		}
	}
	return names
}

// tooFast finds limits that are above the speed of a device in bits per second; 0 is not known.
func tooFast(name string, c portrate.Config, device string, speed uint64) []Check {
	var above []string
	for _, l := range []struct {
		flag string
		bits uint64
	}{{"--rate-up", c.Up.Bits}, {"--rate-down", c.Down.Bits}} {
		if speed != 0 && l.bits > speed {
			above = append(above, fmt.Sprintf("%s %s", l.flag, portrate.Limit{Bits: l.bits}))
		}
	}
	if len(above) == 0 {
		return nil
	}
	return warn(name, "a lower rate: vmnet set", "%s is more than %s, of %s, carries: it limits nothing there",
		strings.Join(above, " and "), device, portrate.Limit{Bits: speed})
}
