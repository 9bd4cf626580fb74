package tapmgr

import (
	"slices"

	"vmnet/internal/netns"
	"vmnet/internal/procfd"
	"vmnet/internal/rtnl"
	"vmnet/macvtap"
)

// inSpaces lists the macvtaps of ours in namespaces that processes have open, whose lower is
// in the Manager's. A namespace that cannot be looked into is passed over: it may
// be anybody's.
func (m *Manager) inSpaces(spaces []procfd.File) []ours {
	own, err := m.ns.Inode()
	if err != nil {
		return nil
	}
	byInode := map[uint64]*ours{}
	var order []uint64
	for _, f := range spaces {
		inode, _ := netns.InodeOf(f)
		if inode == own { // what is in there is no secret
			continue
		}
		o, known := byInode[inode]
		if !known {
			o = m.inSpace(f, inode)
			byInode[inode] = o
			order = append(order, inode)
		}
		if o != nil && !slices.ContainsFunc(o.holders, func(h Holder) bool { return h.PID == f.PID }) {
			o.holders = append(o.holders, m.macvtapHolder(o, f.PID))
		}
	}
	var found []ours
	for _, inode := range order {
		if o := byInode[inode]; o != nil {
			found = append(found, *o)
		}
	}
	return found
}

// hasLower tells whether the lower of a device, which at is the netns of, is in the Manager's. Of a macvtap
// the kernel tells which netns that is, unless it is the device's own; of an ipvtap it does not (no
// get_link_net), so name and index must do, which anybody can choose who may do as he likes in his netns.
func (m *Manager) hasLower(at *ours, nl *rtnl.Conn, l *rtnl.Link, r record) bool {
	if l.LowerNS >= 0 {
		id, err := nl.NetnsID(m.ns)
		return err == nil && id == l.LowerNS
	}
	if l.Kind != string(macvtap.IPVtap) || !m.sameOwner(at) {
		return false
	}
	lower, err := m.nl.LinkByIndex(l.Lower)
	return err == nil && lower.Name == r.Source
}

// sameOwner tells whether the same user namespace owns that netns and the Manager's.
func (m *Manager) sameOwner(at *ours) bool {
	ns, err := netns.OpenHeld(*at.in)
	if err != nil {
		return false
	}
	defer ns.Close()
	inode, err := ns.Inode()
	if err != nil || inode != at.inode {
		return false
	}
	owner, err := ns.Owner()
	if err != nil {
		return false
	}
	own, err := m.ns.Owner()
	return err == nil && owner == own
}

// inSpace looks for a macvtap or ipvtap of ours in one namespace; nil for none.
func (m *Manager) inSpace(f procfd.File, inode uint64) (found *ours) {
	at := &ours{Link: &rtnl.Link{}, in: &f, inode: inode}
	_ = m.on(at, func(nl *rtnl.Conn) error {
		for _, kind := range []macvtap.Kind{macvtap.Macvtap, macvtap.IPVtap} {
			links, err := nl.Links(string(kind), 0)
			if err != nil {
				return err
			}
			for _, l := range links {
				r, ok := parseAlias(l.Alias)
				if !ok || !m.hasLower(at, nl, l, r) {
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

// macvtapHolder tells which queues a process holds; none is known where we may not look.
func (m *Manager) macvtapHolder(o *ours, pid int) Holder {
	h := Holder{pid, []int{}}
	ns, err := netns.OpenHeld(*o.in)
	if err != nil {
		return h
	}
	defer ns.Close()
	if fds, err := macvtap.QueuesOf(pid, ns, o.Link); err == nil && fds != nil {
		h.FDs = fds
	}
	return h
}

// spacesOf lists the namespaces that a process has open.
func spacesOf(pid int) (spaces []procfd.File) {
	procfd.Of(pid, func(f procfd.File) {
		if _, ok := netns.InodeOf(f); ok {
			spaces = append(spaces, f)
		}
	})
	return spaces
}
