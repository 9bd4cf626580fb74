package control

import (
	"fmt"
	"slices"

	"vmnet/bridge/vswitch"
)

// loop is the error that a new port, whose device has that key, and one of the switch's are joined
// beside the switch, so that a frame for all would go round for ever. It knows devices by what the
// kernel says of them, not by their names, of which they may have several. What it cannot see, such
// as two network cards at one cable, the switch notices by its frames.
func (s *ports) loop(p *Port, key string, e *entry) error {
	if e.in.State() == vswitch.StateEnded {
		return nil
	}
	other := e.in.Key()
	switch {
	case key != "" && key == other:
		return fmt.Errorf("%s is the device of port %s already (to replace that, remove it first: vmnet switch remove-port)",
			p.Device, e.Name)
	case has(p.Segments, other), has(e.Segments, key):
		return fmt.Errorf("%s and port %s's device %s are the two ends of one thing: frames would go round for ever (give the switch one of them)",
			p.Device, e.Name, e.Device)
	case len(vswitch.Alone([]vswitch.PortConfig{p.Config, e.Config}, s.sw.FiltersVLANs())) > 0:
		return nil // nothing passes from one to the other
	}
	for _, g := range p.Segments {
		if has(e.Segments, g.Key) {
			return fmt.Errorf("%s and port %s's device %s are both on %s: frames would go round for ever (give the switch one of them, or put the ports into different VLANs)",
				p.Device, e.Name, e.Device, g.Name)
		}
	}
	return nil
}

func has(segments []vswitch.Segment, key string) bool {
	return key != "" && slices.ContainsFunc(segments, func(g vswitch.Segment) bool { return g.Key == key })
}
