package vswitch

import "vmnet/bridge/vswitch/vport"

// Alone returns the ports that can exchange frames with no other port, as indices in all. Such a
// port shares no VLAN with another port, or it is isolated and so are all ports that share one with
// it. filters says whether the switch filters VLANs even if no port has any. A single port does not
// count as alone, since it is only the first.
func Alone(all []vport.Config, filters bool) (alone []int) {
	if len(all) < 2 {
		return nil
	}
	ports := make([]*vlans, len(all))
	for i, cfg := range all {
		filters = filters || cfg.HasVLANs()
		v := newVLANs(cfg.Settings)
		ports[i] = &v
	}
	meets := func(i, j int) bool {
		return i != j && !(all[i].Isolated && all[j].Isolated) && (!filters || ports[i].meets(ports[j]))
	}
	for i := range ports {
		found := false
		for j := 0; j < len(ports) && !found; j++ {
			found = meets(i, j)
		}
		if !found {
			alone = append(alone, i)
		}
	}
	return alone
}
