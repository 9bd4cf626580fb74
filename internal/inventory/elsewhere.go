package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"vmnet/internal/holders"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/vmm/qemu"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// inSpaces lists vmnet's macvtaps and ipvtaps in namespaces that processes have open, with a parent
// device in the Host's. A namespace that cannot be looked into is passed over: it may be another
// user's.
func (h *Host) inSpaces(ctx context.Context, op *holders.Files) []Device {
	byInode := map[uint64]*Device{}
	var order []uint64
	for _, f := range op.Spaces {
		if len(op.Nodes[f.PID]) == 0 && !op.IsVMM(f.PID) {
			continue
		}
		inode, _ := netns.InodeOf(f)
		dev, known := byInode[inode]
		if !known {
			if ctx.Err() != nil || !op.MayEnter(f.UID) {
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
func (h *Host) macvtapQueues(op *holders.Files, dev *Device) {
	_ = h.withinOpen(dev, func(ns *netns.NS) error {
		number, err := macvlan.Number(ns, dev.Link)
		if err != nil {
			return err
		}
		for _, f := range op.NodesOf(number) {
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
	for _, f := range op.Spaces {
		if found, _ := netns.InodeOf(f); found == inode {
			return h.inSpace(f, inode), true, nil
		}
	}
	return nil, false, nil
}

// awaitsLibvirt reports whether another vmnet is about to hand the device over by its name: nobody
// holds the device at that moment, but the guest's lock is taken.
func (dev *Device) awaitsLibvirt() bool {
	if dev.Want.Via != nic.ViaLibvirt || dev.Want.Phase != nic.PhaseAttaching || len(dev.Holders) > 0 {
		return false
	}
	procs, err := qemu.OfLibvirt(dev.Want.VM)
	if err != nil {
		return true
	}
	for _, p := range procs {
		if holders.IsLocked(p) {
			return true
		}
	}
	return false
}

// addNodeHolders adds the processes that have the node of a macvtap in the Host's netns open.
func (h *Host) addNodeHolders(dev *Device, op *holders.Files) {
	if len(op.Nodes) > 0 {
		number, err := macvlan.Number(h.NS, dev.Link)
		if err != nil {
			return
		}
		dev.addHolders(op, op.NodesOf(number))
	}
	dev.allSeen = len(dev.Holders) == 0 && op.SeesAll()
}

// A device that libvirt opens by its name has no label in QEMU, which libvirt alone could hand
// over. When it was deleted, libvirt still knows what it was.

// LibvirtNIC is a managed NIC in a libvirt domain, whether or not its device still exists.
type LibvirtNIC struct {
	nic.Record
	Interface string // name of its device
	PID       int    // its guest's VMM
}

// deadOfLibvirt is deadNICs for libvirt guests. It asks libvirt only about the processes that hold
// a queue of no known device; all are the devices that exist.
func (h *Host) deadOfLibvirt(ctx context.Context, op *holders.Files, all []Device) (found []Device) {
	if h.OfLibvirt == nil {
		return nil
	}
	suspects := suspectsAmong(op, all)
	if len(suspects) == 0 {
		return nil
	}
	for _, n := range h.OfLibvirt(ctx, suspects) {
		there := slices.ContainsFunc(all, func(dev Device) bool { return dev.Want.VM == n.VM && dev.Want.NIC == n.NIC })
		if _, err := h.NL.Link(n.Interface); there || !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		found = append(found, Device{
			Link: &rtnl.Link{Name: n.Interface, Kind: n.Type, MTU: n.GuestMTU()}, Want: n.Record,
			Deleted: true, allSeen: true,
			UID: os.Geteuid(), vouched: true, // by libvirt, which the caller has chosen
			Holders: []nic.Holder{{PID: n.PID, FDs: []int{}}},
		})
	}
	return found
}

// suspectsAmong lists the processes that hold a queue of a tap that is gone, or a macvtap's queue
// that belongs to none of these devices: the macvtap may be libvirt's own.
func suspectsAmong(op *holders.Files, all []Device) []int {
	found := maps.Clone(op.Orphans)
	for pid, files := range op.Nodes {
		if !found[pid] && slices.ContainsFunc(files, func(f procfd.File) bool { return !isQueueOf(all, f) }) {
			found[pid] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// deadNICs lists the NICs whose device was deleted under their VMM: it holds a label that none of
// the existing devices, all, matches, and an orphaned queue. A label alone is no NIC: a VMM that
// was started with one keeps it after a detach.
func deadNICs(op *holders.Files, all []Device) (found []Device) {
	queues := map[int]int{} // dead ones, by process
	for _, l := range op.Labels {
		there := slices.ContainsFunc(all, func(dev Device) bool {
			return dev.Want.VM == l.VM && dev.Want.NIC == l.NIC && (len(dev.Holders) == 0 || dev.IsHeldBy(l.PID))
		})
		if l.IsSocket() || there || slices.ContainsFunc(found, func(dev Device) bool {
			return dev.Want.VM == l.VM && dev.Want.NIC == l.NIC && dev.IsHeldBy(l.PID)
		}) {
			continue
		}
		if _, counted := queues[l.PID]; !counted {
			queues[l.PID] = deadQueues(op, l.PID, all)
		}
		if queues[l.PID] > 0 {
			found = append(found, deadNIC(l))
		}
	}
	return found
}

// deadQueues counts the queues of a process whose devices are gone: the kernel has no interface
// name for such a tap's fd, and a macvtap's fd belongs to none of the existing devices.
func deadQueues(op *holders.Files, pid int, all []Device) (n int) {
	for _, f := range op.Nodes[pid] {
		if !isQueueOf(all, f) {
			n++
		}
	}
	procfd.First(pid, holders.MaxEarly, func(f procfd.File) {
		if tun.LooksLikeQueue(f) && tun.InterfaceOf(f) == "" {
			n++
		}
	})
	return n
}

// isQueueOf reports whether a file is a queue of one of these NICs.
func isQueueOf(all []Device, f procfd.File) bool {
	return slices.ContainsFunc(all, func(dev Device) bool {
		return slices.ContainsFunc(dev.Holders, func(h nic.Holder) bool {
			return h.PID == f.PID && slices.Contains(h.FDs, f.FD)
		})
	})
}

func deadNIC(l holders.Label) Device {
	r := l.Record
	name, _ := nic.InterfaceName(r.VM, r.NIC)
	link := &rtnl.Link{Name: name, Kind: r.Type, MTU: r.GuestMTU()}
	return Device{
		Link: link, Want: r, Deleted: true, allSeen: true, UID: l.User, vouched: holders.IsTrusted(l.User),
		Holders: []nic.Holder{{PID: l.PID, FDs: []int{}}},
	}
}

// Within runs f with the device's netns and a netlink socket in it. Both are closed afterwards.
func (h *Host) Within(dev *Device, f func(ns *netns.NS, nl *rtnl.Conn) error) error {
	if dev.NetnsFile == nil {
		return f(h.NS, h.NL)
	}
	return h.withinOpen(dev, func(ns *netns.NS) error {
		nl, err := rtnl.Open(ns)
		if err != nil {
			return err
		}
		defer nl.Close()
		return f(ns, nl)
	})
}

// On runs f with a netlink socket in the device's netns, which is closed afterwards.
func (h *Host) On(dev *Device, f func(nl *rtnl.Conn) error) error {
	return h.Within(dev, func(_ *netns.NS, nl *rtnl.Conn) error { return f(nl) })
}

// withinOpen runs f with the netns of a device that is not in the Host's. The error matches
// fs.ErrNotExist if the process that had the netns open does not have it any more.
func (h *Host) withinOpen(dev *Device, f func(*netns.NS) error) error {
	ns, err := netns.OpenHeld(*dev.NetnsFile)
	if err != nil {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	defer ns.Close()
	if inode, err := ns.Inode(); err != nil || inode != dev.NetnsInode {
		return fmt.Errorf("the netns of %s: %w", dev.Name, fs.ErrNotExist)
	}
	return f(ns)
}

// openedBy looks at one process for the NICs elsewhere.
func (h *Host) openedBy(pid int) (*holders.Files, error) {
	own, err := h.NS.Inode()
	if err != nil {
		return nil, err
	}
	return holders.Of(pid, own), nil
}

// FindFor is [Host.Find] at a cost that does not grow with the number of other devices: it looks
// for the tap's name, and among what the guest's process holds. sw is the switch to look in; empty
// for none. The holders of a device with a link are not filled in.
func (h *Host) FindFor(ctx context.Context, pid int, vm, nicID, sw string) (*Device, error) {
	name, _ := nic.InterfaceName(vm, nicID)
	l, err := h.NL.Link(name)
	if err == nil {
		if r, ok := nic.ParseRecord(l.Alias); ok && r.VM == vm && r.NIC == nicID {
			dev := h.own(l, r, h.MasterOf(l))
			if r.Switch {
				dev.SwitchPort = h.ReadSwitchPort(ctx, &dev)
			}
			h.ReadOVS(ctx, &dev)
			return &dev, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	op, err := h.openedBy(pid)
	if err != nil {
		return nil, err
	}
	elsewhere := h.inSpaces(ctx, op)
	if dev := h.socketFor(ctx, pid, op, vm, nicID, sw); dev != nil {
		return dev, nil
	}
	all := append(elsewhere, deadNICs(op, elsewhere)...)
	for _, dev := range append(all, h.deadOfLibvirt(ctx, op, all)...) {
		if dev.Want.VM == vm && dev.Want.NIC == nicID {
			return &dev, nil
		}
	}
	return nil, nil
}
