package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/uplink"
	"vmnet/step"
)

// A network whose uplink is a VXLAN segment has a VXLAN device as its port to the other hosts. The
// device's alias names the bridge, and so the network.

// chooseMTU sets the MTU of a network on a segment, if it is left open, to what the network between
// the hosts carries.
func (m *Manager) chooseMTU(n *config.Network) (err error) {
	if n.Uplink == nil || n.Uplink.VXLAN == nil || n.MTU != 0 {
		return nil
	}
	if err := n.CheckUplink(); err != nil {
		return invalid{err}
	}
	n.MTU, err = bridges.VXLANMTU(m.nl, *n.Uplink.VXLAN, 0)
	return err
}

// segmentSteps make the VXLAN device of a network as its file says, and its port. They take off
// what was the network's uplink before.
func (m *Manager) segmentSteps(n *config.Network, st *state) (steps []step.Step, err error) {
	r := st.record
	if r.uplink != "" && r.uplink != n.Uplink.Device && !m.isSegment(r.uplink) { // the file named an interface
		if steps, err = m.backSteps(n.Name, r); err != nil {
			return nil, err
		}
		r = record{}
	}
	former, own, err := bridges.ReplaceVXLANSteps(m.nl, n.Name, *n.Uplink.VXLAN, n.MTU, m.thereFunc(n.Name))
	if err != nil {
		return nil, err
	}
	if n.Uplink.VXLAN.Map != nil && (st.bridge == nil || !bridges.Filters(st.bridge)) {
		steps = append(steps, m.filterStep(n))
	}
	steps = append(steps, former...)
	want := r
	want.uplink = n.Uplink.Device
	if r.uplink != want.uplink { // the alias names each device that there is
		steps = append(steps, m.markStep(n.Name, r, want))
	}
	return append(steps, own...), nil
}

// filterStep has a network's bridge filter VLANs, so that each can be in a segment of its own. That
// stays so when the file says something else: guests may be in VLANs.
func (m *Manager) filterStep(n *config.Network) step.Step {
	return step.Step{
		Name: "vlan-filtering", Text: fmt.Sprintf("ip link set %s type bridge vlan_filtering 1", n.Name),
		Do: func(context.Context) error {
			br, _, err := m.there(n.Name)
			if err != nil {
				return err
			}
			return bridges.StartFiltering(m.nl, br)
		},
		Undo: func(context.Context) error {
			br, _, err := m.bridge(n.Name)
			if err != nil || br == nil || !bridges.Filters(br) {
				return err
			}
			return m.nl.Change("bridge", br.Index, rtnl.BridgeVLANFiltering(false))
		},
	}
}

// segments returns the VXLAN devices that a network has left: that of its record, or without a
// bridge all. If a bridge that is no network's has the name, they are that bridge's.
func (m *Manager) segments(name string, r record) ([]*rtnl.Link, error) {
	br, _, err := m.bridge(name)
	if errors.Is(err, ErrForeign) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := bridges.VXLANs(m.nl, name)
	return slices.DeleteFunc(all, func(l *rtnl.Link) bool { return br != nil && l.Name != r.uplink }), err
}

// isSegment reports whether a link is a VXLAN device that vmnet has made.
func (m *Manager) isSegment(name string) bool {
	l, err := m.nl.Link(name)
	if err != nil {
		return false
	}
	_, own := bridges.VXLANOf(l)
	return own
}

// checkSegment compares the VXLAN device of a network with its file: what apply would do is what
// differs.
func (m *Manager) checkSegment(n *config.Network, st *state) (found []Difference, err error) {
	if st.bridge == nil {
		return nil, nil // check says so already
	}
	steps, err := m.segmentSteps(n, st)
	add := func(want, is string) {
		found = append(found, Difference{n.Name, "uplink", want, is, mendByApply(n.Name)})
	}
	if err != nil {
		add(n.Uplink.Device, err.Error())
		return found, nil //nolint:nilerr // it is the difference
	}
	for _, s := range steps {
		add(s.Text, "")
	}
	return found, nil
}

// uplinkIsThere reports whether what a network's uplink needs of the host is there: the interface,
// or the address by which the other hosts of the segment reach this one.
func (m *Manager) uplinkIsThere(n *config.Network) bool {
	if v := n.Uplink.VXLAN; v != nil {
		index, err := m.nl.LinkWith(v.Local)
		return err != nil || index != 0
	}
	_, err := uplink.Find(m.nl, n.Name, n.Uplink.Device)
	return !errors.Is(err, fs.ErrNotExist)
}
