package tapmgr

import (
	"vmnet/internal/kernel/netns"
	"vmnet/macvtap"
	"vmnet/tapmgr/nic"
)

// hidden lists the macvtaps of ours that are on parent devices in the Manager's netns and that no process is seen to hold:
// nobody can reach them but by the id of their netns. Where vm is not empty, they are that guest's.
func (m *Manager) hidden(known []ours, vm string) ([]nic.NIC, error) {
	self, err := m.nl.NetnsID(m.ns)
	if err != nil || self < 0 { // no device elsewhere has its parent here
		return nil, err
	}
	seen := map[int]bool{}
	for i := range known {
		if o := &known[i]; o.in != nil {
			seen[m.netnsID(o)] = true
		}
	}
	devices, err := macvtap.Everywhere(m.nl)
	var nics []nic.NIC
	for _, d := range devices {
		if r, ok := nic.ParseRecord(d.Alias); ok && d.LowerNS == self && !seen[d.NetnsID] && (vm == "" || r.VM == vm) {
			found := m.describe(ours{Link: d.Link, want: r})
			found.State = nic.Hidden
			nics = append(nics, found)
		}
	}
	return nics, err
}

// netnsID is the id of the netns that a link is in; -1 for none.
func (m *Manager) netnsID(o *ours) int {
	id := -1
	_ = m.withinOpen(o, func(ns *netns.NS) (err error) { id, err = m.nl.NetnsID(ns); return err })
	return id
}
