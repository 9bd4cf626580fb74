package server

import (
	"fmt"
	"slices"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
)

// loop returns an error if a new port, whose device has that key, and the port e are connected
// outside the switch, so that a broadcast would circulate for ever. It identifies devices by what
// the kernel reports, not by their names, of which they may have several. The switch detects other
// loops, such as two uplinks to one LAN, by their frames.
func (s *ports) loop(p *control.Port, key string, e *entry) error {
	if e.in.State() == vport.StateEnded {
		return nil
	}
	other := e.in.Key()
	switch {
	case key != "" && key == other:
		return fmt.Errorf("%s is already the device of port %s (remove that port first: vmnet switch remove-port)",
			p.Device, e.Name)
	case has(p.Segments, other), has(e.Segments, key):
		return fmt.Errorf("%s and port %s's device %s are connected to each other and would make a loop "+
			"(give the switch only one of them)",
			p.Device, e.Name, e.Device)
	case len(vswitch.Alone([]vport.Config{p.Config, e.Config}, s.sw.FiltersVLANs())) > 0:
		return nil // no frames pass between them
	}
	for _, g := range p.Segments {
		if has(e.Segments, g.Key) {
			return fmt.Errorf("%s and port %s's device %s are both on %s and would make a loop "+
				"(give the switch only one of them, or put the ports into different VLANs)",
				p.Device, e.Name, e.Device, g.Name)
		}
	}
	return nil
}

func has(segments []vport.Segment, key string) bool {
	return key != "" && slices.ContainsFunc(segments, func(g vport.Segment) bool { return g.Key == key })
}
