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
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

// awaitsLibvirt tells whether an attach that another vmnet works on is about to hand over the link
// by its name: nobody holds it for that moment, but the guest's lock is taken.
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

// openClaimed opens the directory that a process says libvirt has made for it. Anybody can call a
// process a guest, show a directory of his own, and have the open wait for a file system of his
// own. So for another user than root and the caller it is opened where only libvirt makes
// directories, as this process sees it.
func openClaimed(p qemu.Process) (*os.File, error) {
	if isTrusted(p.UID) {
		return OpenLock(p)
	}
	dir := filepath.Clean(p.Dir)
	if !isLibvirts(dir) {
		return nil, fmt.Errorf("%s, which process %d names, is no directory of libvirt's", dir, p.PID)
	}
	return os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
}

// isLibvirts reports whether only libvirt makes a directory of that clean path.
func isLibvirts(dir string) bool {
	return slices.ContainsFunc(libvirtsDirs, func(in string) bool { return strings.HasPrefix(dir, in) })
}

// isLocked reports whether somebody has the lock of a guest of libvirt's.
func isLocked(p qemu.Process) bool {
	f, err := openClaimed(p)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
}

// OpenLock opens the folder, in whatever mount namespace it is.
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

// isVouched reports whether the directory that a process names is one that libvirt has made, for a
// guest of that process's user (virDomainDir of struct qemuDomainObjPrivate in
// src/qemu/qemu_domain.h is chowned to it).
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

// Who holds a macvtap in the Manager's netns, the kernel does not tell: its node must be found
// among the open files of processes. Root alone may open that node. Libvirt does, and hands it to
// the one guest that the device was made for. So a user of whose files not all were looked at may
// hold one only where that guest is a process of that user's, and that process is then looked at by
// itself: too many files keep no left-over alive.

// What is looked at of such guests' processes: anybody may run any number of processes that say
// they are that guest.
const (
	maxGuestFiles = 1 << 12 // of one process; no VMM has nearly as many
	maxGuests     = 1 << 6
)

// lookAtGuests looks at the processes of libvirt's guests that have macvtaps among these links,
// where those are of users of whose files not all were looked at.
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

// lookAtGuest looks at one process for queues of macvtaps, whatever was seen of it before.
func (op *openFiles) lookAtGuest(pid int) {
	delete(op.nodes, pid)
	procfd.First(pid, maxGuestFiles, func(f procfd.File) {
		if macvlan.LooksLikeQueue(f) {
			op.nodes[pid] = append(op.nodes[pid], procfd.File{PID: pid, FD: f.FD, UID: f.UID})
		}
	})
}

// addNodeHolders notes who has the node of a macvtap in the Manager's netns open.
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

// LibvirtNIC is a NIC of vmnet's as libvirt knows it, whether its device is there or not.
type LibvirtNIC struct {
	nic.Record
	Interface string // name of its device
	PID       int    // its guest's VMM
}

// deadOfLibvirt are NICs as deadNICs, of libvirt's guests. Libvirt is asked of those processes
// alone that hold a queue of no device that is known; all are the NICs that are there.
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

// suspects are the processes that hold a queue of a tap that is gone, or of a macvtap of which none
// of these NICs has the file: it may be libvirt's own.
func (op *openFiles) suspects(all []Device) []int {
	found := maps.Clone(op.orphans)
	for pid, files := range op.nodes {
		if !found[pid] && slices.ContainsFunc(files, func(f procfd.File) bool { return !isQueueOf(all, f) }) {
			found[pid] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}
