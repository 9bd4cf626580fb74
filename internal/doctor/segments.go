package doctor

import (
	"context"
	"errors"

	"vmnet/bridge"
	"vmnet/internal/evpn"
)

// segments checks the VXLAN devices of the bridges: whether something adds their remote hosts.
func (m Machine) segments(ctx context.Context) (checks []Check) {
	if m.NS == nil {
		return nil
	}
	all, err := list(m)
	if err != nil {
		return nil // bridges has said so
	}
	for _, b := range all {
		if b.VXLAN != nil {
			checks = append(checks, m.segment(ctx, b.Name, *b.VXLAN)...)
		}
	}
	return checks
}

func (m Machine) segment(ctx context.Context, br string, v bridge.VXLAN) []Check {
	name := "segment " + v.Interface
	switch {
	case !v.Up:
		return fail(name, "ip link set "+v.Interface+" up", "it is down: guests on %s reach no other host", br)
	case v.Static:
		return ok(name, "VNI %d on %s, %d remote hosts listed, %d MACs", v.VNI, br, len(v.Remotes), v.MACs)
	}
	s, err := evpn.OfNetns(m.NS, m.NetnsName).Ask(ctx, v.VNI)
	switch {
	case errors.Is(err, evpn.ErrNotInstalled) && len(v.Remotes) == 0:
		return warn(name, "apt install frr (docs/evpn.md), or --remote for each host",
			"nothing adds its remote hosts: guests on %s reach no other host", br)
	case errors.Is(err, evpn.ErrNotInstalled):
		return ok(name, "VNI %d on %s, %d remote hosts, %d MACs, added by a program other than FRR", v.VNI, br,
			len(v.Remotes), v.MACs)
	case err != nil:
		return warn(name, "", "what FRR knows of it: %v", err)
	}
	if text, cure := s.Trouble(v.VNI); text != "" {
		return fail(name, cure, "%s: guests on %s reach no other host", text, br)
	}
	return ok(name, "VNI %d on %s: FRR %s", v.VNI, br, s)
}
