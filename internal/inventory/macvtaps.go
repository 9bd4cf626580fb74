package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/qemu"
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
		if isLocked(p) {
			return true
		}
	}
	return false
}

// libvirtsDirs are where the machine's libvirt keeps the directories of its running domains
// (LOCALSTATEDIR and RUNSTATEDIR of its build).
var libvirtsDirs = []string{"/var/lib/libvirt/", "/run/libvirt/"}

// openClaimed opens the directory that a process says libvirt has made for it. Any user can give a
// process a guest's command line, name a directory of their own, and make the open wait for a file
// system of their own. So the directory of a process of another user than root and the caller is
// opened only where libvirt alone makes directories, as this process sees them.
func openClaimed(p qemu.Process) (*os.File, error) {
	if isTrusted(p.UID) {
		return OpenLock(p)
	}
	dir := filepath.Clean(p.Dir)
	if !isLibvirts(dir) {
		return nil, fmt.Errorf("%s, which process %d names, is not a libvirt directory", dir, p.PID)
	}
	return os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
}

// isLibvirts reports whether only libvirt makes a directory of that clean path.
func isLibvirts(dir string) bool {
	return slices.ContainsFunc(libvirtsDirs, func(in string) bool { return strings.HasPrefix(dir, in) })
}

// isLocked reports whether a process has the lock of a libvirt guest.
func isLocked(p qemu.Process) bool {
	f, err := openClaimed(p)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
}

// OpenLock opens the directory that libvirt has made for a guest, in the guest's mount namespace. A
// lock on it (flock(2)) is the guest's lock. The caller closes the file.
func OpenLock(p qemu.Process) (*os.File, error) {
	if p.Dir == "" {
		return nil, fmt.Errorf("the command line of process %d does not tell where libvirt keeps its files", p.PID)
	}
	path := fmt.Sprintf("/proc/%d/root%s", p.PID, p.Dir)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (guests of the machine's libvirt need root)", err)
	}
	return f, nil
}

// isVouched reports whether libvirt has made the directory that a process names, for a guest of
// that process's user: libvirt gives the directory to that user (libDir of struct
// qemuDomainObjPrivate in src/qemu/qemu_domain.h).
func isVouched(p qemu.Process) bool {
	f, err := openClaimed(p)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == p.UID
}

// The kernel does not say which process holds a macvtap in the Host's netns: its node must be found
// among the open files of processes. Only root may open that node. Libvirt does, and hands it to
// the one guest that the device was made for. So a user with too many files to look at may hold one
// only if that guest is a process of that user, and that process is then looked at by itself:
// opening many files keeps no left-over device alive.

// Bounds of what is looked at for such guests: a user may run any number of processes that claim to
// be the guest.
const (
	maxGuestFiles = 1 << 12 // of one process; no VMM has nearly as many
	maxGuests     = 1 << 6
)

// lookAtGuests looks at the processes of libvirt guests that have macvtaps among these links, if
// they belong to users with too many files to look at.
func (op *openFiles) lookAtGuests(links []*rtnl.Link) error {
	names := map[string]bool{}
	for _, l := range links {
		if r, ok := nic.ParseRecord(l.Alias); ok && l.Tun == nil {
			names[r.VM] = true
		}
	}
	if len(op.over) == 0 || len(names) == 0 {
		return nil
	}
	all, err := qemu.List()
	if err != nil {
		return err
	}
	var first, then []qemu.Process
	for _, p := range all {
		switch {
		case !p.Libvirt || !names[p.Name] || !op.over[p.UID]:
		case isVouched(p):
			first = append(first, p)
		default: // libvirt's directories may be another machine's, as seen from here
			then = append(then, p)
		}
	}
	for i, p := range append(first, then...) {
		if i == maxGuests {
			break
		}
		op.lookAtGuest(p.PID)
	}
	op.guestsUnseen = len(first) > maxGuests
	return nil
}

// lookAtGuest looks for macvtap queues of one process, and forgets what was seen of it before.
func (op *openFiles) lookAtGuest(pid int) {
	delete(op.nodes, pid)
	procfd.First(pid, maxGuestFiles, func(f procfd.File) {
		if macvlan.LooksLikeQueue(f) {
			op.nodes[pid] = append(op.nodes[pid], procfd.File{PID: pid, FD: f.FD, UID: f.UID})
		}
	})
}

// addNodeHolders adds the processes that have the node of a macvtap in the Host's netns open.
func (h *Host) addNodeHolders(dev *Device, op *openFiles) {
	if len(op.nodes) > 0 {
		number, err := macvlan.Number(h.NS, dev.Link)
		if err != nil {
			return
		}
		dev.addHolders(op, op.nodesOf(number))
	}
	dev.allSeen = len(dev.Holders) == 0 && !op.guestsUnseen && op.seesAll()
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
func (h *Host) deadOfLibvirt(ctx context.Context, op *openFiles, all []Device) (found []Device) {
	if h.OfLibvirt == nil {
		return nil
	}
	suspects := op.suspects(all)
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

// suspects lists the processes that hold a queue of a tap that is gone, or a macvtap's queue that
// belongs to none of these devices: the macvtap may be libvirt's own.
func (op *openFiles) suspects(all []Device) []int {
	found := maps.Clone(op.orphans)
	for pid, files := range op.nodes {
		if !found[pid] && slices.ContainsFunc(files, func(f procfd.File) bool { return !isQueueOf(all, f) }) {
			found[pid] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}
