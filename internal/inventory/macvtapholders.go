package inventory

import (
	"syscall"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

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
