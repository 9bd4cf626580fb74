package inventory

import (
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/tapmgr/nic"
)

// hidden lists the macvtaps of ours that are on parent devices in the Manager's netns and that no
// process is seen to hold: nobody can reach them but by the id of their netns. Where vm is not
// empty, they are that guest's.
func (h *Host) hidden(known []Device, vm string) ([]nic.NIC, error) {
	self, err := h.NL.NetnsID(h.NS)
	if err != nil || self < 0 { // no device elsewhere has its parent here
		return nil, err
	}
	seen := map[int]bool{}
	for i := range known {
		if dev := &known[i]; dev.NetnsFile != nil {
			seen[h.netnsID(dev)] = true
		}
	}
	devices, err := macvlan.Everywhere(h.NL)
	var nics []nic.NIC
	for _, d := range devices {
		if r, ok := nic.ParseRecord(d.Alias); ok && d.LowerNS == self && !seen[d.NetnsID] && (vm == "" || r.VM == vm) {
			found := (&Device{Link: d.Link, Want: r}).AsHeld()
			found.State = nic.Hidden
			nics = append(nics, found)
		}
	}
	return nics, err
}

// netnsID is the id of the netns that a link is in; -1 for none.
func (h *Host) netnsID(dev *Device) int {
	id := -1
	_ = h.withinOpen(dev, func(ns *netns.NS) (err error) { id, err = h.NL.NetnsID(ns); return err })
	return id
}
