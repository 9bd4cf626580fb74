package holders

import (
	"fmt"
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

// libvirtsDirs are where the machine's libvirt keeps the directories of its running domains
// (LOCALSTATEDIR and RUNSTATEDIR of its build).
var libvirtsDirs = []string{"/var/lib/libvirt/", "/run/libvirt/"}

// openClaimed opens the directory that a process says libvirt has made for it. Any user can give a
// process a guest's command line, name a directory of their own, and make the open wait for a file
// system of their own. So the directory of a process of another user than root and the caller is
// opened only where libvirt alone makes directories, as this process sees them.
func openClaimed(p qemu.Process) (*os.File, error) {
	if IsTrusted(p.UID) {
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

// IsLocked reports whether a process has the lock of a libvirt guest.
func IsLocked(p qemu.Process) bool {
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

// The kernel does not say which process holds a macvtap in the own netns: its node must be found
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
func (op *Files) lookAtGuests(links []*rtnl.Link) error {
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
func (op *Files) lookAtGuest(pid int) {
	delete(op.Nodes, pid)
	procfd.First(pid, maxGuestFiles, func(f procfd.File) {
		if macvlan.LooksLikeQueue(f) {
			op.Nodes[pid] = append(op.Nodes[pid], procfd.File{PID: pid, FD: f.FD, UID: f.UID})
		}
	})
}
