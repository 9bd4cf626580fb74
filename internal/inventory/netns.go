package inventory

import (
	"context"
	"slices"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// inSpaces lists vmnet's macvtaps and ipvtaps in namespaces that processes have open, with a parent
// device in the Host's. A namespace that cannot be looked into is passed over: it may be another
// user's.
func (h *Host) inSpaces(ctx context.Context, op *openFiles) []Device {
	byInode := map[uint64]*Device{}
	var order []uint64
	for _, f := range op.spaces {
		if len(op.nodes[f.PID]) == 0 && !op.isVMM(f.PID) {
			continue
		}
		inode, _ := netns.InodeOf(f)
		dev, known := byInode[inode]
		if !known {
			if ctx.Err() != nil || !op.within(f.UID, "namespaces", maxSpaces) {
				continue
			}
			dev = h.inSpace(f, inode)
			byInode[inode] = dev
			order = append(order, inode)
		}
		if dev != nil && !slices.ContainsFunc(dev.Holders, func(h nic.Holder) bool { return h.PID == f.PID }) {
			dev.Holders = append(dev.Holders, nic.Holder{PID: f.PID, FDs: []int{}})
		}
	}
	var found []Device
	for _, inode := range order {
		if dev := byInode[inode]; dev != nil {
			h.macvtapQueues(op, dev)
			found = append(found, *dev)
		}
	}
	return found
}

// hasLower reports whether a device in netns ns, of record r, has its parent device in the Host's.
// The kernel says which netns a macvtap's parent is in, unless it is the device's own. It does not
// say so for an ipvtap (no get_link_net), so the alias must do. A user may choose any alias in a
// netns of their own, so the same user namespace must own that netns and the Host's. An alias
// without a netns was written by an older vmnet, and names the parent device.
func (h *Host) hasLower(ns *netns.NS, nl *rtnl.Conn, l *rtnl.Link, r nic.Record) bool {
	if l.LowerNS >= 0 {
		id, err := nl.NetnsID(h.NS)
		return err == nil && id == l.LowerNS
	}
	if l.Kind != string(vtap.IPVtap) {
		return false
	}
	owner, err := ns.Owner()
	if err != nil {
		return false
	}
	own, err := h.NS.Owner()
	if err != nil || own != owner {
		return false
	}
	inode, err := h.NS.Inode()
	if err != nil || r.Netns != 0 && r.Netns != inode {
		return false
	}
	lower, err := h.NL.LinkByIndex(l.Lower)
	return err == nil && (r.Netns == inode || lower.Name == r.Source)
}

// mayHoldOurs reports whether vmnet may have made a netns for a device: it is owned by the user
// namespace that owns the Host's netns, or by this process's own. In a netns that a user has made,
// the root of that user's namespace may write any alias.
func (h *Host) mayHoldOurs(ns *netns.NS) bool {
	owner, err := ns.Owner()
	if err != nil {
		return false
	}
	if own, err := h.NS.Owner(); err == nil && own == owner {
		return true
	}
	self, err := netns.OwnUser()
	return err == nil && self == owner
}

// inSpace looks for a managed macvtap or ipvtap in one namespace; nil if there is none.
func (h *Host) inSpace(f procfd.File, inode uint64) (found *Device) {
	at := &Device{Link: &rtnl.Link{}, NetnsFile: &f, NetnsInode: inode}
	_ = h.withinOpen(at, func(ns *netns.NS) error {
		if !h.mayHoldOurs(ns) {
			return nil
		}
		nl, err := rtnl.Open(ns)
		if err != nil {
			return err
		}
		defer nl.Close()
		for _, kind := range []vtap.Kind{vtap.Macvtap, vtap.IPVtap} {
			links, err := nl.Links(string(kind), 0)
			if err != nil {
				return err
			}
			for _, l := range links {
				r, ok := nic.ParseRecord(l.Alias)
				if !ok || !h.hasLower(ns, nl, l, r) {
					continue
				}
				at.Link, at.Want, found = l, r, at
				if parent, err := h.NL.LinkByIndex(l.Lower); err == nil {
					h.follow(at, parent)
				}
				return nil
			}
		}
		return nil
	})
	return found
}

// macvtapQueues notes which queues the holders of a namespace have; none is known where we may not
// look.
func (h *Host) macvtapQueues(op *openFiles, dev *Device) {
	_ = h.withinOpen(dev, func(ns *netns.NS) error {
		number, err := macvlan.Number(ns, dev.Link)
		if err != nil {
			return err
		}
		for _, f := range op.nodesOf(number) {
			for i := range dev.Holders {
				if h := &dev.Holders[i]; h.PID == f.PID {
					h.FDs = append(h.FDs, f.FD)
					slices.Sort(h.FDs)
				}
			}
		}
		return nil
	})
}

// InNetns finds the device in the netns of that inode, which process pid has open; nil for none.
// open is false where the process does not have that netns open.
func (h *Host) InNetns(pid int, inode uint64) (dev *Device, open bool, err error) {
	op, err := h.openedBy(pid)
	if err != nil {
		return nil, false, err
	}
	for _, f := range op.spaces {
		if found, _ := netns.InodeOf(f); found == inode {
			return h.inSpace(f, inode), true, nil
		}
	}
	return nil, false, nil
}

// hidden lists vmnet's macvtaps that are on parent devices in the Host's netns and that no
// process is seen to hold: nobody can reach them but by the id of their netns. Where vm is not
// empty, they are that guest's.
func (h *Host) hidden(known []Device, vm string) ([]nic.NIC, error) {
	devices, err := macvlan.Everywhere(h.NL)
	if err != nil {
		return nil, err
	}
	// The kernel gives this netns an id in itself when it reports the first of these devices.
	self, err := h.NL.NetnsID(h.NS)
	if err != nil || self < 0 { // none of them has its parent device here
		return nil, err
	}
	seen := map[int]bool{}
	for i := range known {
		if dev := &known[i]; dev.NetnsFile != nil {
			seen[h.netnsID(dev)] = true
		}
	}
	var nics []nic.NIC
	for _, d := range devices {
		if r, ok := nic.ParseRecord(d.Alias); ok && d.LowerNS == self && !seen[d.NetnsID] && (vm == "" || r.VM == vm) {
			found := (&Device{Link: d.Link, Want: r}).AsHeld()
			found.State = nic.Hidden
			nics = append(nics, found)
		}
	}
	return nics, nil
}

// netnsID is the id of the netns that a link is in; -1 for none.
func (h *Host) netnsID(dev *Device) int {
	id := -1
	_ = h.withinOpen(dev, func(ns *netns.NS) (err error) { id, err = h.NL.NetnsID(ns); return err })
	return id
}
