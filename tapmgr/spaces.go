package tapmgr

import (
	"context"
	"slices"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap"
	"vmnet/tapmgr/nic"
)

// inSpaces lists the macvtaps of ours in namespaces that processes have open, whose lower is
// in the Manager's. A namespace that cannot be looked into is passed over: it may
// be anybody's.
func (m *Manager) inSpaces(ctx context.Context, op *opened) []ours {
	byInode := map[uint64]*ours{}
	var order []uint64
	for _, f := range op.spaces {
		if len(op.nodes[f.PID]) == 0 && !op.isVMM(f.PID) {
			continue
		}
		inode, _ := netns.InodeOf(f)
		o, known := byInode[inode]
		if !known {
			if ctx.Err() != nil || !op.within(f.UID, "namespaces", maxSpaces) {
				continue
			}
			o = m.inSpace(f, inode)
			byInode[inode] = o
			order = append(order, inode)
		}
		if o != nil && !slices.ContainsFunc(o.holders, func(h nic.Holder) bool { return h.PID == f.PID }) {
			o.holders = append(o.holders, nic.Holder{PID: f.PID, FDs: []int{}})
		}
	}
	var found []ours
	for _, inode := range order {
		if o := byInode[inode]; o != nil {
			m.macvtapQueues(op, o)
			found = append(found, *o)
		}
	}
	return found
}

// hasLower reports whether the parent of a device, which at is the netns of, is in the Manager's. Of a macvtap
// the kernel tells which netns that is, unless it is the device's own; of an ipvtap it does not (no
// get_link_net), so name and index must do, which anybody can choose who may do as he likes in his netns:
// the same user namespace must own it and the Manager's.
func (m *Manager) hasLower(ns *netns.NS, nl *rtnl.Conn, l *rtnl.Link, r nic.Record) bool {
	if l.LowerNS >= 0 {
		id, err := nl.NetnsID(m.ns)
		return err == nil && id == l.LowerNS
	}
	if l.Kind != string(macvtap.IPVtap) {
		return false
	}
	owner, err := ns.Owner()
	if err != nil {
		return false
	}
	own, err := m.ns.Owner()
	if err != nil || own != owner {
		return false
	}
	lower, err := m.nl.LinkByIndex(l.Lower)
	return err == nil && lower.Name == r.Source
}

// mayHoldOurs reports whether a netns can be one that vmnet has made for a device: the user namespace that owns the
// Manager's netns owns it, or this process's own. One that a user has made is owned by that user's, whose root says
// there what he likes.
func (m *Manager) mayHoldOurs(ns *netns.NS) bool {
	owner, err := ns.Owner()
	if err != nil {
		return false
	}
	if own, err := m.ns.Owner(); err == nil && own == owner {
		return true
	}
	self, err := netns.OwnUser()
	return err == nil && self == owner
}

// inSpace looks for a macvtap or ipvtap of ours in one namespace; nil for none.
func (m *Manager) inSpace(f procfd.File, inode uint64) (found *ours) {
	at := &ours{Link: &rtnl.Link{}, in: &f, inode: inode}
	_ = m.withinOpen(at, func(ns *netns.NS) error {
		if !m.mayHoldOurs(ns) {
			return nil
		}
		nl, err := rtnl.Open(ns)
		if err != nil {
			return err
		}
		defer nl.Close()
		for _, kind := range []macvtap.Kind{macvtap.Macvtap, macvtap.IPVtap} {
			links, err := nl.Links(string(kind), 0)
			if err != nil {
				return err
			}
			for _, l := range links {
				r, ok := nic.ParseRecord(l.Alias)
				if !ok || !m.hasLower(ns, nl, l, r) {
					continue
				}
				at.Link, at.want, found = l, r, at
				if parent, err := m.nl.LinkByIndex(l.Lower); err == nil {
					m.follow(at, parent)
				}
				return nil
			}
		}
		return nil
	})
	return found
}

// macvtapQueues notes which queues the holders of a namespace have; none is known where we may not look.
func (m *Manager) macvtapQueues(op *opened, o *ours) {
	_ = m.withinOpen(o, func(ns *netns.NS) error {
		number, err := macvtap.Number(ns, o.Link)
		if err != nil {
			return err
		}
		for _, f := range op.nodesOf(number) {
			for i := range o.holders {
				if h := &o.holders[i]; h.PID == f.PID {
					h.FDs = append(h.FDs, f.FD)
					slices.Sort(h.FDs)
				}
			}
		}
		return nil
	})
}
