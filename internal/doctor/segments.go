package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"vmnet/bridge"
	"vmnet/internal/evpn"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// segments checks the VXLAN devices of the bridges: whether something adds their remote hosts, and
// whether their VLANs and VNIs fit together. FRR is asked once, of all.
func (m Machine) segments(ctx context.Context) (checks []Check) {
	if m.NS == nil {
		return nil
	}
	all, err := list(m)
	if err != nil {
		return nil // bridges has said so
	}
	frr := sync.OnceValues(func() (evpn.Answer, error) { return evpn.OfNetns(m.NS, m.NetnsName).Ask(ctx) })
	for _, b := range all {
		if b.VXLAN != nil {
			checks = append(checks, segment(b.Name, *b.VXLAN, frr)...)
		}
	}
	if slices.ContainsFunc(all, func(b bridge.Info) bool { return b.VXLAN != nil && b.VXLAN.Map != nil }) {
		checks = append(checks, m.offMap(ctx)...)
	}
	return checks
}

// offMap names the NICs with VLANs that are in no segment of their bridge's VXLAN device.
func (m Machine) offMap(ctx context.Context) (checks []Check) {
	nl, err := rtnl.Open(m.NS)
	if err != nil {
		return fail("segments", "", "%v", err)
	}
	defer nl.Close()
	h := &inventory.Host{NS: m.NS, NL: nl}
	nics, err := h.Devices(ctx)
	if err != nil {
		return fail("segments", "", "%v", err)
	}
	for _, dev := range nics {
		if dev.Want.Type != nic.TypeTap || !dev.HasLink() || dev.IsUnconfirmed() {
			continue
		}
		v, _ := h.View(&dev) // vmnet check says what could not be read
		if text, cure := v.OffMap(); text != "" {
			checks = append(checks, warn("segment of "+dev.Title(), cure, "%s", text)...)
		}
	}
	return checks
}

func segment(br string, v bridge.VXLAN, frr func() (evpn.Answer, error)) []Check {
	name := "segment " + v.Interface
	if !v.Up {
		return fail(name, "ip link set "+v.Interface+" up", "it is down: guests on %s reach no other host", br)
	}
	which := fmt.Sprintf("VNI %d on %s", v.VNI, br)
	if v.Map != nil {
		which = fmt.Sprintf("%d VNIs on %s", len(v.Segments()), br)
		if trouble := troubles(v.Map); trouble != "" {
			return fail(name, "the same vmnet bridge create or network apply again, which mends the map",
				"%s: its guests reach no other host", trouble)
		}
	}
	if v.Static {
		return ok(name, "%s, %d remote hosts listed, %d MACs", which, len(v.Remotes), v.MACs)
	}
	answer, err := frr()
	switch {
	case errors.Is(err, evpn.ErrNotInstalled) && len(v.Remotes) == 0:
		return warn(name, "apt install frr (docs/evpn.md), or --remote for each host",
			"nothing adds its remote hosts: guests on %s reach no other host", br)
	case errors.Is(err, evpn.ErrNotInstalled):
		return ok(name, "%s, %d remote hosts, %d MACs, added by a program other than FRR", which,
			len(v.Remotes), v.MACs)
	case err != nil:
		return warn(name, "", "what FRR knows of it: %v", err)
	}
	known, text, cure := saidOf(v, answer)
	if text != "" {
		return fail(name, cure, "%s: guests on %s reach no other host", text, br)
	}
	return ok(name, "%s: FRR %s", which, known)
}

// saidOf returns what FRR says of a device's segments, and the trouble with them.
func saidOf(v bridge.VXLAN, answer evpn.Answer) (known, trouble, cure string) {
	if v.Map == nil {
		s := answer.Of(v.VNI)
		trouble, cure = s.Trouble(v.VNI)
		return s.String(), trouble, cure
	}
	s := answer.OfAll(v.Segments())
	trouble, cure = s.Trouble()
	return s.String(), trouble, cure
}

// troubles returns what keeps frames of a map's segments from passing: the first trouble, and how
// many more there are.
func troubles(segments []bridge.Segment) string {
	text, more := "", 0
	for _, s := range segments {
		switch {
		case s.Trouble == "":
		case text == "":
			text = s.Trouble
		default:
			more++
		}
	}
	if more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text
}
