package vswitch

// Alone finds the ports, by their places in all, that can exchange frames with no other: they share
// no VLAN with any, or are isolated, as all of those are. filters says whether the switch filters
// VLANs although no port has any. A single port is not alone, but the first.
func Alone(all []PortConfig, filters bool) (alone []int) {
	if len(all) < 2 {
		return nil
	}
	ports := make([]*vlans, len(all))
	for i, cfg := range all {
		filters = filters || cfg.HasVLANs()
		ports[i] = newVLANs(cfg.PortConfig)
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
